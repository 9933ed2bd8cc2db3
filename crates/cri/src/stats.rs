//! What containers and sandboxes use.

use berth_api::Encoded;
use berth_api::v1::*;
use berth_engine as engine;
use berth_model::container::Timestamp;
use berth_model::stats::{self, DiskUsage, Pressure, Stall};
use berth_network::InterfaceCounters;
use berth_stats::Sample;
use prost::Message as _;

use crate::batch::{Parts, parts};
use crate::service::Service;
use crate::translate::{container_item, sandbox_item};
use crate::{Error, ids, list};

/// The interface that the network of a sandbox makes.
const DEFAULT_INTERFACE: &str = "eth0";

pub(crate) async fn container(
    service: &Service,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Error> {
    let id = ids::container(service.engine(), "container_id", &request.container_id)?;
    let stats = service.engine().container_stats(&id).await?;
    let filesystem = service.filesystem().await?;
    Ok(ContainerStatsResponse { stats: Some(container_stats(&stats, filesystem)) })
}

pub(crate) async fn containers(
    service: &Service,
    request: ListContainerStatsRequest,
) -> Result<Encoded, Error> {
    let encode = |stats: ContainerStats| stats.encode_to_vec();
    Ok(Encoded { items: told_containers(service, request.filter, encode).await? })
}

pub(crate) async fn stream_containers(
    service: &Service,
    request: StreamContainerStatsRequest,
) -> Result<Parts<StreamContainerStatsResponse>, Error> {
    let stats = told_containers(service, request.filter, |stats| stats).await?.into_iter();
    Ok(parts(stats, |stats| StreamContainerStatsResponse { container_stats: stats }))
}

/// Only what is asked for is read, and each answer given its `form` on the thread that read it:
/// encoded at once, for a list, so that no tree of all answers is made of memory that was in no
/// cache for seconds.
async fn told_containers<T: Send + 'static>(
    service: &Service,
    filter: Option<ContainerStatsFilter>,
    form: impl Fn(ContainerStats) -> T + Send + Sync + 'static,
) -> Result<Vec<T>, Error> {
    let ContainerStatsFilter { id, pod_sandbox_id, label_selector } = filter.unwrap_or_default();
    let wanted = move |status: &engine::ContainerStatus| {
        list::is_container(status, &id, &pod_sandbox_id, &label_selector)
    };
    let filesystem = service.filesystem().await?.to_owned();
    let tell = move |stats: engine::ContainerStats| form(container_stats(&stats, &filesystem));
    Ok(service.engine().containers_stats(wanted, tell).await?)
}

pub(crate) async fn sandbox(
    service: &Service,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Error> {
    let id = ids::sandbox(service.engine(), "pod_sandbox_id", &request.pod_sandbox_id)?;
    let stats = service.engine().sandbox_stats(&id).await?;
    let filesystem = service.filesystem().await?;
    Ok(PodSandboxStatsResponse { stats: Some(sandbox_stats(&stats, filesystem)) })
}

pub(crate) async fn sandboxes(
    service: &Service,
    request: ListPodSandboxStatsRequest,
) -> Result<Encoded, Error> {
    let encode = |stats: PodSandboxStats| stats.encode_to_vec();
    Ok(Encoded { items: told_sandboxes(service, request.filter, encode).await? })
}

pub(crate) async fn stream_sandboxes(
    service: &Service,
    request: StreamPodSandboxStatsRequest,
) -> Result<Parts<StreamPodSandboxStatsResponse>, Error> {
    let stats = told_sandboxes(service, request.filter, |stats| stats).await?.into_iter();
    Ok(parts(stats, |stats| StreamPodSandboxStatsResponse { pod_sandbox_stats: stats }))
}

/// As [`told_containers`].
async fn told_sandboxes<T: Send + 'static>(
    service: &Service,
    filter: Option<PodSandboxStatsFilter>,
    form: impl Fn(PodSandboxStats) -> T + Send + Sync + 'static,
) -> Result<Vec<T>, Error> {
    let PodSandboxStatsFilter { id, label_selector } = filter.unwrap_or_default();
    let wanted =
        move |status: &engine::SandboxStatus| list::is_sandbox(status, &id, &label_selector);
    let filesystem = service.filesystem().await?.to_owned();
    let tell = move |stats: engine::SandboxStats| form(sandbox_stats(&stats, &filesystem));
    Ok(service.engine().sandboxes_stats(wanted, tell).await?)
}

/// A container that does not run has no cgroup to read: only its disk is told.
fn container_stats(stats: &engine::ContainerStats, filesystem: &str) -> ContainerStats {
    let item = container_item(&stats.status);
    let sample = stats.cgroup.as_ref();
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: item.id,
            metadata: item.metadata,
            labels: item.labels,
            annotations: item.annotations,
        }),
        cpu: sample.and_then(cpu),
        memory: sample.and_then(memory),
        writable_layer: stats.writable_layer.map(|usage| disk(usage, filesystem)),
        swap: sample.and_then(swap),
        io: sample.and_then(io),
    }
}

