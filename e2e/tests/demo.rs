//! The main job: a pod from a registry image, and everything away again.

use anyhow::Result;
use berth_api::v1;
use berth_testkit::{Node, container_config, log};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_from_a_registry_image_and_leaves_nothing() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.sandbox_config("demo");
    let sandbox = node.cri.run_sandbox(&pod).await?;
    let script = "echo out; echo err >&2; sleep 1000";
    let config = container_config("main", &image, &["sh", "-c", script]);
    let container = node.run_container(&sandbox, &pod, &config).await?;

    let status = node.cri.container_status(&container).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at && status.created_at > 0);

    let answer =
        node.cri.exec(&container, &["sh", "-c", "echo hi; echo ho >&2; exit 7"], 10).await?;
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice()),
        (b"hi\n".as_slice(), b"ho\n".as_slice())
    );
    assert_eq!(answer.exit_code, 7);

    let request = v1::ContainerStatsRequest { container_id: container.clone() };
    let stats = node.cri.runtime.container_stats(request).await?.into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);

    node.cri.stop_container(&container, 0).await?;
    let status = node.cri.container_status(&container).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);

    let lines = node.read_log("demo", "main")?;
    assert_eq!(log::text(&lines, "stdout"), "out\n");
    assert_eq!(log::text(&lines, "stderr"), "err\n");

    node.cri.remove_container(&container).await?;
    node.cri.remove_sandbox(&sandbox).await?;
    node.assert_clean().await
}
