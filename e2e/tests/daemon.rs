//! The daemon itself: configuration, socket, lock, supervisor, RPCs it does not know yet.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, binaries};

fn berthd(arguments: &[&str]) -> Result<Output> {
    let program = binaries()?.join("berthd");
    Command::new(program).args(arguments).output().context("run berthd")
}

#[test]
fn the_printed_default_configuration_is_valid_and_commented() -> Result<()> {
    let printed = berthd(&["config", "default"])?;
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout)?;
    assert!(text.lines().filter(|line| line.starts_with('#')).count() > 10, "{text}");

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("berthd.toml");
    fs::write(&file, &text)?;
    let checked = berthd(&["config", "check", &file.to_string_lossy()])?;
    assert!(checked.status.success(), "{checked:?}");
    Ok(())
}

#[test]
fn every_value_has_a_default() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("berthd.toml");
    fs::write(&file, "")?;
    let checked = berthd(&["config", "check", &file.to_string_lossy()])?;
    assert!(checked.status.success(), "{checked:?}");
    Ok(())
}

#[test]
fn an_unknown_key_is_refused_with_its_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("berthd.toml");
    fs::write(&file, "# mine\n[network]\nmtuu = 9000\n")?;
    let refused = berthd(&["--config", &file.to_string_lossy()])?;
    let said = String::from_utf8(refused.stderr)?;
    assert!(!refused.status.success());
    assert!(said.contains("line 3") && said.contains("mtuu"), "{said}");
    Ok(())
}

#[test]
fn a_missing_configuration_is_refused_by_name() -> Result<()> {
    let refused = berthd(&["--config", "/nonexistent/berthd.toml"])?;
    let said = String::from_utf8(refused.stderr)?;
    assert!(!refused.status.success());
    assert!(said.contains("/nonexistent/berthd.toml"), "{said}");
    Ok(())
}

#[test]
fn check_says_in_words_that_pods_can_run_here() -> Result<()> {
    let checked = berthd(&["check"])?;
    let said = String::from_utf8(checked.stdout)?;
    assert!(checked.status.success(), "{said}");
    for subject in ["kernel", "cgroups", "overlay", "nftables", "seccomp", "AppArmor"] {
        assert!(said.contains(subject), "{subject} is not in {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_0660_in_a_0711_directory_and_the_root_is_private() -> Result<()> {
    let node = Node::start().await?;
    let mode =
        |path: &Path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o7777) };
    assert_eq!(mode(node.daemon().socket())?, 0o660);
    assert_eq!(mode(&node.dir().join("run"))?, 0o711);
    assert_eq!(mode(&node.dir().join("root"))?, 0o700);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_root_is_refused() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.daemon().config().to_string_lossy().into_owned();
    let refused = berthd(&["--config", &config])?;
    let said = String::from_utf8(refused.stderr)?;
    assert!(!refused.status.success());
    let holder = node.daemon().pid().context("the daemon runs")?.to_string();
    assert!(said.contains("another berthd") && said.contains(&holder), "{said}");
    node.cri.sandboxes().await.context("the first one still serves")?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_asks_is_told_when_the_daemon_is_ready() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.daemon().config().to_owned();
    node.terminate_daemon()?;

    let path = node.dir().join("notify");
    let supervisor = UnixDatagram::bind(&path)?;
    supervisor.set_read_timeout(Some(Duration::from_secs(20)))?;
    let program = binaries()?.join("berthd");
    let socket = path.clone();
    let mut daemon = node.machine.run(move || {
        let mut command = Command::new(program);
        command.arg("--config").arg(config).env("NOTIFY_SOCKET", socket);
        Ok(command.spawn()?)
    })?;
    let mut message = [0; 256];
    let length = supervisor.recv(&mut message)?;
    let said = String::from_utf8_lossy(&message[..length]).into_owned();
    assert!(said.lines().any(|line| line == "READY=1"), "{said}");

    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    assert!(daemon.wait()?.success());
    node.restart().await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_status_are_what_kubelet_checks() -> Result<()> {
    let mut node = Node::start().await?;
    let version = node.cri.runtime.version(v1::VersionRequest::default()).await?.into_inner();
    assert_eq!(version.runtime_name, "berth");
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.version.is_empty() && !version.runtime_version.is_empty());

    let request = v1::StatusRequest { verbose: true };
    let status = node.cri.runtime.status(request).await?.into_inner();
    let conditions = status.status.context("no status")?.conditions;
    let ready: Vec<_> =
        conditions.iter().filter(|condition| condition.status).map(|c| c.r#type.as_str()).collect();
    assert!(ready.contains(&"RuntimeReady") && ready.contains(&"NetworkReady"), "{conditions:?}");

    let request = v1::RuntimeConfigRequest::default();
    let linux =
        node.cri.runtime.runtime_config(request).await?.into_inner().linux.context("no linux")?;
    assert_eq!(linux.cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    node.cri.runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest::default()).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_of_later_issues_say_so_by_name() -> Result<()> {
    let mut node = Node::start().await?;
    macro_rules! unimplemented {
        ($($method:ident($request:ident) = $name:literal),* $(,)?) => {$({
            let answer = node.cri.runtime.$method(v1::$request::default()).await;
            let status = answer.err().context(concat!($name, " answered"))?;
            assert_eq!(status.code(), tonic::Code::Unimplemented, "{}: {status:?}", $name);
            assert!(status.message().contains($name), "{status:?}");
        })*};
    }
    unimplemented! {
        exec(ExecRequest) = "Exec",
        attach(AttachRequest) = "Attach",
        port_forward(PortForwardRequest) = "PortForward",
        update_container_resources(UpdateContainerResourcesRequest) = "UpdateContainerResources",
        checkpoint_container(CheckpointContainerRequest) = "CheckpointContainer",
        get_container_events(GetEventsRequest) = "GetContainerEvents",
        list_metric_descriptors(ListMetricDescriptorsRequest) = "ListMetricDescriptors",
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) = "ListPodSandboxMetrics",
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) = "UpdatePodSandboxResources",
        stream_pod_sandboxes(StreamPodSandboxesRequest) = "StreamPodSandboxes",
        stream_containers(StreamContainersRequest) = "StreamContainers",
        stream_container_stats(StreamContainerStatsRequest) = "StreamContainerStats",
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) = "StreamPodSandboxStats",
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) = "StreamPodSandboxMetrics",
    }
    let answer = node.cri.image.stream_images(v1::StreamImagesRequest::default()).await;
    assert_eq!(answer.err().context("StreamImages answered")?.code(), tonic::Code::Unimplemented);
    node.assert_clean().await
}
