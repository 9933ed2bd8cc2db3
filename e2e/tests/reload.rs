//! SIGHUP: what can change does, a file that is refused changes nothing, and pods run on.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use berth_testkit::{Node, NodeOptions, cri, image};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Replaces `from` in the daemon's file and has it read; waits until the log says `words`.
fn reload(node: &Node, from: &str, to: &str, words: &str) -> Result<()> {
    let path = node.daemon().config();
    let text = fs::read_to_string(path)?;
    anyhow::ensure!(text.contains(from), "{from:?} is not in {text}");
    let said = count(node, words)?;
    fs::write(path, text.replace(from, to))?;
    let pid = node.daemon().pid().context("the daemon does not run")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGHUP)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while count(node, words)? == said {
        if Instant::now() > deadline {
            bail!("{words:?} was not logged:\n{}", fs::read_to_string(node.daemon().log())?);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn count(node: &Node, words: &str) -> Result<usize> {
    Ok(fs::read_to_string(node.daemon().log())?.matches(words).count())
}

fn write_hosts(dir: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(dir.join("r.example"))?;
    Ok(fs::write(dir.join("r.example/hosts.toml"), text)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_read_again_changes_what_can_change_and_a_bad_one_nothing() -> Result<()> {
    let hosts = tempfile::tempdir()?;
    let config = "[registry]\nconfig_path = '/no/such/directory'\n".to_owned();
    let container = "pids_limit = 77".to_owned();
    let options = NodeOptions { config, container, quiet: true, ..Default::default() };
    let mut node = Node::start_with(options).await?;
    let image = node.busybox().await?;
    node.push("mirrored", "one", &image::busybox()?)?;
    node.push("mirrored", "two", &image::busybox()?)?;
    write_hosts(hosts.path(), &format!("server = 'http://{}'\n", node.registry.address()))?;
    let pod = node.pod("pod").await?;
    let before =
        node.run(&pod, &cri::container_config("before", &image, &["sleep", "100"])).await?;
    let limit = "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max";
    assert_eq!(node.shell(&pod, &image, limit).await?, "77\n");

    let path = hosts.path().display().to_string();
    reload(&node, "/no/such/directory", &path, "configuration read again")?;
    node.cri.pull("r.example/mirrored:one").await?;
    reload(&node, "pids_limit = 77", "pids_limit = 88", "configuration read again")?;
    assert_eq!(node.shell(&pod, &image, limit).await?, "88\n", "a new container has the new one");
    assert_eq!(count(&node, "cri.version")?, 0, "polls are not logged at info");
    reload(&node, "filter = 'info'", "filter = 'debug'", "configuration read again")?;
    node.cri.runtime.version(berth_api::v1::VersionRequest::default()).await?;
    assert!(count(&node, "cri.version")? > 0, "they are at debug");

    // The whole file is refused, its good part as well.
    let bad = "pids_limit = 99\npids_limt = 5";
    reload(&node, "pids_limit = 88", bad, "configuration refused")?;
    let log = fs::read_to_string(node.daemon().log())?;
    let line = log.lines().find(|line| line.contains("configuration refused"));
    let line = line.context("no line")?;
    assert!(line.contains("berthd.toml:") && line.contains("pids_limt"), "{line}");
    assert_eq!(node.shell(&pod, &image, limit).await?, "88\n", "the old one stays");
    node.cri.pull("r.example/mirrored:two").await?;

    // What needs a restart is told; the rest of that file counts.
    reload(&node, bad, "pids_limit = 66", "configuration read again")?;
    reload(&node, "[registry]", "[network]\nmtu = 1400\n[registry]", "needs a restart")?;
    assert_eq!(node.shell(&pod, &image, limit).await?, "66\n");
    node.container_pid(&before).await.context("the container before all that runs on")?;
    node.cri.remove_sandbox(&pod.id).await?;
    node.assert_clean().await
}
