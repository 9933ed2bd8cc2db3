//! What monitoring reads.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Node, container_config, kubelet, resources, script};

/// Names that not every kernel has values for: what needs a controller, traffic with a block
/// device, or cgroup v2.
const NOT_EVERYWHERE: &[&str] = &[
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_memory_swap",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_spec_memory_swap_limit_bytes",
];

/// Label values and value of each metric, by name.
type Told = BTreeMap<String, Vec<(Vec<String>, u64)>>;

fn by_name(metrics: Vec<v1::Metric>) -> Told {
    let mut told = Told::new();
    for metric in metrics {
        let value = metric.value.unwrap_or_default().value;
        told.entry(metric.name).or_default().push((metric.label_values, value));
    }
    told
}

async fn metrics(node: &mut Node) -> Result<Vec<v1::PodSandboxMetrics>> {
    let request = v1::ListPodSandboxMetricsRequest::default();
    Ok(node.cri.runtime.list_pod_sandbox_metrics(request).await?.into_inner().pod_metrics)
}

/// teeth: crates/cri/src/metrics.rs: `values.add_known(&SOCKETS, [], processes.sockets)` → `values.add(&SOCKETS, [], processes.count)`
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_has_a_descriptor_and_its_value() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let work = "head -c 3000000 /dev/zero > /written; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); \
                done; nc -l -p 5 & until grep -qs ':0005 ' /proc/net/tcp /proc/net/tcp6; do :; \
                done; echo used; exec sleep 1000";
    let mut config = script(&image, work);
    let limits = resources(&mut config);
    (limits.cpu_period, limits.cpu_quota, limits.cpu_shares) = (100_000, 90_000, 1024);
    limits.memory_limit_in_bytes = 64 << 20;
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "used").await?;
    let request = v1::ListMetricDescriptorsRequest::default();
    let answer = node.cri.runtime.list_metric_descriptors(request).await?.into_inner();
    let descriptors: BTreeMap<String, Vec<String>> =
        answer.descriptors.into_iter().map(|it| (it.name, it.label_keys)).collect();
    assert_eq!(descriptors.len(), 56);

    let [told] = <[_; 1]>::try_from(metrics(&mut node).await?)
        .map_err(|pods| anyhow::anyhow!("not one pod: {pods:?}"))?;
    assert_eq!(told.pod_sandbox_id, pod.id);
    let [container] = <[_; 1]>::try_from(told.container_metrics)
        .map_err(|containers| anyhow::anyhow!("not one container: {containers:?}"))?;
    assert_eq!(container.container_id, id);
    assert!(container.metrics.iter().chain(&told.metrics).all(|metric| metric.timestamp > 0));
    let (of_pod, container) = (by_name(told.metrics), by_name(container.metrics));

    let found: BTreeSet<&String> = of_pod.keys().chain(container.keys()).collect();
    let missing: Vec<_> = descriptors.keys().filter(|name| !found.contains(name)).collect();
    let excused = |name: &&&String| NOT_EVERYWHERE.contains(&name.as_str());
    assert!(missing.iter().all(|name| excused(&name)), "{missing:?}");
    for (name, values) in of_pod.iter().chain(&container) {
        let keys = descriptors.get(name).with_context(|| format!("{name} has no descriptor"))?;
        for (labels, _) in values {
            assert_eq!(labels.len(), keys.len(), "{name}: {keys:?} {labels:?}");
        }
    }
    check_values(&descriptors, &container, &id)?;
    let keys = &descriptors["container_network_receive_bytes_total"];
    let (labels, _) = &of_pod["container_network_receive_bytes_total"][0];
    let label = |key: &str| keys.iter().zip(labels).find(|(it, _)| *it == key).map(|(_, it)| &**it);
    assert_eq!((label("interface"), label("pod")), (Some("eth0"), Some("pod")));
    assert_eq!((label("container"), label("name")), (Some(""), Some(&*pod.id)));
    node.assert_clean().await
}

