//! The daemon itself: configuration, socket, lock and supervisor.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, binaries, container_config};

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

/// Row "config bad": every bad file is a case of `crates/daemon/tests/config.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_is_refused_with_its_line_and_the_old_one_runs_on() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let before = node.cri.container_status(&running).await?;
    let file = node.daemon().config().to_owned();
    let (name, good) = (file.display().to_string(), fs::read_to_string(&file)?);

    let line = good.lines().count() + 1;
    fs::write(&file, format!("{good}[network]\nmtuu = 9000\n"))?;
    let key = format!("berthd: {name}:{}:1: network.mtuu: unknown field", line + 1);
    // The check tells while the old daemon serves.
    let checked = berthd(&["config", "check", &name])?;
    let said = String::from_utf8(checked.stderr)?;
    assert!(!checked.status.success() && said.starts_with(&key), "{said}");
    assert_eq!(node.cri.container_status(&running).await?, before);

    let state = on_disk(&node.dir().join("root"))?;
    node.terminate_daemon()?;
    let stored = fs::read(node.dir().join("root/pods.db"))?;
    let refused = node.restart().await.err().context("a bad configuration was taken")?;
    assert!(format!("{refused:#}").contains(&key), "{refused:#}");
    assert_eq!(fs::read(node.dir().join("root/pods.db"))?, stored);
    assert_eq!(on_disk(&node.dir().join("root"))?, state);

    fs::write(&file, good)?;
    node.restart().await?;
    assert_eq!(node.cri.container_status(&running).await?, before);
    assert_eq!(node.cri.exec(&running, &["echo", "alive"], 10).await?.stdout, b"alive\n");
    node.assert_clean().await
}

/// The names of what lies in a directory, but for what comes and goes with a connection to
/// its databases.
fn on_disk(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with("-wal") && !name.ends_with("-shm") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[test]
fn check_says_in_words_that_pods_can_run_here() -> Result<()> {
    // Another runtime of this machine may have the socket that is the default.
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("berthd.toml");
    let socket = dir.path().join("nri.sock");
    fs::write(&file, format!("[nri]\nsocket = '{}'\n", socket.display()))?;
    let checked = berthd(&["--config", &file.to_string_lossy(), "check"])?;
    let said = String::from_utf8(checked.stdout)?;
    assert!(checked.status.success(), "{said}");
    let subjects =
        ["kernel", "cgroups", "overlay", "nftables", "seccomp", "AppArmor", "CDI devices"];
    for subject in subjects {
        assert!(said.contains(subject), "{subject} is not in {said}");
    }
    assert!(said.contains(&format!("{} is free", socket.display())), "{said}");
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
async fn a_supervisor_that_asks_is_told_of_readiness_and_of_each_reload() -> Result<()> {
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
    let hear = || -> Result<String> {
        let mut message = [0; 256];
        let length = supervisor.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    assert_eq!(hear()?, "READY=1\n");

    // A unit of Type=notify-reload waits for both, the first with its time.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP)?;
    let said = hear()?;
    let time = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").context(said.clone())?;
    assert!(time.trim_end().parse::<u128>()? > 0, "{said}");
    assert_eq!(hear()?, "READY=1\n");

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
    assert!(status.info.values().any(|info| info.contains("\"undo\"")), "{:?}", status.info);
    let part = |key: &str| -> Result<serde_json::Value> {
        Ok(serde_json::from_str(status.info.get(key).with_context(|| format!("no {key}"))?)?)
    };
    let config = part("config")?;
    let root = config["root"].as_str().context("no root")?;
    assert!(std::path::Path::new(root).starts_with(node.dir()), "{config}");
    assert!(config["runtime"]["handlers"]["berth"]["shim"].is_string(), "{config}");
    assert!(part("streaming")?["address"].as_str().is_some_and(|url| url.starts_with("http")));
    let nri = part("nri")?;
    assert_eq!((&nri["listening"], &nri["plugins"]), (&true.into(), &serde_json::json!([])));
    assert!(part("cdi")?["directories"].is_array() && part("network")?["subnet"].is_string());
    let silent = node.cri.runtime.status(v1::StatusRequest { verbose: false }).await?.into_inner();
    assert!(silent.info.is_empty(), "{:?}", silent.info);
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
