//! A store that refuses: what happened is recorded when it takes it, and nobody waits.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_api::v1::{ContainerState, PodSandboxState};
use berth_testkit::{Node, container_config, script};

use super::{SOON, Shim, lives, until};

async fn state(node: &mut Node, id: &str) -> Result<ContainerState> {
    Ok(node.cri.container_status(id).await?.state())
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_full_in_the_store_a_stop_works_and_the_end_is_recorded_later() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let polite = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done";
    let id = node.run(&pod, &script(&image, polite)).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    let pid = node.container_pid(&id).await?;
    node.daemon().arm("stop.ended error ENOSPC")?;
    let began = Instant::now();
    node.cri.stop_container(&id, 60).await?;
    ensure!(began.elapsed() < SOON, "the stop took {:?}", began.elapsed());
    ensure!(!lives(pid), "it runs");
    // What is not stored is not said; but a second stop knows that it is dead.
    assert_eq!(state(&mut node, &id).await?, ContainerState::ContainerRunning);
    node.cri.stop_container(&id, 60).await?;

    // The shim keeps the end: a berthd that dies meanwhile loses nothing.
    node.kill_daemon()?;
    node.daemon().arm("")?;
    node.kill_and_restart().await?;
    let status = node.wait_exit(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_full_in_the_store_is_tried_again_until_it_is_not() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &script(&image, "exit 7")).await?;
    node.daemon().arm("stop.ended error ENOSPC times=4")?;
    let second = node.run(&pod, &container_config("two", &image, &["sh", "-c", "exit 8"])).await?;
    for (id, code) in [(&id, 7), (&second, 8)] {
        assert_eq!(node.wait_exit(id).await?.exit_code, code);
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_full_in_the_store_a_container_is_removed() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&id).await?;
    node.daemon().arm("stop.ended error ENOSPC")?;
    node.cri.remove_container(&id).await?;
    ensure!(!lives(pid), "it runs");
    ensure!(node.cri.containers().await?.is_empty(), "it is listed");
    node.daemon().arm("")?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_full_in_the_store_a_lost_shim_is_recorded_later() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&id).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    node.daemon()
        .arm("stop.not_ready_stored error ENOSPC times=3\nstop.ended error ENOSPC times=3")?;
    shim.kill()?;
    until("it is dead", || !lives(pid)).await?;
    let status = node.wait_exit(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    super::not_ready(&mut node, &pod).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_full_in_the_store_a_sandbox_is_stopped_when_it_is_not() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&id).await?;
    node.daemon().arm("stop.not_ready_stored error ENOSPC")?;
    let error = node.cri.stop_sandbox(&pod.id).await.expect_err("the store refuses");
    assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error}");
    ensure!(!lives(pid), "a full disk keeps a container alive");
    assert_eq!(state(&mut node, &id).await?, ContainerState::ContainerExited);
    assert_eq!(node.cri.sandbox_status(&pod.id).await?.state(), PodSandboxState::SandboxReady);

    // It is stopped as soon as that can be stored, though nobody asks again.
    node.daemon().arm("")?;
    super::not_ready(&mut node, &pod).await?;
    node.assert_clean().await
}

/// The program ran and no record says so: it must not go on, and the shim forgets it.
#[tokio::test(flavor = "multi_thread")]
async fn disk_full_in_the_store_a_start_is_taken_back_and_the_next_works() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = script(&image, "echo ran; exec sleep 1000");
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    node.daemon().arm("start.stored error ENOSPC")?;
    let error = node.cri.start_container(&id).await.expect_err("the store refuses");
    assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error}");
    assert_eq!(state(&mut node, &id).await?, ContainerState::ContainerCreated);
    node.daemon().arm("")?;
    node.cri.start_container(&id).await?;
    assert_eq!(state(&mut node, &id).await?, ContainerState::ContainerRunning);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(state(&mut node, &id).await?, ContainerState::ContainerRunning);
    node.assert_clean().await
}
