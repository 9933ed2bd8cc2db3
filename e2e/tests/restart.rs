//! A daemon that ends leaves its pods running, and finds them again.

use std::time::Duration;

use anyhow::Result;
use berth_api::v1;
use berth_testkit::{Node, container_config, log};

#[tokio::test(flavor = "multi_thread")]
async fn pods_survive_a_terminated_and_a_killed_daemon() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let script = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let container =
        node.run(&pod, &container_config("main", &image, &["sh", "-c", script])).await?;
    let short = "sleep 1; exit 42";
    let brief = node.run(&pod, &container_config("brief", &image, &["sh", "-c", short])).await?;
    let before = node.cri.sandbox_status(&pod.id).await?;

    node.restart().await?;
    assert_eq!(node.cri.sandbox_status(&pod.id).await?, before);
    node.kill_daemon()?;
    // The brief one ends while nobody watches.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    node.kill_and_restart().await?;

    let status = node.cri.sandbox_status(&pod.id).await?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    let ended = node.wait_exit(&brief).await?;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (42, "Error"));
    let status = node.cri.container_status(&container).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    let answer = node.cri.exec(&container, &["echo", "alive"], 10).await?;
    assert_eq!(answer.stdout, b"alive\n");

    node.cri.stop_container(&container, 0).await?;
    let lines = node.read_log("pod", "main")?;
    let text = log::text(&lines, "stdout");
    let numbers: Vec<usize> =
        text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    assert!(
        numbers.len() > 100 && numbers.iter().copied().eq(0..numbers.len()),
        "{} lines",
        numbers.len()
    );
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_be_run_after_a_restart() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let first = node.pod("first").await?;
    node.kill_and_restart().await?;
    let second = node.pod("second").await?;
    for pod in [&first, &second] {
        assert_eq!(node.shell(pod, &image, "echo runs").await?, "runs\n");
    }
    node.assert_clean().await
}
