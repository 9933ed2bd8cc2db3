//! Commands in a container (ExecSync) whose shim hangs, or whose berthd dies.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_testkit::{Node, container_config};

use super::{SOON, Shim, lives, members, until};

/// Directories of commands.
fn directories(node: &Node) -> usize {
    std::fs::read_dir(node.dir().join("run/exec")).into_iter().flatten().count()
}

async fn running(node: &mut Node) -> Result<(berth_testkit::Pod, String, u32)> {
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&id).await?;
    Ok((pod, id, pid))
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_command_ends_at_its_timeout_and_never_runs() -> Result<()> {
    let mut node = Node::start().await?;
    let (pod, id, pid) = running(&mut node).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    shim.stop()?;
    let began = Instant::now();
    let error = node.cri.exec(&id, &["sleep", "1000"], 2).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    ensure!(began.elapsed() < Duration::from_secs(2) + SOON, "it took {:?}", began.elapsed());
    shim.resume()?;
    until("nothing is left of it", || directories(&node) == 0).await?;
    assert_eq!(members(pid)?, [pid]);
    assert_eq!(node.cri.exec(&id, &["echo", "back"], 10).await?.stdout, b"back\n");
    node.assert_clean().await
}

/// The shim is stopped after `pause`: at first it may not have told yet that the command runs.
async fn killed_at_its_timeout(pause: Duration) -> Result<()> {
    let mut node = Node::start().await?;
    let (pod, id, pid) = running(&mut node).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    let (mut cri, container) = (node.cri.clone(), id.clone());
    let exec = tokio::spawn(async move { cri.exec(&container, &["sleep", "1000"], 3).await });
    until("the command runs", || members(pid).is_ok_and(|members| members.len() == 2)).await?;
    tokio::time::sleep(pause).await;
    let command = members(pid)?.into_iter().find(|member| *member != pid).expect("there are two");
    shim.stop()?;
    let error = exec.await?.expect_err("it does not end by itself");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    until("the command is dead", || !lives(command)).await?;
    ensure!(lives(pid), "its container is dead too");
    shim.resume()?;
    until("nothing is left of it", || directories(&node) == 0).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_command_that_is_made_is_killed_at_its_timeout() -> Result<()> {
    killed_at_its_timeout(Duration::ZERO).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_command_that_runs_is_killed_at_its_timeout() -> Result<()> {
    killed_at_its_timeout(Duration::from_millis(500)).await
}

/// Decision 16: a command ends with its client, and its client ended with berthd.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_berthds_commands_are_ended_by_the_next() -> Result<()> {
    let mut node = Node::start().await?;
    let (_, id, pid) = running(&mut node).await?;
    for _ in 0..3 {
        let (mut cri, container) = (node.cri.clone(), id.clone());
        tokio::spawn(async move { cri.exec(&container, &["sleep", "1000"], 0).await });
    }
    until("the commands run", || members(pid).is_ok_and(|members| members.len() == 4)).await?;
    node.kill_and_restart().await?;
    until("the commands are dead", || members(pid).is_ok_and(|members| members == [pid])).await?;
    until("nothing is left of them", || directories(&node) == 0).await?;
    assert_eq!(node.container_pid(&id).await?, pid);
    assert_eq!(node.cri.exec(&id, &["echo", "back"], 10).await?.stdout, b"back\n");
    node.assert_clean().await
}

/// Between the shim's knowing of a command and its start, and after its start.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_berthd_dies_at_any_step_is_ended_by_the_next() -> Result<()> {
    let mut node = Node::start().await?;
    let (_, id, pid) = running(&mut node).await?;
    for point in ["exec.directory", "exec.fifos", "exec.added", "exec.started"] {
        node.daemon().arm(&format!("{point} kill"))?;
        node.cri.exec(&id, &["sleep", "1000"], 0).await.unwrap_err();
        node.daemon().arm("")?;
        node.kill_and_restart().await?;
        until("nothing is left of it", || directories(&node) == 0).await?;
        until("it is dead", || members(pid).is_ok_and(|members| members == [pid])).await?;
    }
    node.assert_clean().await
}
