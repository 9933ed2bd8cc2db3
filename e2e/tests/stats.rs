//! What containers, sandboxes and images use.

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, script};

fn value(of: Option<v1::UInt64Value>) -> u64 {
    of.unwrap_or_default().value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_usage_is_counted() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let use_some = "head -c 8000000 /dev/zero > /written; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                    echo used; sleep 1000";
    let mut config = script(&image, use_some);
    config.labels.insert("app".into(), "a".into());
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "used").await?;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.cri.runtime.container_stats(request.clone()).await?.into_inner().stats;
    let stats = stats.context("no stats")?;
    let attributes = stats.attributes.context("no attributes")?;
    assert_eq!(attributes.id, id);
    assert_eq!(attributes.labels.get("app").map(String::as_str), Some("a"));
    let cpu = stats.cpu.context("no cpu")?;
    assert!(value(cpu.usage_core_nano_seconds) > 1_000_000 && cpu.timestamp > 0, "{cpu:?}");
    let memory = stats.memory.context("no memory")?;
    assert!(value(memory.working_set_bytes) > 0 && value(memory.usage_bytes) > 0, "{memory:?}");
    let layer = stats.writable_layer.context("no writable layer")?;
    assert!(value(layer.used_bytes) >= 8_000_000 && value(layer.inodes_used) > 0, "{layer:?}");
    assert!(layer.fs_id.is_some(), "{layer:?}");

    node.cri.stop_container(&id, 0).await?;
    let ended = node.cri.runtime.container_stats(request).await?.into_inner().stats;
    let ended = ended.context("no stats of an ended container")?;
    assert!(ended.cpu.is_none() && ended.memory.is_none(), "{ended:?}");
    assert!(ended.writable_layer.is_some(), "{ended:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_usage_is_that_of_its_containers() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut other = node.sandbox_config("other");
    other.labels.insert("app".into(), "b".into());
    let other = node.pod_with(other).await?;
    for name in ["one", "two"] {
        node.run(&pod, &container_config(name, &image, &["sleep", "1000"])).await?;
    }
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = node.cri.runtime.pod_sandbox_stats(request).await?.into_inner().stats;
    let stats = stats.context("no stats")?;
    let attributes = stats.attributes.context("no attributes")?;
    assert_eq!(attributes.id, pod.id);
    assert_eq!(attributes.metadata.context("no metadata")?.name, "pod");
    let linux = stats.linux.context("no linux stats")?;
    assert!(value(linux.cpu.context("no cpu")?.usage_core_nano_seconds) > 0);
    assert!(value(linux.memory.context("no memory")?.working_set_bytes) > 0);
    assert_eq!(value(linux.process.context("no processes")?.process_count), 2);
    assert_eq!(linux.containers.len(), 2);
    let traffic = linux.network.context("no network")?.default_interface.context("no interface")?;
    assert_eq!(traffic.name, "eth0");

    let all = v1::ListPodSandboxStatsRequest::default();
    let listed = node.cri.runtime.list_pod_sandbox_stats(all).await?.into_inner().stats;
    assert_eq!(listed.len(), 2);
    for filter in [
        v1::PodSandboxStatsFilter { id: other.id.clone(), ..Default::default() },
        v1::PodSandboxStatsFilter {
            label_selector: [("app".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        },
    ] {
        let request = v1::ListPodSandboxStatsRequest { filter: Some(filter.clone()) };
        let listed = node.cri.runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
        let ids: Vec<_> =
            listed.iter().filter_map(|stats| Some(&stats.attributes.as_ref()?.id)).collect();
        assert_eq!(ids, [&other.id], "{filter:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_file_system_is_named_and_filled_by_images() -> Result<()> {
    let mut node = Node::start().await?;
    let request = v1::ImageFsInfoRequest::default;
    let info = node.cri.image.image_fs_info(request()).await?.into_inner();
    let empty = info.image_filesystems.first().context("no image file system")?.clone();
    node.busybox().await?;
    let info = node.cri.image.image_fs_info(request()).await?.into_inner();
    let filled = info.image_filesystems.first().context("no image file system")?.clone();
    let mountpoint = filled.fs_id.context("no file system id")?.mountpoint;
    assert!(std::path::Path::new(&mountpoint).starts_with(node.dir()), "{mountpoint}");
    assert!(filled.timestamp > 0);
    // The program alone has more than a megabyte.
    assert!(value(filled.used_bytes) > value(empty.used_bytes) + 1_000_000);
    assert!(value(filled.inodes_used) > value(empty.inodes_used) + 10);
    node.assert_clean().await
}
