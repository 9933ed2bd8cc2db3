//! Full disks: what cannot be done says which disk is full, what exists lives on and can
//! be removed, and the space comes back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::image::{Image, ImageBuilder};
use berth_testkit::tar::Tar;
use berth_testkit::{
    Disk, Node, NodeOptions, Pod, SmallDisk, SmallDisks, container_config, image, log, script,
};
use tonic::Code;

/// Longest that files may take to be removed in the background.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the large image of these tests takes, unpacked and as blobs, bytes.
const NEED: u64 = 10 << 20;

async fn node_with(disks: SmallDisks) -> Result<Node> {
    Node::start_with(NodeOptions { disks, ..NodeOptions::default() }).await
}

fn root(node: &Node) -> Result<&Disk> {
    node.disks().root.as_ref().context("the root directory has no disk of its own")
}

/// An image of three layers that no compression makes smaller.
fn large() -> Result<Image> {
    let mut builder = ImageBuilder::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for layer in 0..3 {
        let mut tar = Tar::new();
        for file in 0..12 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .flatten()
            .take(128 << 10)
            .collect();
            tar = tar.file(&format!("layer-{layer}/file-{file}"), 0o644, &bytes);
        }
        builder = builder.layer(tar)?;
    }
    builder.build()
}

/// It failed for want of space, and says where.
#[track_caller]
fn assert_full(status: &tonic::Status, below: &Path, when: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{when}: {status:?}");
    let below = below.to_string_lossy();
    assert!(status.message().contains(&*below), "{when}: no path below {below}: {status:?}");
}

