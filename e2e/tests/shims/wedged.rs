//! Shims that are stopped (SIGSTOP), as if they hung.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Known, Node, bind, container_config, script};

use super::{SOON, Shim, lives, members, others_are_served, shims, until};

/// Says when it is asked to stop, and how it then ends.
const POLITE: &str = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done";

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_stop_has_its_grace_and_the_true_code() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &script(&image, POLITE)).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    let shim = Shim::of(&mut node, &pod).await?;
    shim.stop()?;

    let began = Instant::now();
    node.cri.stop_container(&id, 60).await?;
    ensure!(began.elapsed() < SOON, "the stop took {:?}", began.elapsed());
    let status = node.cri.container_status(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{status:?}");
    others_are_served(&mut node, &image, "other").await?;

    // The shim is back: nothing that is recorded changes, and the pod is as good as new.
    shim.resume()?;
    assert_eq!(node.shell(&pod, &image, "echo served").await?, "served\n");
    assert_eq!(node.cri.container_status(&id).await?, status);
    node.cri.remove_container(&id).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_container_that_ignores_its_stop_is_killed() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let stubborn = "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 0.02; done";
    let id = node.run(&pod, &script(&image, stubborn)).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    let processes = members(node.container_pid(&id).await?)?;
    Shim::of(&mut node, &pod).await?.stop()?;
    let began = Instant::now();
    node.cri.stop_container(&id, 2).await?;
    ensure!(began.elapsed() >= Duration::from_secs(2), "the grace was {:?}", began.elapsed());
    ensure!(began.elapsed() < Duration::from_secs(2) + SOON, "it took {:?}", began.elapsed());
    ensure!(!processes.iter().any(|pid| lives(*pid)), "a process lives");
    let status = node.cri.container_status(&id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
    node.cri.remove_container(&id).await?;
    ensure!(node.cri.containers().await?.is_empty(), "it is listed");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_its_sandbox_is_stopped_and_removed() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let config = container_config(name, &image, &["sleep", "1000"]);
        ids.push(node.run(&pod, &config).await?);
    }
    let config = container_config("created", &image, &["sleep", "1000"]);
    node.cri.create_container(&pod.id, &pod.config, &config).await?;
    let shim = Shim::of(&mut node, &pod).await?;
    shim.stop()?;
    let began = Instant::now();
    let (mut cri, id) = (node.cri.clone(), pod.id.clone());
    let removal = tokio::spawn(async move { cri.remove_sandbox(&id).await });
    others_are_served(&mut node, &image, "other").await?;
    removal.await??;
    ensure!(began.elapsed() < SOON, "the removal took {:?}", began.elapsed());
    until("the shim is dead", || !lives(shim.0.as_raw().unsigned_abs())).await?;
    node.assert_clean().await
}

/// A container that is to leave a mark when it runs, and a start of it that hangs.
struct HungStart {
    node: Node,
    image: String,
    pod: berth_testkit::Pod,
    id: String,
    shim: Shim,
    mark: std::path::PathBuf,
    start: tokio::task::JoinHandle<Result<(), tonic::Status>>,
}

