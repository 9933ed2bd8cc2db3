//! A verb that fails, at whatever step, leaves nothing behind, and its next try works.
//!
//! Each test fails one verb at each of its failpoints where it can fail, with a broken and
//! with a full disk. What dies there is another matter: the torture kills the daemon at
//! each.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::tar::Tar;
use berth_testkit::{Known, Node, Pod, container_config, failpoints, image, script};
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;
use tonic::{Code, Status};

/// What a disk says, and what a client is told then.
const FAULTS: [(&str, Code); 2] = [("EIO", Code::Internal), ("ENOSPC", Code::ResourceExhausted)];

/// The points of `verb` where it can fail.
fn points(verb: &str) -> Result<Vec<String>> {
    let all = failpoints()?.into_iter().filter(|point| point.fails).map(|point| point.name);
    let own: Vec<_> = all.filter(|name| name.split('.').next() == Some(verb)).collect();
    ensure!(!own.is_empty(), "{verb} has no points");
    Ok(own)
}

/// Calls `test` once for each point and each fault, with the fault armed.
async fn each_fault<F>(node: &mut Node, points: Vec<String>, mut test: F) -> Result<()>
where
    F: AsyncFnMut(&mut Node, &str, Code) -> Result<()>,
{
    for point in points {
        for (errno, code) in FAULTS {
            node.daemon().passed()?;
            arm(node, &point, code)?;
            let tested = test(node, &point, code).await;
            tested.with_context(|| format!("at {point} with {errno}"))?;
            ensure!(node.daemon().passed()?.contains(&point), "{point} is not on the way");
            node.daemon().arm("")?;
        }
    }
    Ok(())
}

/// Has the next pass of `point` fail as `code` says.
fn arm(node: &Node, point: &str, code: Code) -> Result<()> {
    let errno = FAULTS.iter().find(|(_, told)| *told == code).context("no such fault")?.0;
    node.daemon().arm(&format!("{point} error {errno} times=1\n"))
}

/// The verb failed as its fault says.
fn failed<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code) -> Result<()> {
    match outcome {
        Err(status) if status.code() == code => Ok(()),
        other => bail!("not {code:?}: {other:?}"),
    }
}

fn known(pods: &[&Pod], containers: &[&str]) -> Known {
    Known {
        sandboxes: pods.iter().map(|pod| pod.id.clone()).collect(),
        containers: containers.iter().map(ToString::to_string).collect(),
    }
}

fn sleeper(image: &str) -> v1::ContainerConfig {
    container_config("main", image, &["sleep", "1000"])
}

/// What `Status` says of undo.
async fn undo_status(node: &mut Node) -> Result<Value> {
    let request = v1::StatusRequest { verbose: true };
    let info = node.cri.runtime.status(request).await?.into_inner().info;
    let status: Value = serde_json::from_str(info.get("info").context("no info")?)?;
    Ok(status["undo"].clone())
}