async fn wait_until(what: &str, mut is: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !is().await? {
        ensure!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn used_bytes(node: &mut Node) -> Result<u64> {
    let request = v1::ImageFsInfoRequest::default();
    let info = node.cri.image.image_fs_info(request).await?.into_inner();
    let first = info.image_filesystems.first().context("no image file system")?;
    Ok(first.used_bytes.context("no used bytes")?.value)
}

/// What runs runs on and is listed, and the node answers.
async fn assert_serves(node: &mut Node, pod: &Pod, container: &str) -> Result<()> {
    let status = node.cri.container_status(container).await.context("container status")?;
    ensure!(status.state() == v1::ContainerState::ContainerRunning, "{status:?}");
    let status = node.cri.sandbox_status(&pod.id).await.context("sandbox status")?;
    ensure!(status.state() == v1::PodSandboxState::SandboxReady, "{status:?}");
    ensure!(node.cri.sandboxes().await?.contains(&pod.id), "the sandbox is not listed");
    ensure!(node.cri.containers().await?.iter().any(|id| id == container), "not listed");
    let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
    ensure!(!images.into_inner().images.is_empty(), "no image is listed");
    let request = v1::StatusRequest::default();
    node.cri.runtime.status(request).await.context("status of the node")?;
    Ok(())
}

/// A pod that sleeps.
async fn sleeper(node: &mut Node, image: &str, name: &str) -> Result<(Pod, String)> {
    let pod = node.pod(name).await?;
    let container = node.run(&pod, &container_config("main", image, &["sleep", "1000"])).await?;
    Ok((pod, container))
}

/// Failures table: "disk full in pull/unpack/DB".
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_onto_a_full_disk_names_it_and_gives_the_space_back_at_every_fill() -> Result<()> {
    let root_disk = Some(SmallDisk::mib(96));
    let mut node = node_with(SmallDisks { root: root_disk, ..SmallDisks::default() }).await?;
    let busybox = node.busybox().await?;
    let (pod, container) = sleeper(&mut node, &busybox, "lives").await?;
    let reference = node.push("large", "latest", &large()?)?;
    let before = used_bytes(&mut node).await?;
    let (mut failed, mut pulled) = (0, 0);
    for percent in (0..=110).step_by(5) {
        let when = format!("{percent} % of the space");
        root(&node)?.fill(NEED * percent / 100)?;
        match node.cri.pull(&reference).await {
            Err(status) => {
                failed += 1;
                assert_full(&status, &node.dir().join("root"), &when);
            }
            Ok(_) => {
                pulled += 1;
                assert_serves(&mut node, &pod, &container).await.context(when.clone())?;
                node.cri.remove_image(&reference).await.context(when.clone())?;
            }
        }
        assert_serves(&mut node, &pod, &container).await.context(when.clone())?;
        wait_until(&format!("space back at {when}"), async || {
            Ok(used_bytes(&mut node).await? == before)
        })
        .await?;
    }
    ensure!(failed >= 5 && pulled >= 1, "{failed} failed, {pulled} did not: nothing was walked");
    root(&node)?.free()?;
    node.cri.pull(&reference).await.context("a pull onto a disk with space again")?;
    node.cri.exec(&container, &["true"], 10).await?;
    node.check_stores()?;
    node.assert_clean().await
}

/// Failures table: "disk full in DB: status keeps working", and removal.
#[tokio::test(flavor = "multi_thread")]
async fn what_exists_is_listed_stopped_and_removed_on_a_disk_without_a_byte_left() -> Result<()> {
    let root_disk = Some(SmallDisk::mib(96));
    let mut node = node_with(SmallDisks { root: root_disk, ..SmallDisks::default() }).await?;
    let busybox = node.busybox().await?;
    let (lives, live) = sleeper(&mut node, &busybox, "lives").await?;
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(sleeper(&mut node, &busybox, &format!("goes-{number}")).await?);
    }
    let made = image::busybox_builder()?.layer(Tar::new().file("own", 0o644, b"1"))?.build()?;
    let brief = node.push("brief", "latest", &made)?;
    node.cri.pull(&brief).await?;
    let disk = node.dir().join("root");

    root(&node)?.fill(0)?;
    let refused = fill_with_sandboxes(&mut node).await?;
    assert_full(&refused, &disk, "RunPodSandbox");
    let config = container_config("second", &busybox, &["sleep", "1"]);
    let refused = node.cri.create_container(&lives.id, &lives.config, &config).await;
    assert_full(&refused.err().context("created")?, &disk, "CreateContainer");
    assert_serves(&mut node, &lives, &live).await?;

    // The end of a daemon makes no difference: a start needs no space either.
    for (kill, pair) in others.chunks(2).enumerate() {
        for (pod, container) in pair {
            root(&node)?.fill(0)?;
            node.cri.stop_container(container, 0).await.context("StopContainer")?;
            let status = node.cri.container_status(container).await?;
            ensure!(status.exit_code == 137, "{status:?}");
            root(&node)?.fill(0)?;
            node.cri.remove_container(container).await.context("RemoveContainer")?;
            root(&node)?.fill(0)?;
            node.cri.remove_sandbox(&pod.id).await.context("RemovePodSandbox")?;
        }
        root(&node)?.fill(0)?;
        if kill == 0 {
            node.kill_and_restart().await.context("start on a full disk after a kill")?;
        } else {
            node.restart().await.context("start on a full disk")?;
        }
        assert_serves(&mut node, &lives, &live).await?;
    }
    root(&node)?.fill(0)?;
    node.cri.remove_image(&brief).await.context("RemoveImage")?;
    for id in node.cri.sandboxes().await?.iter().filter(|id| **id != lives.id) {
        root(&node)?.fill(0)?;
        node.cri.remove_sandbox(id).await.context("RemovePodSandbox")?;
    }
    ensure!(node.cri.sandboxes().await? == [lives.id.clone()], "more than one sandbox is left");

    root(&node)?.free()?;
    let pod = node.pod("new").await.context("a sandbox once there is space again")?;
    ensure!(node.shell(&pod, &busybox, "echo yes").await? == "yes\n", "it does not work");
    node.cri.pull(&brief).await?;
    node.check_stores()?;
    node.assert_clean().await
}

/// Runs sandboxes until one is refused, and says how: what the store has set aside is used
/// up by new records to a point, and never beyond.
async fn fill_with_sandboxes(node: &mut Node) -> Result<tonic::Status> {
    for number in 0..20 {
        let mut config = node.sandbox_config(&format!("new-{number}"));
        config.annotations.insert("large".into(), "x".repeat(100 << 10));
        match node.cri.run_sandbox(&config).await {
            Ok(id) => node.cri.stop_sandbox(&id).await.context("StopPodSandbox")?,
            Err(status) => return Ok(status),
        }
    }
    anyhow::bail!("no sandbox was refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn inodes_that_run_out_are_a_full_disk() -> Result<()> {
    let root_disk = Some(SmallDisk { inodes: 800, ..SmallDisk::mib(96) });
    let mut node = node_with(SmallDisks { root: root_disk, ..SmallDisks::default() }).await?;
    let busybox = node.busybox().await?;
    let (lives, live) = sleeper(&mut node, &busybox, "lives").await?;
    let (goes, gone) = sleeper(&mut node, &busybox, "goes").await?;
    let reference = node.push("large", "latest", &large()?)?;
    let disk = node.dir().join("root");
    let before = used_bytes(&mut node).await?;
    for left in [40, 20, 10, 5, 1, 0] {
        root(&node)?.fill_inodes(left)?;
        let status = node.cri.pull(&reference).await.err().context("it was pulled")?;
        assert_full(&status, &disk, &format!("{left} inodes"));
        // What it made goes in the background: inodes that are free then.
        wait_until(&format!("{left} inodes back"), async || {
            Ok(used_bytes(&mut node).await? == before)
        })
        .await?;
    }
    root(&node)?.fill_inodes(0)?;
    let config = container_config("second", &busybox, &["sleep", "1"]);
    let refused = node.cri.create_container(&lives.id, &lives.config, &config).await;
    assert_full(&refused.err().context("created")?, &disk, "CreateContainer");
    assert_serves(&mut node, &lives, &live).await?;
    node.cri.stop_container(&gone, 0).await?;
    node.cri.remove_sandbox(&goes.id).await?;
    root(&node)?.free()?;
    node.cri.pull(&reference).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_directory_stops_nothing_that_runs() -> Result<()> {
    let state_disk = Some(SmallDisk::mib(24));
    let mut node = node_with(SmallDisks { state: state_disk, ..SmallDisks::default() }).await?;
    let busybox = node.busybox().await?;
    let (lives, live) = sleeper(&mut node, &busybox, "lives").await?;
    let (goes, gone) = sleeper(&mut node, &busybox, "goes").await?;
    let state = node.disks().state.as_ref().context("no disk")?;
    let dir = node.dir().join("run");
    state.fill(0)?;
    let refused = node.pod("new").await.err().context("a sandbox was made on a full disk")?;
    let refused = refused.downcast_ref::<tonic::Status>().context("no status")?;
    assert_full(refused, &dir, "RunPodSandbox");
    let config = container_config("second", &busybox, &["sleep", "1"]);
    let refused = node.cri.create_container(&lives.id, &lives.config, &config).await;
    assert_full(&refused.err().context("created")?, &dir, "CreateContainer");
    assert_serves(&mut node, &lives, &live).await?;
    node.cri.stop_container(&gone, 0).await.context("StopContainer")?;
    ensure!(node.cri.container_status(&gone).await?.exit_code == 137, "its code is lost");
    node.kill_and_restart().await.context("start with a full state directory")?;
    ensure!(node.cri.container_status(&gone).await?.exit_code == 137, "its code is lost");
    assert_serves(&mut node, &lives, &live).await?;
    node.cri.remove_container(&gone).await.context("RemoveContainer")?;
    node.cri.remove_sandbox(&goes.id).await.context("RemovePodSandbox")?;
    node.disks().state.as_ref().context("no disk")?.free()?;
    let pod = node.pod("new").await.context("a sandbox once there is space again")?;
    ensure!(node.shell(&pod, &busybox, "echo yes").await? == "yes\n", "it does not work");
    node.assert_clean().await
}

/// The workload goes on, no line is torn, and the shim says how many are lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_full_disk_loses_whole_lines_says_how_many_and_goes_on() -> Result<()> {
    const LINES: usize = 40_000;
    let logs_disk = Some(SmallDisk::mib(8));
    let mut node = node_with(SmallDisks { logs: logs_disk, ..SmallDisks::default() }).await?;
    let busybox = node.busybox().await?;
    let pod = node.pod("pod").await?;
    // Some 6 MB of lines of different lengths; then the container waits, and writes again.
    let text = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo \"line $i {}\"; i=$((i+1)); done
         touch /written; while [ ! -e /go ]; do sleep 0.1; done; echo after; sleep 1000",
        "x".repeat(100)
    );
    let container = node.run(&pod, &script(&busybox, &text)).await?;
    let logs = node.disks().logs.as_ref().context("no disk")?;
    logs.fill(1 << 20)?;
    wait_until("the workload gets through", async || {
        let answer = node.cri.exec(&container, &["test", "-e", "/written"], 10).await?;
        Ok(answer.exit_code == 0)
    })
    .await?;
    let full = node.read_log("pod", "main").context("a torn line")?;
    ensure!(!full.is_empty() && full.len() < LINES, "{} lines: the disk was not full", full.len());
    node.disks().logs.as_ref().context("no disk")?.free()?;
    node.cri.exec(&container, &["touch", "/go"], 10).await?;
    node.wait_for_line("pod", "main", "after").await?;
    let lines = node.read_log("pod", "main").context("a torn line")?;
    let written = log::text(&lines, "stdout");
    let (mut last, mut found) = (None, 0);
    for line in written.lines().filter(|line| *line != "after") {
        let number = line.strip_prefix("line ").and_then(|rest| rest.split(' ').next());
        let number: usize = number.and_then(|number| number.parse().ok()).context("torn")?;
        ensure!(line.ends_with(&"x".repeat(100)), "a torn line: {line:?}");
        ensure!(last < Some(number), "{number} follows {last:?}");
        (last, found) = (Some(number), found + 1);
    }
    let said = node.path("run/sandboxes").join(&pod.id).join("shim.log");
    let said = std::fs::read_to_string(said).context("the shim's log")?;
    let lost: usize = said
        .lines()
        .filter_map(|line| {
            line.split_once(" is written again, ")?.1.split(' ').next()?.parse::<usize>().ok()
        })
        .sum();
    ensure!(found + lost == LINES, "{found} lines found and {lost} said to be lost of {LINES}");
    node.assert_clean().await
}

/// What cannot be logged is not started, and the answer names the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_log_cannot_be_made_is_refused_by_its_path() -> Result<()> {
    let logs_disk = Some(SmallDisk { inodes: 64, ..SmallDisk::mib(8) });
    let mut node = node_with(SmallDisks { logs: logs_disk, ..SmallDisks::default() }).await?;
    let busybox = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let logs = node.disks().logs.as_ref().context("no disk")?;
    logs.fill_inodes(0)?;
    let config = script(&busybox, "echo yes");
    let refused = node.run(&pod, &config).await.err().context("it was started")?;
    let refused = refused.downcast_ref::<tonic::Status>().context("no status")?;
    assert_full(refused, &node.dir().join("logs"), "CreateContainer or StartContainer");
    node.disks().logs.as_ref().context("no disk")?.free()?;
    for id in node.cri.containers().await? {
        node.cri.remove_container(&id).await?;
    }
    let finished = node.finish(&pod, &config).await?;
    ensure!(finished.stdout == "yes\n", "{finished:?}");
    node.assert_clean().await
}

/// Durable before visible (design decision 10): a disk that takes everything and loses it
/// at write-back.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_lost_never_becomes_an_image() -> Result<()> {
    let root_disk = SmallDisk { sound: 20 << 20, ..SmallDisk::mib(128) };
    let mut node = node_with(SmallDisks { root: Some(root_disk), ..SmallDisks::default() }).await?;
    let reference = node.push("large", "latest", &large()?)?;
    for attempt in 0..3 {
        root(&node)?.fill(100 << 20)?;
        let eaten = node.path("root/eaten");
        // Takes what is sound, and stays in memory only where it is not.
        std::fs::write(&eaten, vec![7; 16 << 20])?;
        let pulled = node.cri.pull(&reference).await;
        let status = pulled.err().with_context(|| format!("{attempt}: it became an image"))?;
        ensure!(status.code() != Code::Ok, "{status:?}");
        ensure!(status.message().contains("root"), "{attempt}: no path in {status:?}");
        let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
        ensure!(images.into_inner().images.is_empty(), "{attempt}: an image became visible");
        std::fs::remove_file(&eaten)?;
    }
    node.assert_clean().await
}
