//! What is measured, in the words of cAdvisor: kubelet serves it under `/metrics/cadvisor`
//! when it takes statistics from the runtime (`PodAndContainerStatsFromCRI`, KEP-2371).
//!
//! The CRI's values are whole numbers: of a time, full seconds. What the kernel does not say
//! has no value; what is not limited has the limit 0, as in cAdvisor.

mod cgroup;
mod names;
#[cfg(test)]
mod tests;
mod values;

use berth_api::v1::{self, *};
use berth_engine::{ContainerMetrics as Container, NodeMetrics, SandboxMetrics as Sandbox};
use berth_model::container::{ContainerState, Timestamp};
use berth_stats::Processes;

use self::names::*;
use self::values::Values;
use crate::Error;
use crate::batch::{Parts, parts};
use crate::service::Service;

pub(crate) async fn descriptors(
    _: ListMetricDescriptorsRequest,
) -> Result<ListMetricDescriptorsResponse, Error> {
    Ok(ListMetricDescriptorsResponse { descriptors: names::descriptors() })
}

pub(crate) async fn list(
    service: &Service,
    _: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, Error> {
    let node = service.engine().metrics().await?;
    let pod_metrics = node.sandboxes.iter().map(|sandbox| pod(&node, sandbox)).collect();
    Ok(ListPodSandboxMetricsResponse { pod_metrics })
}

pub(crate) async fn stream(
    service: &Service,
    _: StreamPodSandboxMetricsRequest,
) -> Result<Parts<StreamPodSandboxMetricsResponse>, Error> {
    let mut node = service.engine().metrics().await?;
    let sandboxes = std::mem::take(&mut node.sandboxes);
    let pods = sandboxes.into_iter().map(move |sandbox| pod(&node, &sandbox));
    Ok(parts(pods, |pods| StreamPodSandboxMetricsResponse { pod_sandbox_metrics: pods }))
}

fn pod(node: &NodeMetrics, sandbox: &Sandbox) -> PodSandboxMetrics {
    let containers = sandbox.containers.iter();
    PodSandboxMetrics {
        pod_sandbox_id: sandbox.status.id.to_string(),
        metrics: whole_pod(node, sandbox),
        container_metrics: containers
            .map(|container| ContainerMetrics {
                container_id: container.status.id.to_string(),
                metrics: of_container(node, sandbox, container),
            })
            .collect(),
    }
}

/// What is of the pod and of none of its containers: its cgroup, and its interfaces.
fn whole_pod(node: &NodeMetrics, sandbox: &Sandbox) -> Vec<v1::Metric> {
    let status = &sandbox.status;
    let pod = &status.spec.name;
    let base =
        ["", &sandbox.cgroup_path, "", status.id.as_str(), pod.namespace.as_str(), &pod.name];
    let mut values = Values::new(base);
    if let Some(details) = &sandbox.cgroup {
        values.at = details.cgroup.usage.at;
        cgroup::tell(&mut values, &details.cgroup, &node.devices);
        seen_and_started(&mut values, status.created_at);
    }
    if let Some(network) = &sandbox.network {
        values.at = network.at;
        for interface in network.interfaces.iter() {
            let of = [interface.name.as_str()];
            values.add(&NETWORK_RX_BYTES, of, interface.rx_bytes);
            values.add(&NETWORK_RX_PACKETS, of, interface.rx_packets);
            values.add(&NETWORK_RX_DROPPED, of, interface.rx_dropped);
            values.add(&NETWORK_RX_ERRORS, of, interface.rx_errors);
            values.add(&NETWORK_TX_BYTES, of, interface.tx_bytes);
            values.add(&NETWORK_TX_PACKETS, of, interface.tx_packets);
            values.add(&NETWORK_TX_DROPPED, of, interface.tx_dropped);
            values.add(&NETWORK_TX_ERRORS, of, interface.tx_errors);
        }
    }
    values.told
}

fn of_container(node: &NodeMetrics, sandbox: &Sandbox, container: &Container) -> Vec<v1::Metric> {
    let (status, pod) = (&container.status, &sandbox.status.spec.name);
    let mut values = Values::new([
        &status.spec.name.name,
        &container.cgroup_path,
        &status.image_ref,
        status.id.as_str(),
        pod.namespace.as_str(),
        &pod.name,
    ]);
    values.at = container.cgroup.cgroup.usage.at;
    cgroup::tell(&mut values, &container.cgroup.cgroup, &node.devices);
    let started_at = match status.state {
        ContainerState::Running { started_at, .. } => started_at,
        ContainerState::Created | ContainerState::Exited { .. } => status.created_at,
    };
    seen_and_started(&mut values, started_at);
    if let Some(processes) = &container.cgroup.processes {
        of_processes(&mut values, processes);
    }
    if let Some(filesystem) = &node.filesystem {
        let of = [filesystem.device.as_str()];
        values.add(&FS_LIMIT, of, filesystem.capacity_bytes);
        values.add(&FS_INODES, of, filesystem.inodes);
        values.add(&FS_INODES_FREE, of, filesystem.inodes_free);
        if let Some(layer) = &container.writable_layer {
            values.at = layer.at;
            values.add(&FS_USAGE, of, layer.bytes);
        }
    }
    values.told
}

fn of_processes(values: &mut Values<'_>, processes: &Processes) {
    values.add(&PROCESSES, [], processes.count);
    values.add(&FILE_DESCRIPTORS, [], processes.descriptors);
    values.add_known(&SOCKETS, [], processes.sockets);
    values.add_known(&ULIMITS_SOFT, ["max_open_files"], processes.max_open_files);
}

fn seen_and_started(values: &mut Values<'_>, started_at: Timestamp) {
    values.add(&LAST_SEEN, [], values::seconds_since_1970(values.at));
    values.add(&START_TIME, [], values::seconds_since_1970(started_at));
}