fn sandbox_stats(stats: &engine::SandboxStats, filesystem: &str) -> PodSandboxStats {
    let item = sandbox_item(&stats.status);
    let sample = stats.cgroup.as_ref();
    let containers = stats.containers.iter();
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: item.id,
            metadata: item.metadata,
            labels: item.labels,
            annotations: item.annotations,
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: sample.and_then(cpu),
            memory: sample.and_then(memory),
            network: stats.network.as_ref().and_then(network),
            process: sample.and_then(|sample| {
                Some(ProcessUsage {
                    timestamp: sample.usage.at.0,
                    process_count: count(sample.usage.pids?),
                })
            }),
            containers: containers.map(|stats| container_stats(stats, filesystem)).collect(),
            io: sample.and_then(io),
        }),
        windows: None,
    }
}

fn count(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(sample: &Sample) -> Option<CpuUsage> {
    let cpu = sample.usage.cpu?;
    Some(CpuUsage {
        timestamp: sample.usage.at.0,
        usage_core_nano_seconds: count(cpu.total_ns),
        usage_nano_cores: sample.nano_cores.and_then(count),
        psi: cpu.pressure.map(psi),
    })
}

fn memory(sample: &Sample) -> Option<MemoryUsage> {
    let memory = sample.usage.memory?;
    let left = |limit: u64| limit.saturating_sub(memory.working_set_bytes);
    Some(MemoryUsage {
        timestamp: sample.usage.at.0,
        working_set_bytes: count(memory.working_set_bytes),
        available_bytes: memory.limit_bytes.map(left).and_then(count),
        usage_bytes: count(memory.bytes),
        rss_bytes: count(memory.rss_bytes),
        page_faults: count(memory.page_faults),
        major_page_faults: count(memory.major_page_faults),
        psi: memory.pressure.map(psi),
    })
}

fn swap(sample: &Sample) -> Option<SwapUsage> {
    let stats::SwapUsage { bytes, limit_bytes } = sample.usage.memory?.swap?;
    Some(SwapUsage {
        timestamp: sample.usage.at.0,
        swap_available_bytes: limit_bytes.map(|limit| limit.saturating_sub(bytes)).and_then(count),
        swap_usage_bytes: count(bytes),
    })
}

fn io(sample: &Sample) -> Option<IoUsage> {
    let pressure = sample.usage.io_pressure?;
    Some(IoUsage { timestamp: sample.usage.at.0, psi: Some(psi(pressure)) })
}

/// The CRI counts nanoseconds, the kernel microseconds.
fn psi(pressure: Pressure) -> PsiStats {
    let data = |stall: Stall| PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

/// The default interface is not among the others (`NetworkUsage.interfaces`). There is always
/// one, kubelet relies on it: in a pod that has renamed its own that is some other; of a pod that
/// has none left nothing is told.
fn network(usage: &engine::NetworkUsage) -> Option<NetworkUsage> {
    let all = &usage.interfaces;
    let default = all.iter().position(|counters| counters.name == DEFAULT_INTERFACE).unwrap_or(0);
    let default_interface = Some(interface(all.get(default)?));
    let others = all.iter().enumerate().filter(|(at, _)| *at != default);
    let interfaces = others.map(|(_, counters)| interface(counters)).collect();
    Some(NetworkUsage { timestamp: usage.at.0, default_interface, interfaces })
}

fn interface(counters: &InterfaceCounters) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: counters.name.clone(),
        rx_bytes: count(counters.rx_bytes),
        rx_errors: count(counters.rx_errors),
        tx_bytes: count(counters.tx_bytes),
        tx_errors: count(counters.tx_errors),
    }
}

fn disk(usage: DiskUsage, filesystem: &str) -> FilesystemUsage {
    let Timestamp(timestamp) = usage.at;
    FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint: filesystem.to_owned() }),
        used_bytes: count(usage.bytes),
        inodes_used: count(usage.inodes),
    }
}

#[cfg(test)]
mod tests {
    use berth_model::stats::CgroupUsage;

    use super::*;

    fn value(value: Option<UInt64Value>) -> Option<u64> {
        value.map(|value| value.value)
    }

    fn usage() -> CgroupUsage {
        let stall = Stall { total_us: 5, avg10: 1.5, avg60: 0.5, avg300: 0.25 };
        let pressure = Some(Pressure { some: stall, full: Stall::default() });
        CgroupUsage {
            at: Timestamp(7),
            cpu: Some(stats::CpuUsage { total_ns: 100, pressure, ..stats::CpuUsage::default() }),
            memory: Some(stats::MemoryUsage {
                bytes: 50,
                working_set_bytes: 40,
                rss_bytes: 30,
                limit_bytes: Some(90),
                page_faults: 3,
                major_page_faults: 2,
                swap: Some(stats::SwapUsage { bytes: 10, limit_bytes: Some(25) }),
                pressure,
                ..stats::MemoryUsage::default()
            }),
            pids: Some(4),
            io_pressure: pressure,
        }
    }