/// Waits until nothing is left to be taken back.
async fn undone(node: &mut Node) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let status = undo_status(node).await?;
        if status["unfinished"] == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "never taken back: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_fails_at_any_step_leaves_nothing() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.sandbox_config("pod");
    each_fault(&mut node, points("run")?, async |node, _, code| {
        failed(node.cri.run_sandbox(&config).await, code)?;
        node.settle(&Known::default())?;
        if code == Code::Internal {
            let id = node.cri.run_sandbox(&config).await.context("next try")?;
            node.cri.remove_sandbox(&id).await?;
        }
        Ok(())
    })
    .await?;
    assert_eq!(undo_status(&mut node).await?["failures"], 0);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_fails_to_be_created_at_any_step_leaves_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = sleeper(&image);
    let nothing = known(&[&pod], &[]);
    each_fault(&mut node, points("create")?, async |node, _, code| {
        let created = node.cri.create_container(&pod.id, &pod.config, &config).await;
        failed(created, code)?;
        node.settle(&nothing)?;
        ensure!(node.cri.containers().await?.is_empty(), "a container is listed");
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await;
        let id = id.context("next try")?;
        node.cri.remove_container(&id).await?;
        Ok(())
    })
    .await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_at_any_step_can_be_tried_again() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = sleeper(&image);
    each_fault(&mut node, points("start")?, async |node, point, code| {
        let create = |program: &str| {
            let mut config = config.clone();
            config.command[0] = program.to_owned();
            config
        };
        // One point is only on the way of a program that cannot be executed.
        let refused = point == "start.refused";
        let config = create(if refused { "/no/such/program" } else { "sleep" });
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let started = node.cri.start_container(&id).await;
        match refused {
            true => ensure!(started.is_err(), "a missing program started"),
            false => failed(started, code)?,
        }
        let state = node.cri.container_status(&id).await?.state();
        ensure!(state != v1::ContainerState::ContainerRunning, "it runs");
        if state == v1::ContainerState::ContainerCreated && !refused {
            node.cri.start_container(&id).await.context("next try")?;
        }
        node.cri.remove_container(&id).await?;
        node.settle(&known(&[&pod], &[]))?;
        let id = node.run(&pod, &create("sleep")).await.context("next container")?;
        node.cri.exec(&id, &["true"], 10).await?;
        node.cri.remove_container(&id).await?;
        Ok(())
    })
    .await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_or_removal_that_fails_at_any_step_is_finished() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let mut points = [points("stop")?, points("remove")?].concat();
    // One is on the way of a container that shares its process namespace only.
    points.retain(|point| !point.starts_with("remove.image") && point != "stop.cgroup_killed");
    each_fault(&mut node, points, async |node, _, code| {
        let pod = node.pod("pod").await?;
        let id = node.run(&pod, &sleeper(&image)).await?;
        // Each verb fails once at most, as the fault says or not at all.
        let right = |outcome: Result<(), Status>| match outcome {
            Err(status) if status.code() != code => bail!("{status} instead of {code:?}"),
            other => Ok(other.is_ok()),
        };
        if !right(node.cri.stop_container(&id, 1).await)? {
            node.cri.stop_container(&id, 1).await.context("next stop of the container")?;
        }
        // Who stops it is answered when it is dead; its record may follow.
        undone(node).await?;
        let status = node.cri.container_status(&id).await?;
        ensure!(status.state() == v1::ContainerState::ContainerExited, "{status:?}");
        ensure!(status.exit_code == 137, "{status:?}");
        if !right(node.cri.remove_container(&id).await)? {
            node.cri.remove_container(&id).await.context("next removal of the container")?;
        }
        if !right(node.cri.stop_sandbox(&pod.id).await)? {
            node.cri.stop_sandbox(&pod.id).await.context("next stop of the sandbox")?;
        }
        if !right(node.cri.remove_sandbox(&pod.id).await)? {
            node.cri.remove_sandbox(&pod.id).await.context("next removal of the sandbox")?;
        }
        undone(node).await?;
        node.settle(&Known::default())
    })
    .await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_at_any_step_leaves_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &sleeper(&image)).await?;
    let nothing = known(&[&pod], &[&id]);
    each_fault(&mut node, points("exec")?, async |node, point, code| {
        let answer = node.cri.exec(&id, &["sh", "-c", "echo $$ > /tmp/pid; sleep 0"], 10).await;
        match point {
            // Its client has the answer by then.
            "exec.deleted" => ensure!(answer.is_ok(), "{answer:?}"),
            _ => failed(answer, code)?,
        }
        node.settle(&nothing)?;
        let answer = node.cri.exec(&id, &["sh", "-c", "set -- /proc/[0-9]*; echo $#"], 10).await?;
        // The first process and the shell, which forks nothing.
        ensure!(answer.stdout == b"2\n", "{answer:?}");
        Ok(())
    })
    .await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_fails_at_any_step_works_when_tried_again() -> Result<()> {
    let mut node = Node::start().await?;
    let mut number = 0;
    each_fault(&mut node, points("pull")?, async |node, _, code| {
        // New blobs each time: what is here already passes no point.
        number += 1;
        let layer = |n: &str| Tar::new().file(n, 0o644, format!("{number}").as_bytes());
        let image = image::busybox_builder()?.layer(layer("one"))?.layer(layer("two"))?.build()?;
        let reference = node.push("brief", "latest", &image)?;
        failed(node.cri.pull(&reference).await, code)?;
        ensure!(image_ids(node).await?.is_empty(), "an image is listed");
        node.settle(&Known::default())?;
        let id = node.cri.pull(&reference).await.context("next try")?;
        ensure!(image_ids(node).await? == [id], "the image is not listed");
        node.cri.remove_image(&reference).await?;
        Ok(())
    })
    .await?;
    images_gone(&mut node).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_removal_fails_at_any_step_goes_in_the_end() -> Result<()> {
    let mut node = Node::start().await?;
    let mut points = [points("remove")?, points("collect")?].concat();
    points.retain(|point| point.starts_with("remove.image") || point.starts_with("collect."));
    each_fault(&mut node, points, async |node, point, code| {
        let layer = Tar::new().file("one", 0o644, b"one");
        let image = image::busybox_builder()?.layer(layer)?.build()?;
        let reference = node.push("brief", "latest", &image)?;
        node.daemon().arm("")?;
        node.cri.pull(&reference).await?;
        node.daemon().passed()?;
        arm(node, point, code)?;
        let removed = node.cri.remove_image(&reference).await;
        if let Err(status) = removed {
            ensure!(status.code() == code, "{status}");
            node.cri.remove_image(&reference).await.context("next try")?;
        }
        ensure!(image_ids(node).await?.is_empty(), "an image is listed");
        images_gone(node).await
    })
    .await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn undo_that_fails_is_seen_tried_again_and_in_nobodys_way() -> Result<()> {
    let mut node = Node::start().await?;
    let mut config = node.sandbox_config("pod");
    let port = v1::PortMapping { host_port: 12_000, container_port: 80, ..Default::default() };
    config.port_mappings = vec![port];
    node.daemon().arm("run.network_attached error EIO times=1\nstop.ports_removed error EIO\n")?;
    failed(node.cri.run_sandbox(&config).await, Code::Internal)?;

    let status = undo_status(&mut node).await?;
    assert_eq!(status["unfinished"], 1, "{status}");
    let left = &status["oldest"][0];
    assert_eq!(left["step"], "detach network");
    assert!(left["object"].as_str().context("object")?.starts_with("sandbox "), "{left}");
    assert!(left["error"].as_str().context("error")?.contains("stop.ports_removed"), "{left}");
    assert!(status["failures"].as_u64() >= Some(1), "{status}");
    // The name, and the port of the node, are free at once.
    let id = node.cri.run_sandbox(&config).await.context("next try")?;
    assert_eq!(undo_status(&mut node).await?["unfinished"], 1);

    node.daemon().arm("")?;
    undone(&mut node).await?;
    assert_eq!(undo_status(&mut node).await?["recovered"], 1);
    let pod = Pod { id, config };
    node.settle(&known(&[&pod], &[]))?;
    let log = std::fs::read_to_string(node.daemon().log())?;
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("detach network; it is tried again"), 1, "one warning for each step");
    assert_eq!(lines("was taken back"), 1);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_removal_or_end_that_fails_is_seen_until_it_is_done() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    node.daemon().arm("stop.ended error EIO\n")?;
    let id = node.run(&pod, &script(&image, "exit 3")).await?;
    let end = [format!("container {id}: store the end of container")];
    shows(&mut node, &end).await?;
    node.daemon().arm("")?;
    undone(&mut node).await?;
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 3);
    assert_eq!(undo_status(&mut node).await?["recovered"], 1);

    node.daemon().arm("remove.container_ended error EIO\n")?;
    failed(node.cri.remove_container(&id).await, Code::Internal)?;
    let container = format!("container {id}: remove container");
    shows(&mut node, &[container]).await?;
    node.daemon().arm("")?;
    undone(&mut node).await?;
    ensure!(node.cri.containers().await?.is_empty(), "the container is listed");

    for (point, step) in
        [("stop.members_closed", "stop sandbox"), ("remove.sandbox_stopped", "remove sandbox")]
    {
        node.daemon().arm(&format!("{point} error EIO\n"))?;
        let outcome = match step {
            "stop sandbox" => node.cri.stop_sandbox(&pod.id).await,
            _ => node.cri.remove_sandbox(&pod.id).await,
        };
        failed(outcome, Code::Internal)?;
        shows(&mut node, &[format!("sandbox {}: {step}", pod.id)]).await?;
        node.daemon().arm("")?;
        undone(&mut node).await?;
    }
    ensure!(node.cri.sandboxes().await?.is_empty(), "the sandbox is listed");
    assert_eq!(undo_status(&mut node).await?["recovered"], 4);
    node.assert_clean().await
}

