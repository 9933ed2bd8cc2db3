//! A daemon that ends leaves its pods running, and finds them again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, bind, container_config, log, script};

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

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_on_and_are_logged_while_no_daemon_runs() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let wait = "echo before; while [ ! -e /data/go ]; do sleep 0.05; done; echo after; sleep 1000";
    let dir = node.dir().join("volume");
    std::fs::create_dir(&dir)?;
    let mut config = script(&image, wait);
    config.mounts = vec![bind("/data", &dir)];
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "before").await?;
    let pid = node.container_pid(&id).await?;
    let started = node.cri.container_status(&id).await?.started_at;

    node.terminate_daemon()?;
    std::fs::write(dir.join("go"), "")?;
    node.wait_for_line("pod", "main", "after").await?;
    node.kill_and_restart().await?;
    assert_eq!(node.container_pid(&id).await?, pid);
    assert_eq!(node.cri.container_status(&id).await?.started_at, started);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_known_before_a_kill_is_known_after_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("running", &image, &["sleep", "1000"])).await?;
    let created = container_config("created", &image, &["echo", "late"]);
    let created = node.cri.create_container(&pod.id, &pod.config, &created).await?;
    let ended = node.run(&pod, &script(&image, "exit 3")).await?;
    node.wait_exit(&ended).await?;
    let stopped = node.pod("stopped").await?;
    node.cri.stop_sandbox(&stopped.id).await?;
    let mut before = Vec::new();
    for id in [&running, &created, &ended] {
        before.push(node.cri.container_status(id).await?);
    }
    let sandboxes =
        [node.cri.sandbox_status(&pod.id).await?, node.cri.sandbox_status(&stopped.id).await?];

    node.kill_and_restart().await?;
    for known in &before {
        assert_eq!(node.cri.container_status(&known.id).await?, *known);
    }
    for known in &sandboxes {
        assert_eq!(node.cri.sandbox_status(&known.id).await?, *known);
    }
    let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
    assert_eq!(images.into_inner().images.len(), 1);
    node.cri.start_container(&created).await?;
    assert_eq!(node.wait_exit(&created).await?.exit_code, 0);
    let lines = node.read_log("pod", "created")?;
    assert_eq!(log::text(&lines, "stdout"), "late\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_succeeds_when_it_is_repeated() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for point in ["start.task_created", "start.task_released", "start.mounts_known"] {
        let mut config = script(&image, "echo once");
        config.log_path = format!("{point}.log");
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        node.daemon().arm(&format!("{point} kill\n"))?;
        assert!(node.cri.start_container(&id).await.is_err(), "killed at {point}");
        node.daemon().arm("")?;
        node.kill_and_restart().await?;
        node.cri.start_container(&id).await.with_context(|| format!("killed at {point}"))?;
        assert_eq!(node.wait_exit(&id).await?.exit_code, 0);
        assert_eq!(log::text(&node.read_log("pod", point)?, "stdout"), "once\n");
        node.cri.remove_container(&id).await?;
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_the_daemon_that_ran_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    node.daemon().arm("exec.started kill\n")?;
    assert!(node.cri.exec(&id, &["sleep", "2000"], 10).await.is_err(), "the daemon died");
    node.daemon().arm("")?;
    node.kill_and_restart().await?;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = node.cri.exec(&id, &["sh", "-c", "ps; true"], 10).await?;
        let processes = String::from_utf8_lossy(&answer.stdout).into_owned();
        if !processes.contains("sleep 2000") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it runs on: {processes}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.assert_clean().await
}
