//! Processes that do not die when they are killed, as in uninterruptible sleep.
//!
//! A process of a frozen cgroup v1 freezer is one: SIGKILL waits until it is thawed. The
//! freezer is the test's own, so berthd cannot thaw it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_testkit::{Node, container_config};

use super::{lives, others_are_served, until};

/// A freezer that goes with the test.
struct Freezer(PathBuf);

impl Freezer {
    /// `None` where there is no cgroup v1 freezer.
    fn holding(pid: u32) -> Result<Option<Self>> {
        let root = PathBuf::from("/sys/fs/cgroup/freezer");
        if !root.join("cgroup.procs").exists() {
            return Ok(None);
        }
        let freezer = Self(root.join(format!("berth-test-frozen-{}-{pid}", std::process::id())));
        std::fs::create_dir(&freezer.0)?;
        std::fs::write(freezer.0.join("cgroup.procs"), pid.to_string())?;
        std::fs::write(freezer.0.join("freezer.state"), "FROZEN")?;
        let began = Instant::now();
        while std::fs::read_to_string(freezer.0.join("freezer.state"))?.trim() != "FROZEN" {
            ensure!(began.elapsed() < Duration::from_secs(5), "it does not freeze");
        }
        Ok(Some(freezer))
    }

    fn thaw(&self) -> Result<()> {
        std::fs::write(self.0.join("freezer.state"), "THAWED").context("thaw")
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw().ok();
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn d_state_task_is_reported_and_ended_in_the_background() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&id).await?;
    let Some(freezer) = Freezer::holding(pid)? else {
        eprintln!("skipped: no cgroup v1 freezer");
        return node.assert_clean().await;
    };

    // Both requests wait for the same, and others do not.
    let (mut cri, container) = (node.cri.clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop_container(&container, 0).await });
    let (mut cri, container) = (node.cri.clone(), id.clone());
    let removal = tokio::spawn(async move { cri.remove_container(&container).await });
    others_are_served(&mut node, &image, "other").await?;
    for answer in [stop.await?, removal.await?] {
        let error = answer.expect_err("its process lives");
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    }
    ensure!(lives(pid), "it died");
    let error = node.cri.stop_sandbox(&pod.id).await.expect_err("its process lives");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");

    // Once it dies what was asked for is done, though nobody asks again.
    freezer.thaw()?;
    until("it is dead", || !lives(pid)).await?;
    let began = Instant::now();
    while !node.cri.containers().await?.is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(30), "it is not removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(freezer);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn d_state_task_of_a_killed_shim_is_not_said_to_run() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.container_pid(&id).await?;
    let Some(freezer) = Freezer::holding(pid)? else {
        eprintln!("skipped: no cgroup v1 freezer");
        return node.assert_clean().await;
    };
    super::Shim::of(&mut node, &pod).await?.kill()?;
    assert_eq!(node.wait_exit(&id).await?.exit_code, 255);
    let error = node.cri.remove_container(&id).await.expect_err("its process lives");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    drop(freezer);
    until("it is dead", || !lives(pid)).await?;
    node.assert_clean().await
}
