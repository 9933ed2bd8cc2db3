//! What happens while no daemon runs is known to the next one: every byte that containers
//! logged, and how they ended, even if their shim has ended since.
//!
//! `BERTH_TEST_LOG_MIB` is how much is logged; the row of the failures table asks for 100.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Node, bind, container_config, log, resources};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A container that waits for the file `go`, runs `work`, leaves the file NAME, and ends.
fn waiting(image: &str, name: &str, dir: &Path, work: &str, code: i32) -> v1::ContainerConfig {
    let wait = "while [ ! -e /data/go ]; do sleep 0.02; done";
    let script = format!("{wait}; {work}; touch /data/{name}; exit {code}");
    let mut config = container_config(name, image, &["sh", "-c", &script]);
    config.mounts = vec![bind("/data", dir)];
    config
}

/// The container ended with `code`, at the time of its last deed.
async fn check(node: &mut Node, dir: &Path, name: &str, id: &str, code: i32) -> Result<String> {
    let status = node.wait_exit(id).await?;
    ensure!(status.exit_code == code, "{name}: {status:?}");
    let last = std::fs::metadata(dir.join(name))?.modified()?;
    let last = i128::try_from(last.duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())?;
    let late = i128::from(status.finished_at) - last;
    // A file's time is that of the last tick.
    ensure!((-20_000_000..1_500_000_000).contains(&late), "{name}: {late} ns late");
    Ok(status.reason)
}

async fn wait_for(path: &Path) -> Result<()> {
    let until = std::time::Instant::now() + Duration::from_secs(300);
    while !path.exists() {
        ensure!(std::time::Instant::now() < until, "no {}", path.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Longer than what [`check`] takes for true: a time of asking would show.
const AWAY: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn while_the_daemon_is_down_logs_and_exits_are_kept() -> Result<()> {
    let mib = std::env::var("BERTH_TEST_LOG_MIB").ok().map_or(Ok(8), |told| told.parse())?;
    let lines = mib * (1_usize << 20) / 64;
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("volume");
    std::fs::create_dir(&dir)?;
    let print = format!("for (n = 1; n <= {lines}; n++) printf \"%063d\\n\", n");
    let print = format!("awk 'BEGIN {{ {print} }}'");
    let id = node.run(&pod, &waiting(&image, "main", &dir, &print, 42)).await?;
    node.kill_daemon()?;
    std::fs::write(dir.join("go"), "")?;
    wait_for(&dir.join("main")).await?;
    tokio::time::sleep(AWAY).await;
    node.kill_and_restart().await?;
    check(&mut node, &dir, "main", &id, 42).await?;
    let text = log::text(&node.read_log("pod", "main")?, "stdout");
    ensure!(text.lines().count() == lines, "{} of {lines} lines", text.lines().count());
    for (n, line) in (1..).zip(text.lines()) {
        ensure!(line.parse() == Ok(n), "{line} is not line {n}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_outlive_a_shim_that_was_killed_or_told_to_end() -> Result<()> {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (mut node, image, pod) = Node::with_pod().await?;
        let dir = node.dir().join("volume");
        std::fs::create_dir(&dir)?;
        let first = node.run(&pod, &waiting(&image, "first", &dir, "true", 7)).await?;
        // One of its processes is killed for the limit, and it ends by that.
        let mut greedy = waiting(&image, "greedy", &dir, "tail /dev/zero", 9);
        resources(&mut greedy).memory_limit_in_bytes = 20 << 20;
        let greedy = node.run(&pod, &greedy).await?;
        let shim = node.shim_pid(&pod.id).await?;
        node.kill_daemon()?;
        std::fs::write(dir.join("go"), "")?;
        wait_for(&dir.join("first")).await?;
        wait_for(&dir.join("greedy")).await?;
        tokio::time::sleep(AWAY).await;
        let shim = Pid::from_raw(i32::try_from(shim).context("a pid")?);
        kill(shim, signal)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.kill_and_restart().await?;
        let reason = check(&mut node, &dir, "first", &first, 7).await?;
        ensure!(reason == "Error", "{signal}: {reason}");
        let reason = check(&mut node, &dir, "greedy", &greedy, 9).await?;
        ensure!(reason == "OOMKilled", "{signal}: {reason}");
        node.assert_clean().await?;
    }
    Ok(())
}