fn check_values(
    descriptors: &BTreeMap<String, Vec<String>>,
    container: &Told,
    id: &str,
) -> Result<()> {
    let value = |name: &str| container.get(name).map(|values| values[0].1).context(name.to_owned());
    assert_eq!(value("container_spec_cpu_period")?, 100_000);
    assert_eq!(value("container_spec_cpu_quota")?, 90_000);
    assert_eq!(value("container_spec_cpu_shares")?, 1024);
    assert_eq!(value("container_spec_memory_limit_bytes")?, 64 << 20);
    assert_eq!((value("container_processes")?, value("container_threads")?), (2, 2));
    assert_eq!(value("container_sockets")?, 1, "that which listens");
    ensure!(value("container_file_descriptors")? >= 4 && value("container_ulimits_soft")? > 0);
    ensure!(value("container_memory_usage_bytes")? >= value("container_memory_working_set_bytes")?);
    ensure!(value("container_memory_max_usage_bytes")? >= value("container_memory_rss")?);
    ensure!(value("container_fs_usage_bytes")? >= 3_000_000, "the writable layer");
    ensure!(value("container_fs_limit_bytes")? > value("container_fs_usage_bytes")?);
    let times = [value("container_start_time_seconds")?, value("container_last_seen")?];
    ensure!(times[0] > 1_700_000_000 && times[1] >= times[0], "{times:?}");
    let keys = &descriptors["container_memory_rss"];
    let (labels, _) = &container["container_memory_rss"][0];
    let labels: BTreeMap<_, _> = keys.iter().map(String::as_str).zip(labels).collect();
    assert_eq!((labels["name"], labels["container"]), (&id.to_owned(), &"main".to_owned()));
    assert_eq!((labels["namespace"], labels["pod"]), (&"tests".to_owned(), &"pod".to_owned()));
    ensure!(labels["image"].contains("busybox") && labels["id"].ends_with(id), "{labels:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_runs_is_measured_and_streams_say_the_same() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let logs = node.log_directory("kubelets");
    let kubelets = kubelet::sandbox("kubelets", "space", "uid-1", &logs);
    let kubelets = node.pod_with(kubelets).await?;
    let stopped = node.pod("stopped").await?;
    let sleep = ["sleep", "1000"];
    let running = node.run(&kubelets, &kubelet::container("app", &image, &sleep)).await?;
    let created = container_config("created", &image, &sleep);
    node.cri.create_container(&kubelets.id, &kubelets.config, &created).await?;
    node.run(&stopped, &container_config("app", &image, &sleep)).await?;
    node.cri.stop_sandbox(&stopped.id).await?;
    let ids = |pods: Vec<v1::PodSandboxMetrics>| -> Vec<(String, Vec<String>)> {
        let containers = |pod: &v1::PodSandboxMetrics| {
            pod.container_metrics.iter().map(|it| it.container_id.clone()).collect()
        };
        pods.into_iter().map(|pod| (pod.pod_sandbox_id.clone(), containers(&pod))).collect()
    };
    let expected = vec![(kubelets.id.clone(), vec![running.clone()])];
    assert_eq!(ids(metrics(&mut node).await?), expected);
    let request = v1::StreamPodSandboxMetricsRequest::default();
    let mut parts = node.cri.runtime.stream_pod_sandbox_metrics(request).await?.into_inner();
    let first = parts.message().await?.context("nothing")?;
    assert_eq!(ids(first.pod_sandbox_metrics), expected);
    assert!(parts.message().await?.is_none());

    node.kill_and_restart().await?;
    assert_eq!(ids(metrics(&mut node).await?), expected, "after a restart of the daemon");
    node.cri.stop_container(&running, 0).await?;
    assert_eq!(ids(metrics(&mut node).await?), [(kubelets.id.clone(), vec![])]);
    node.assert_clean().await
}