impl HungStart {
    async fn begin() -> Result<Self> {
        let (mut node, image, pod) = Node::with_pod().await?;
        let dir = node.dir().join("volume");
        std::fs::create_dir(&dir)?;
        let mut config = script(&image, "echo ran > /data/mark; exec sleep 1000");
        config.mounts = vec![bind("/data", &dir)];
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let shim = Shim::of(&mut node, &pod).await?;
        shim.stop()?;
        let (mut cri, container) = (node.cri.clone(), id.clone());
        let start = tokio::spawn(async move { cri.start_container(&container).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(!start.is_finished(), "the start does not hang");
        Ok(Self { node, image, pod, id, shim, mark: dir.join("mark"), start })
    }

    /// The shim comes back, and does nothing of what it was once asked.
    async fn resume(mut self) -> Result<()> {
        self.shim.resume()?;
        others_are_served(&mut self.node, &self.image, "other").await?;
        assert_eq!(self.node.shell(&self.pod, &self.image, "echo served").await?, "served\n");
        ensure!(!self.mark.exists(), "a container that was stopped has run");
        self.node.assert_clean().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_stop_does_not_wait_for_a_start() -> Result<()> {
    let mut hung = HungStart::begin().await?;
    let began = Instant::now();
    hung.node.cri.stop_container(&hung.id, 30).await?;
    ensure!(began.elapsed() < SOON, "the stop took {:?}", began.elapsed());
    let error = (&mut hung.start).await?.expect_err("it was stopped");
    assert_eq!(error.code(), tonic::Code::Cancelled, "{error}");
    let status = hung.node.cri.container_status(&hung.id).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    hung.node.cri.remove_container(&hung.id).await?;
    hung.resume().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_removal_does_not_wait_for_a_start() -> Result<()> {
    let mut hung = HungStart::begin().await?;
    let began = Instant::now();
    hung.node.cri.remove_container(&hung.id).await?;
    ensure!(began.elapsed() < SOON, "the removal took {:?}", began.elapsed());
    (&mut hung.start).await?.expect_err("it was removed");
    hung.resume().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_the_removal_of_a_sandbox_does_not_wait_for_a_start() -> Result<()> {
    let mut hung = HungStart::begin().await?;
    let began = Instant::now();
    hung.node.cri.remove_sandbox(&hung.pod.id).await?;
    ensure!(began.elapsed() < SOON, "the removal took {:?}", began.elapsed());
    (&mut hung.start).await?.expect_err("it was removed");
    ensure!(!hung.mark.exists(), "it has run");
    hung.node.assert_clean().await
}

/// Ten seconds without a sign of life end a start.
#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_a_start_ends_at_its_deadline() -> Result<()> {
    let mut hung = HungStart::begin().await?;
    let began = Instant::now();
    let error = (&mut hung.start).await?.expect_err("the shim is stopped");
    ensure!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    let status = hung.node.cri.container_status(&hung.id).await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    hung.resume().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_while_its_sandbox_is_made() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    node.daemon().arm("run.shim_spawned delay=1500")?;
    let (mut cri, config) = (node.cri.clone(), node.sandbox_config("pod"));
    let asked = config.clone();
    let run = tokio::spawn(async move { cri.run_sandbox(&asked).await });
    until("the shim runs", || shims(&node).is_ok_and(|shims| !shims.is_empty())).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for shim in shims(&node)? {
        shim.stop()?;
    }
    let began = Instant::now();
    let error = run.await?.expect_err("its shim is stopped");
    ensure!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    ensure!(node.cri.sandboxes().await?.is_empty(), "a failed sandbox is listed");
    node.daemon().arm("")?;
    let pod = node.pod_with(config).await?;
    assert_eq!(node.shell(&pod, &image, "echo served").await?, "served\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_that_comes_back_finishes_its_start() -> Result<()> {
    let mut hung = HungStart::begin().await?;
    hung.shim.resume()?;
    (&mut hung.start).await??;
    until("it has run", || hung.mark.exists()).await?;
    hung.node.assert_clean().await
}

/// Its socket is the one way to a shim whose sandbox was being made.
#[tokio::test(flavor = "multi_thread")]
async fn wedged_shim_that_cannot_be_reached_is_ended_later() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.sandbox_config("pod");
    node.daemon().arm("run.shim_spawned kill\n")?;
    ensure!(node.cri.run_sandbox(&config).await.is_err(), "the daemon did not die");
    node.kill_daemon()?;
    node.daemon().arm("")?;
    let shim = *shims(&node)?.first().context("no shim")?;
    let socket = std::fs::read_dir(node.dir().join("run/s"))?.next().context("no socket")??.path();
    shim.stop()?;
    let stat = format!("/proc/{}/stat", shim.0);
    let stopped = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "));
    until("the shim is stopped", stopped).await?;
    // Whoever connects now hears EAGAIN: its queue is full.
    let mut queue = Vec::new();
    while let Ok(waiting) = tokio::net::UnixStream::connect(&socket).await {
        queue.push(waiting);
        ensure!(queue.len() < 1000, "its queue has no end");
    }
    node.start_daemon().await?;
    ensure!(node.cri.sandboxes().await?.is_empty(), "half a sandbox is listed");
    ensure!(unfinished(&mut node).await? > 0, "the shim is forgotten");
    ensure!(socket.exists(), "nobody finds the shim any more");

    drop(queue);
    shim.resume()?;
    let began = Instant::now();
    while unfinished(&mut node).await? > 0 {
        ensure!(began.elapsed() < Duration::from_secs(90), "it is not ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.settle(&Known::default())?;
    ensure!(!lives(shim.0.as_raw().unsigned_abs()) && !socket.exists(), "something is left");
    node.assert_clean().await
}

/// How much is tried again, by the verbose status.
async fn unfinished(node: &mut Node) -> Result<u64> {
    let request = v1::StatusRequest { verbose: true };
    let info = node.cri.runtime.status(request).await?.into_inner().info;
    let status: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    status["undo"]["unfinished"].as_u64().context("no count")
}
