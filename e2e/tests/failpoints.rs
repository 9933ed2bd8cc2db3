//! The failpoints of a test build: each is where its description says, or it is a lie.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use berth_api::v1::{self, ContainerState, NamespaceMode};
use berth_testkit::tar::Tar;
use berth_testkit::{
    Node, container_config, failpoints, image, sandbox_security, script, security,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every point that a verb has passed.
#[derive(Default)]
struct Passed(BTreeSet<String>);

impl Passed {
    fn note(&mut self, node: &Node) -> Result<()> {
        self.0.extend(node.daemon().passed()?);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_point_of_the_list_is_passed_by_some_verb() -> Result<()> {
    let points: BTreeSet<String> = failpoints()?.into_iter().map(|point| point.name).collect();
    let mut passed = Passed::default();
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    containers(&mut node, &image).await?;
    images(&mut node).await?;
    node.restart().await?;
    passed.note(&node)?;
    interrupted(&mut node, &image, &mut passed).await?;
    passed.note(&node)?;
    let unknown: Vec<_> = passed.0.difference(&points).collect();
    assert!(unknown.is_empty(), "passed and not listed: {unknown:?}");
    let lies: Vec<_> = points.difference(&passed.0).collect();
    assert!(lies.is_empty(), "{} of {} are never passed: {lies:?}", lies.len(), points.len());
    node.assert_clean().await
}

/// The life of a pod, with a container that ends by its signal's grace, one that has no
/// process namespace of its own, and one that cannot start.
async fn containers(node: &mut Node, image: &str) -> Result<()> {
    let mut config = node.sandbox_config("pod");
    let options = sandbox_security(&mut config).namespace_options.get_or_insert_default();
    options.pid = NamespaceMode::Pod.into();
    let pod = node.pod_with(config).await?;
    let stopped = node.run(&pod, &container_config("main", image, &["sleep", "1000"])).await?;
    node.cri.exec(&stopped, &["true"], 10).await?;
    let linux = Some(v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() });
    let request = v1::UpdateContainerResourcesRequest {
        container_id: stopped.clone(),
        linux: linux.clone(),
        ..Default::default()
    };
    node.cri.runtime.update_container_resources(request).await?;
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: linux,
        ..Default::default()
    };
    node.cri.runtime.update_pod_sandbox_resources(request).await?;
    node.cri.stop_container(&stopped, 1).await?;
    node.cri.remove_container(&stopped).await?;
    let missing = container_config("missing", image, &["/no/such/program"]);
    anyhow::ensure!(node.run(&pod, &missing).await.is_err(), "a missing program started");
    let mut shared = script(image, "exit 0");
    let options = security(&mut shared).namespace_options.get_or_insert_default();
    options.pid = NamespaceMode::Pod.into();
    node.finish(&pod, &shared).await?;
    node.cri.stop_sandbox(&pod.id).await?;
    node.cri.remove_sandbox(&pod.id).await?;
    Ok(())
}

/// An image of layers of its own comes and goes.
async fn images(node: &mut Node) -> Result<()> {
    let layer = Tar::new().file("only/here", 0o644, b"a file of this image");
    let image = image::busybox_builder()?.layer(layer)?.build()?;
    let reference = node.push("brief", "latest", &image)?;
    node.cri.pull(&reference).await?;
    node.cri.remove_image(&reference).await?;
    Ok(())
}

/// What only a restart passes: work that a daemon left half done, and a shim that died
/// while there was none.
async fn interrupted(node: &mut Node, image: &str, passed: &mut Passed) -> Result<()> {
    die_at(node, "run.made", async |node| node.pod("half").await.map(drop)).await?;
    passed.note(node)?;
    let pod = node.pod("pod").await?;
    let main = container_config("main", image, &["sleep", "1000"]);
    let created = node.cri.create_container(&pod.id, &pod.config, &main).await?;
    let start = async |node: &mut Node| Ok(node.cri.start_container(&created).await?);
    die_at(node, "start.executed", start).await?;
    let shim = node.shim_pid(&pod.id).await?;
    node.kill_daemon()?;
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
    node.start_daemon().await?;
    node.cri.remove_sandbox(&pod.id).await?;
    Ok(())
}

/// Has the daemon die at `point`, to which `verb` leads, and starts it again.
async fn die_at(
    node: &mut Node,
    point: &str,
    verb: impl AsyncFnOnce(&mut Node) -> Result<()>,
) -> Result<()> {
    node.daemon().arm(&format!("{point} kill\n"))?;
    anyhow::ensure!(verb(node).await.is_err(), "the daemon did not die at {point}");
    node.daemon().arm("")?;
    node.kill_and_restart().await
}

/// A daemon that dies while it cleans up after a failed start has told nobody of it: the
/// container was not started, and the next start says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_error_that_nobody_was_told_of_is_told_by_the_next_start() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for point in ["stop.cgroup_killed", "start.refused"] {
        let config = container_config("main", &image, &["/no/such/program"]);
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let start = async |node: &mut Node| Ok(node.cri.start_container(&id).await?);
        die_at(&mut node, point, start).await?;
        let status = node.cri.container_status(&id).await?;
        assert_eq!(status.state(), ContainerState::ContainerCreated, "{point}: {status:?}");
        let refused = node.cri.start_container(&id).await.err().context("it was executed")?;
        assert!(refused.message().contains("/no/such/program"), "{point}: {refused:?}");
        let status = node.cri.container_status(&id).await?;
        let end = (status.exit_code, status.reason.as_str());
        assert_eq!(end, (128, "StartError"), "{point}: {status:?}");
        node.cri.remove_container(&id).await?;
    }
    node.assert_clean().await
}