/// Waits until exactly this is shown as unfinished.
async fn shows(node: &mut Node, expected: &[String]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = undo_status(node).await?;
        let oldest = status["oldest"].as_array().context("oldest")?.iter();
        let text = |left: &Value, key: &str| left[key].as_str().unwrap_or_default().to_owned();
        let shown: Vec<_> = oldest
            .map(|left| format!("{}: {}", text(left, "object"), text(left, "step")))
            .collect();
        if shown == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not {expected:?}: {status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_removed_container_that_do_not_go_are_tried_again() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    node.daemon().arm("remove.snapshot error EIO\n")?;
    let id = node.run(&pod, &script(&image, "echo text > /file")).await?;
    node.wait_exit(&id).await?;
    node.cri.remove_container(&id).await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while undo_status(&mut node).await?["unfinished"] != 1 {
        ensure!(Instant::now() < deadline, "the failure is not shown");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.daemon().arm("")?;
    undone(&mut node).await?;
    node.settle(&known(&[&pod], &[]))?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_could_not_take_back_its_successor_does() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.sandbox_config("pod");
    node.daemon().arm("run.made error EIO\nstop.ports_removed error EIO\n")?;
    failed(node.cri.run_sandbox(&config).await, Code::Internal)?;
    assert_eq!(undo_status(&mut node).await?["unfinished"], 1);
    node.daemon().arm("")?;
    node.kill_and_restart().await?;
    assert_eq!(undo_status(&mut node).await?["unfinished"], 0);
    node.settle(&Known::default())?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_cannot_sweep_is_tried_again() -> Result<()> {
    let mut node = Node::start().await?;
    // From the first answer on it does not sweep.
    assert_eq!(node.cri.sandboxes().await?.len(), 0);
    let stray = node.dir().join("run/sandboxes/stray");
    std::fs::create_dir(&stray)?;
    let busy = stray.clone();
    let none = None::<&str>;
    node.machine
        .run(move || Ok(mount(Some("none"), &busy, Some("tmpfs"), MsFlags::empty(), none)?))?;
    node.restart().await?;
    let status = undo_status(&mut node).await?;
    assert_eq!(status["unfinished"], 1, "{status}");
    assert_eq!(status["oldest"][0]["object"], format!("path {}", stray.display()));

    let busy = stray.clone();
    node.machine.run(move || Ok(umount(&busy)?))?;
    undone(&mut node).await?;
    assert!(!stray.exists());
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_of_the_daemon_that_fails_at_any_step_harms_nobody() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &sleeper(&image)).await?;
    let pid = node.container_pid(&id).await?;
    let all = known(&[&pod], &[&id]);
    let half = node.sandbox_config("half");
    let mut points = points("recover")?;
    // On the way of a start that finds less, or more, than was recorded.
    points.retain(|point| !["recover.loss_stored", "recover.start_stored"].contains(&&**point));
    each_fault(&mut node, points, async |node, point, code| {
        // Something to take back, for the points that are on the way of it.
        node.daemon().arm("run.made kill\n")?;
        ensure!(node.cri.run_sandbox(&half).await.is_err(), "the daemon did not die");
        node.kill_daemon()?;
        arm(node, point, code)?;
        if !serves(node).await? {
            let log = node.daemon().log_tail();
            ensure!(log.contains(point), "it does not say why it ended: {log}");
            node.daemon().arm("")?;
            ensure!(serves(node).await?, "the next start failed");
        }
        ensure!(node.container_pid(&id).await? == pid, "another process");
        node.cri.exec(&id, &["true"], 10).await?;
        undone(node).await?;
        node.settle(&all)
    })
    .await?;
    node.assert_clean().await
}

/// Starts the daemon; whether it serves, or has ended by itself.
async fn serves(node: &mut Node) -> Result<bool> {
    if node.start_daemon().await.is_err() {
        return Ok(false);
    }
    // It listens before it serves.
    if node.cri.sandboxes().await.is_ok() {
        return Ok(true);
    }
    let ended = node.daemon_ended(Duration::from_secs(10))?;
    ensure!(ended.is_some_and(|status| !status.success()), "it ended with {ended:?}");
    Ok(false)
}

async fn image_ids(node: &mut Node) -> Result<Vec<String>> {
    let listed = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
    Ok(listed.into_inner().images.into_iter().map(|image| image.id).collect())
}

/// Waits until no blob and no layer is left, once no image is.
async fn images_gone(node: &mut Node) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut left = Vec::new();
        for dir in ["content/blobs/sha256", "snapshots/l", "snapshots/committed"] {
            let dir = node.dir().join("root").join(dir);
            let entries = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
            left.extend(entries.flatten().map(|entry| entry.path()));
        }
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left of no image: {left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
