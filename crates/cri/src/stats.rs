//! What containers and sandboxes use.

use berth_api::v1::*;
use berth_engine as engine;
use berth_model::container::Timestamp;
use berth_model::stats::DiskUsage;
use berth_network::InterfaceCounters;

use crate::sandbox::now;
use crate::service::Service;
use crate::translate::{container_metadata, sandbox_metadata};
use crate::{Error, ids, list};

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
) -> Result<ListContainerStatsResponse, Error> {
    let filter = request.filter.unwrap_or_default();
    let filesystem = service.filesystem().await?;
    let mut all = service.engine().containers_stats().await?;
    all.retain(|stats| {
        list::is_container(
            &stats.status,
            &filter.id,
            &filter.pod_sandbox_id,
            &filter.label_selector,
        )
    });
    let stats = all.iter().map(|stats| container_stats(stats, filesystem)).collect();
    Ok(ListContainerStatsResponse { stats })
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
) -> Result<ListPodSandboxStatsResponse, Error> {
    let filter = request.filter.unwrap_or_default();
    let filesystem = service.filesystem().await?;
    let mut all = service.engine().sandboxes_stats().await?;
    all.retain(|stats| list::is_sandbox(&stats.status, &filter.id, &filter.label_selector));
    let stats = all.iter().map(|stats| sandbox_stats(stats, filesystem)).collect();
    Ok(ListPodSandboxStatsResponse { stats })
}

/// A container that does not run has no cgroup to read: only its disk is told.
fn container_stats(stats: &engine::ContainerStats, filesystem: &str) -> ContainerStats {
    let status = &stats.status;
    let sample = stats.cgroup.as_ref();
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: status.id.to_string(),
            metadata: Some(container_metadata(status)),
            labels: status.spec.labels.clone(),
            annotations: status.spec.annotations.clone(),
        }),
        cpu: sample.map(cpu),
        memory: sample.map(memory),
        writable_layer: stats.writable_layer.map(|usage| disk(usage, filesystem)),
        swap: sample.map(|sample| SwapUsage {
            timestamp: sample.usage.at.0,
            swap_available_bytes: None,
            swap_usage_bytes: count(sample.usage.swap_bytes),
        }),
        io: None,
    }
}

fn sandbox_stats(stats: &engine::SandboxStats, filesystem: &str) -> PodSandboxStats {
    let status = &stats.status;
    let sample = stats.cgroup.as_ref();
    let containers = stats.containers.iter();
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: status.id.to_string(),
            metadata: Some(sandbox_metadata(status)),
            labels: status.spec.labels.clone(),
            annotations: status.spec.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: sample.map(cpu),
            memory: sample.map(memory),
            network: stats.network.map(network),
            process: sample.map(|sample| ProcessUsage {
                timestamp: sample.usage.at.0,
                process_count: count(sample.usage.pids),
            }),
            containers: containers.map(|stats| container_stats(stats, filesystem)).collect(),
            io: None,
        }),
        windows: None,
    }
}

fn count(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn cpu(sample: &berth_stats::Sample) -> CpuUsage {
    CpuUsage {
        timestamp: sample.usage.at.0,
        usage_core_nano_seconds: count(sample.usage.cpu_ns),
        usage_nano_cores: sample.nano_cores.and_then(count),
        psi: None,
    }
}

fn memory(sample: &berth_stats::Sample) -> MemoryUsage {
    let usage = &sample.usage;
    let left = |limit: u64| limit.saturating_sub(usage.working_set_bytes);
    MemoryUsage {
        timestamp: usage.at.0,
        working_set_bytes: count(usage.working_set_bytes),
        available_bytes: usage.memory_limit_bytes.map(left).and_then(count),
        usage_bytes: count(usage.memory_bytes),
        rss_bytes: count(usage.rss_bytes),
        page_faults: count(usage.page_faults),
        major_page_faults: count(usage.major_page_faults),
        psi: None,
    }
}

fn network(counters: InterfaceCounters) -> NetworkUsage {
    let interface = NetworkInterfaceUsage {
        name: "eth0".to_owned(),
        rx_bytes: count(counters.rx_bytes),
        rx_errors: count(counters.rx_errors),
        tx_bytes: count(counters.tx_bytes),
        tx_errors: count(counters.tx_errors),
    };
    NetworkUsage { timestamp: now(), default_interface: Some(interface), interfaces: Vec::new() }
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

    #[test]
    fn usage_is_told_in_the_cris_words() {
        let usage = CgroupUsage {
            at: Timestamp(7),
            cpu_ns: 100,
            memory_bytes: 50,
            working_set_bytes: 40,
            memory_limit_bytes: Some(90),
            ..CgroupUsage::default()
        };
        let sample = berth_stats::Sample { usage, nano_cores: Some(3) };
        let value = |value: Option<UInt64Value>| value.map(|value| value.value);
        let cpu = cpu(&sample);
        assert_eq!((cpu.timestamp, value(cpu.usage_core_nano_seconds)), (7, Some(100)));
        assert_eq!(value(cpu.usage_nano_cores), Some(3));
        let told = memory(&sample);
        assert_eq!((value(told.usage_bytes), value(told.working_set_bytes)), (Some(50), Some(40)));
        assert_eq!(value(told.available_bytes), Some(50));
        let unlimited = CgroupUsage { memory_limit_bytes: None, ..usage };
        let told = memory(&berth_stats::Sample { usage: unlimited, nano_cores: None });
        assert_eq!(value(told.available_bytes), None);
    }

    #[test]
    fn the_interface_of_a_sandbox_is_its_default_one() {
        let counters = InterfaceCounters {
            rx_bytes: 1,
            rx_errors: 2,
            tx_bytes: 3,
            tx_errors: 4,
            ..InterfaceCounters::default()
        };
        let before = now();
        let told = network(counters);
        assert!((before..=now()).contains(&told.timestamp));
        let eth0 = told.default_interface.unwrap();
        let value = |value: Option<UInt64Value>| value.map(|value| value.value);
        assert_eq!(eth0.name, "eth0");
        assert_eq!((value(eth0.rx_bytes), value(eth0.rx_errors)), (Some(1), Some(2)));
        assert_eq!((value(eth0.tx_bytes), value(eth0.tx_errors)), (Some(3), Some(4)));
    }

    #[test]
    fn a_writable_layer_names_its_file_system() {
        let told = disk(DiskUsage { at: Timestamp(1), bytes: 2, inodes: 3 }, "/var/lib/berth");
        assert_eq!(told.fs_id.unwrap().mountpoint, "/var/lib/berth");
        assert_eq!(told.used_bytes.unwrap().value, 2);
        assert_eq!(told.inodes_used.unwrap().value, 3);
    }
}
