//! `kill -9` of a shim.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_api::v1::{self, NamespaceMode};
use berth_testkit::{Node, Pod, container_config, sandbox_security, script, security};

use super::{SOON, Shim, lives, members, not_ready, shims, until};

/// By when it is known, on the busiest machine, that a killed shim's containers have exited.
/// On a quiet one a second is enough: the torture tells how long it took.
const REPORTED: Duration = Duration::from_secs(10);
/// Ignores what can be ignored, and so do its children.
const STUBBORN: &str = "trap '' TERM INT HUP; (sleep 1000 & sleep 1001 & wait) & \
                        echo ready; while :; do sleep 0.1; done";

/// A pod whose containers see the processes that `mode` says, and one of them.
async fn stubborn(node: &mut Node, image: &str, mode: NamespaceMode) -> Result<(Pod, String)> {
    let mut config = node.sandbox_config("pod");
    sandbox_security(&mut config).namespace_options.get_or_insert_default().pid = mode.into();
    let pod = node.pod_with(config).await?;
    let mut config = script(image, STUBBORN);
    security(&mut config).namespace_options.get_or_insert_default().pid = mode.into();
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    Ok((pod, id))
}

async fn a_killed_shim_is_reported(mode: NamespaceMode) -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (pod, id) = stubborn(&mut node, &image, mode).await?;
    let pid = node.container_pid(&id).await?;
    let processes = members(pid)?;
    ensure!(processes.len() >= 3, "{processes:?}");
    let shim = Shim::of(&mut node, &pod).await?;

    let killed = Instant::now();
    shim.kill()?;
    let status = node.wait_exit(&id).await?;
    let took = killed.elapsed();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"), "{status:?}");
    ensure!(took < REPORTED, "reported after {took:?}");
    until("every process is dead", || !processes.iter().any(|pid| lives(*pid))).await?;
    not_ready(&mut node, &pod).await?;

    // The record of the end never changes.
    assert_eq!(node.cri.container_status(&id).await?, status);
    let late = script(&image, "true");
    let refused = node.cri.create_container(&pod.id, &pod.config, &late).await;
    let refused = refused.expect_err("the sandbox is not ready");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");

    let began = Instant::now();
    node.cri.stop_container(&id, 30).await?;
    node.cri.stop_sandbox(&pod.id).await?;
    node.cri.remove_sandbox(&pod.id).await?;
    ensure!(began.elapsed() < SOON, "stop and removal took {:?}", began.elapsed());
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_is_reported_within_a_second() -> Result<()> {
    a_killed_shim_is_reported(NamespaceMode::Container).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_with_a_shared_pid_namespace() -> Result<()> {
    a_killed_shim_is_reported(NamespaceMode::Pod).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_with_the_nodes_processes() -> Result<()> {
    a_killed_shim_is_reported(NamespaceMode::Node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_while_berthd_is_down_is_found_at_its_start() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (pod, id) = stubborn(&mut node, &image, NamespaceMode::Container).await?;
    let processes = members(node.container_pid(&id).await?)?;
    let shim = Shim::of(&mut node, &pod).await?;
    node.kill_daemon()?;
    shim.kill()?;
    node.kill_and_restart().await?;
    let status = node.cri.container_status(&id).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    ensure!(!processes.iter().any(|pid| lives(*pid)), "an orphan lives");
    node.assert_clean().await
}

/// The shim dies while berthd waits at `point` of a request about a container.
async fn during(point: &str, start: bool) -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("other", &image, &["sleep", "1000"])).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    let config = container_config("main", &image, &["sleep", "1000"]);
    let created = match start {
        true => Some(node.cri.create_container(&pod.id, &pod.config, &config).await?),
        false => None,
    };
    node.daemon().arm(&format!("{point} delay=1500"))?;
    let mut cri = node.cri.clone();
    let (id, sandbox) = (created.clone(), pod.clone());
    let request = tokio::spawn(async move {
        match id {
            Some(id) => cri.start_container(&id).await,
            None => cri.create_container(&sandbox.id, &sandbox.config, &config).await.map(drop),
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    shim.kill()?;
    let status = node.wait_exit(&running).await?;
    assert_eq!(status.exit_code, 255);
    not_ready(&mut node, &pod).await?;
    let answer = request.await?;
    node.daemon().arm("")?;
    if let Some(id) = created {
        let error = answer.expect_err("a container was started without a shim");
        let status = node.wait_exit(&id).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{error}");
        assert_eq!(status.started_at, 0);
    }
    for id in node.cri.containers().await? {
        let state = node.cri.container_status(&id).await?.state();
        assert_ne!(state, v1::ContainerState::ContainerRunning);
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_during_a_start_before_the_program() -> Result<()> {
    during("start.task_created", true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_during_a_start_before_the_task() -> Result<()> {
    during("start.mounts_known", true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_during_a_creation() -> Result<()> {
    during("create.bundle", false).await
}

/// A start whose shim died after the program ran, and before that was stored.
#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_between_a_start_and_its_record() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let shim = Shim::of(&mut node, &pod).await?;
    let config = script(&image, "echo ready; exec sleep 1000");
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    node.daemon().arm("start.executed delay=1000")?;
    let (mut cri, container) = (node.cri.clone(), id.clone());
    let start = tokio::spawn(async move { cri.start_container(&container).await });
    node.wait_for_line("pod", "main", "ready").await?;
    shim.kill()?;
    // Either answer is true; what the record says is what counts.
    start.await?.ok();
    let status = node.wait_exit(&id).await?;
    ensure!([128, 255].contains(&status.exit_code), "{status:?}");
    not_ready(&mut node, &pod).await?;
    node.assert_clean().await
}

async fn during_run(point: &str) -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    node.daemon().arm(&format!("{point} delay=1500"))?;
    let (mut cri, config) = (node.cri.clone(), node.sandbox_config("pod"));
    let asked = config.clone();
    let run = tokio::spawn(async move { cri.run_sandbox(&asked).await });
    until("the shim runs", || shims(&node).is_ok_and(|shims| !shims.is_empty())).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for shim in shims(&node)? {
        shim.kill()?;
    }
    run.await?.expect_err("a sandbox without a shim is ready");
    node.daemon().arm("")?;
    ensure!(node.cri.sandboxes().await?.is_empty(), "a failed sandbox is listed");
    // The next try works.
    let pod = node.pod_with(config).await?;
    assert_eq!(node.shell(&pod, &image, "echo served").await?, "served\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_while_its_sandbox_is_made() -> Result<()> {
    during_run("run.shim_spawned").await?;
    during_run("run.shim_created").await
}

/// A sandbox whose shim dies between its making and its record is not ready for long.
#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_before_its_sandbox_is_listed() -> Result<()> {
    let mut node = Node::start().await?;
    node.daemon().arm("run.made delay=1500")?;
    let (mut cri, config) = (node.cri.clone(), node.sandbox_config("pod"));
    let asked = config.clone();
    let run = tokio::spawn(async move { cri.run_sandbox(&asked).await });
    until("the shim runs", || shims(&node).is_ok_and(|shims| !shims.is_empty())).await?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    for shim in shims(&node)? {
        shim.kill()?;
    }
    if let Ok(id) = run.await? {
        not_ready(&mut node, &Pod { id, config }).await?;
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_during_a_command() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    let (mut cri, container) = (node.cri.clone(), id.clone());
    let exec = tokio::spawn(async move { cri.exec(&container, &["sleep", "1000"], 0).await });
    let first = node.container_pid(&id).await?;
    until("the command runs", || members(first).is_ok_and(|members| members.len() == 2)).await?;
    let processes = members(first)?;
    shim.kill()?;
    let began = Instant::now();
    exec.await?.expect_err("a command of a killed shim succeeded");
    ensure!(began.elapsed() < SOON, "the command hung for {:?}", began.elapsed());
    assert_eq!(node.wait_exit(&id).await?.exit_code, 255);
    until("every process is dead", || !processes.iter().any(|pid| lives(*pid))).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_during_the_grace_of_a_stop() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (pod, id) = stubborn(&mut node, &image, NamespaceMode::Container).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    let (mut cri, container) = (node.cri.clone(), id.clone());
    let began = Instant::now();
    let stop = tokio::spawn(async move { cri.stop_container(&container, 100).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    ensure!(!stop.is_finished(), "it was stopped without a grace");
    shim.kill()?;
    stop.await??;
    ensure!(began.elapsed() < SOON, "the stop waited for {:?}", began.elapsed());
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 255);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shim_sigkill_of_many_pods_at_once() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut pods = Vec::new();
    for n in 0..8 {
        let pod = node.pod(&format!("pod-{n}")).await?;
        let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
        let shim = Shim::of(&mut node, &pod).await?;
        pods.push((pod, id, shim));
    }
    for (.., shim) in &pods {
        shim.kill()?;
    }
    for (pod, id, _) in &pods {
        let status = node.wait_exit(id).await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        not_ready(&mut node, pod).await?;
    }
    node.assert_clean().await
}