    #[test]
    fn usage_is_told_in_the_cris_words() {
        let sample = Sample { usage: usage(), nano_cores: Some(3) };
        let told = cpu(&sample).unwrap();
        assert_eq!((told.timestamp, value(told.usage_core_nano_seconds)), (7, Some(100)));
        assert_eq!(value(told.usage_nano_cores), Some(3));
        let told = memory(&sample).unwrap();
        assert_eq!((value(told.usage_bytes), value(told.working_set_bytes)), (Some(50), Some(40)));
        assert_eq!((value(told.available_bytes), value(told.rss_bytes)), (Some(50), Some(30)));
        assert_eq!((value(told.page_faults), value(told.major_page_faults)), (Some(3), Some(2)));
        let told = swap(&sample).unwrap();
        assert_eq!(
            (value(told.swap_usage_bytes), value(told.swap_available_bytes)),
            (Some(10), Some(15))
        );
        for psi in
            [cpu(&sample).unwrap().psi, memory(&sample).unwrap().psi, io(&sample).unwrap().psi]
        {
            let some = psi.unwrap().some.unwrap();
            assert_eq!((some.total, some.avg10, some.avg60, some.avg300), (5000, 1.5, 0.5, 0.25));
            assert_eq!(psi.unwrap().full.unwrap(), PsiData::default());
        }
    }

    /// teeth: crates/cri/src/stats.rs: `available_bytes: memory.limit_bytes.map(left).and_then(count)` → `available_bytes: count(left(memory.limit_bytes.unwrap_or(0)))`
    #[test]
    fn what_the_kernel_does_not_say_is_absent_and_not_zero() {
        let none = Sample { usage: CgroupUsage::default(), nano_cores: None };
        assert_eq!((cpu(&none), memory(&none), swap(&none), io(&none)), (None, None, None, None));
        let mut usage = usage();
        let memory_usage = usage.memory.as_mut().unwrap();
        (memory_usage.limit_bytes, memory_usage.pressure) = (None, None);
        memory_usage.swap = Some(stats::SwapUsage { bytes: 1, limit_bytes: None });
        let unlimited = Sample { usage, nano_cores: None };
        let told = memory(&unlimited).unwrap();
        assert_eq!((told.available_bytes, told.psi), (None, None));
        assert_eq!(swap(&unlimited).unwrap().swap_available_bytes, None);
        assert_eq!(cpu(&unlimited).unwrap().usage_nano_cores, None);
    }

    /// teeth: crates/cri/src/stats.rs: `== DEFAULT_INTERFACE).unwrap_or(0);` → `== DEFAULT_INTERFACE).unwrap_or(9);`
    #[test]
    fn the_default_interface_is_there_and_not_among_the_others() {
        let counters = |name: &str, rx_bytes| InterfaceCounters {
            name: name.into(),
            rx_bytes,
            rx_errors: 2,
            tx_bytes: 3,
            tx_errors: 4,
            ..InterfaceCounters::default()
        };
        let interfaces = [counters("eth0", 1), counters("net1", 5)].into();
        let told = network(&engine::NetworkUsage { at: Timestamp(9), interfaces }).unwrap();
        assert_eq!(told.timestamp, 9);
        let eth0 = told.default_interface.unwrap();
        assert_eq!(eth0.name, "eth0");
        assert_eq!((value(eth0.rx_bytes), value(eth0.rx_errors)), (Some(1), Some(2)));
        assert_eq!((value(eth0.tx_bytes), value(eth0.tx_errors)), (Some(3), Some(4)));
        let others: Vec<_> =
            told.interfaces.iter().map(|it| (&*it.name, value(it.rx_bytes))).collect();
        assert_eq!(others, [("net1", Some(5))]);

        let renamed = [counters("renamed", 6), counters("net1", 5)].into();
        let told = network(&engine::NetworkUsage { at: Timestamp(9), interfaces: renamed });
        let told = told.unwrap();
        assert_eq!(told.default_interface.unwrap().name, "renamed");
        assert_eq!((told.interfaces.len(), &*told.interfaces[0].name), (1, "net1"));
        let nothing = engine::NetworkUsage { at: Timestamp(9), interfaces: [].into() };
        assert_eq!(network(&nothing), None);
    }

    #[test]
    fn a_writable_layer_names_its_file_system() {
        let told = disk(DiskUsage { at: Timestamp(1), bytes: 2, inodes: 3 }, "/var/lib/berth");
        assert_eq!(told.timestamp, 1);
        assert_eq!(told.fs_id.unwrap().mountpoint, "/var/lib/berth");
        assert_eq!(told.used_bytes.unwrap().value, 2);
        assert_eq!(told.inodes_used.unwrap().value, 3);
    }
}
