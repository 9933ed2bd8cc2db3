//! Floods: commands and containers that write as fast as they can, and commands by the
//! hundred. Little of each here; `cargo xtask torture` asks for more by the environment.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Cri, Node, container_config, log, script};
use tonic::Code;

/// What a command that floods may cost the daemon, bytes (D1).
const COMMAND_MEMORY: u64 = 40 << 20;
/// What containers that flood may cost their shim, bytes.
const LOG_MEMORY: u64 = 10 << 20;
/// Commands at one time.
const AT_ONCE: usize = 200;
/// Containers that flood at one time, in so many pods.
const CONTAINERS: usize = 20;
const PODS: usize = 4;

/// How much is asked for: `default`, unless the environment says otherwise.
fn count(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(told) => told.parse().with_context(|| format!("{variable}={told}")),
        Err(_) => Ok(default),
    }
}

/// Memory of its own that a process has, bytes.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("no RssAnon")?.parse::<u64>()? << 10)
}

/// teeth: crates/engine/src/exec/stream.rs: `MAX_EXEC_OUTPUT - kept.len()` → `usize::MAX`
#[tokio::test(flavor = "multi_thread")]
async fn d1_a_command_that_floods_costs_the_daemon_little_memory() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let container = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let pid = node.daemon().pid().context("the daemon does not run")?;
    node.cri.exec(&container, &["true"], 10).await?;
    let before = memory(pid)?;
    let seconds = i64::try_from(count("BERTH_FLOOD_SECONDS", 2)?)?;
    let (mut cri, id) = (node.cri.clone(), container.clone());
    let flood = tokio::spawn(async move { cri.exec(&id, &["yes"], seconds).await });
    let mut most = before;
    while !flood.is_finished() {
        most = most.max(memory(pid)?);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = flood.await?.err().context("it ended")?;
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert!(most <= before + COMMAND_MEMORY, "{before} bytes before, {most} at most");
    let seen = node.cri.exec(&container, &["ps"], 10).await?;
    let seen = String::from_utf8(seen.stdout)?;
    assert!(!seen.contains("yes"), "{seen}");
    node.assert_clean().await
}

/// Runs one command whose code and output nobody else's has.
async fn command(mut cri: Cri, container: String, number: usize) -> Result<()> {
    let code = i32::try_from(number % 256)?;
    let script = format!("echo {number}; echo {number} >&2; exit {code}");
    let answer = cri.exec(&container, &["sh", "-c", &script], 100).await?;
    let line = format!("{number}\n").into_bytes();
    ensure!(
        answer.exit_code == code && answer.stdout == line && answer.stderr == line,
        "command {number}: {answer:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_commands_has_every_code_and_leaves_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut containers = Vec::new();
    for name in ["one", "two"] {
        let config = container_config(name, &image, &["sleep", "1000"]);
        containers.push(node.run(&pod, &config).await?);
    }
    let shim = node.shim_pid(&pod.id).await?;
    let total = count("BERTH_EXECS", AT_ONCE)?;
    let mut files = None;
    for first in (0..total).step_by(AT_ONCE) {
        let storm: Vec<_> = (first..total.min(first + AT_ONCE))
            .map(|number| {
                let container = containers[number % containers.len()].clone();
                tokio::spawn(command(node.cri.clone(), container, number))
            })
            .collect();
        for command in storm {
            command.await??;
        }
        // The shim forgets the last of them a moment after its answer.
        let open = || anyhow::Ok(fs::read_dir(format!("/proc/{shim}/fd"))?.count());
        let at_rest = *files.get_or_insert(open()?);
        for _ in 0..1000 {
            if open()? <= at_rest {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ensure!(open()? <= at_rest, "the shim has {} files open, and had {at_rest}", open()?);
    }
    node.assert_clean().await
}

/// A container that writes numbered lines, and how far they were read.
struct Flood {
    id: String,
    shim: u32,
    current: PathBuf,
    read: usize,
}

impl Flood {
    /// Reads the lines of a file that is written no more, and removes it.
    fn read(&mut self, path: &Path) -> Result<()> {
        let mut lines = BufReader::new(File::open(path)?);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            let number = log::parse(&line)?;
            let [number] = &number[..] else { anyhow::bail!("not one line: {line:?}") };
            self.read += 1;
            ensure!(
                !number.partial && number.text == self.read.to_string(),
                "{line:?} instead of line {}",
                self.read
            );
            line.clear();
        }
        Ok(fs::remove_file(path)?)
    }

    /// Rotates as kubelet does: whether the container still ran.
    async fn rotate(&mut self, cri: &mut Cri) -> Result<bool> {
        let rotated = self.current.with_extension("old");
        fs::rename(&self.current, &rotated)?;
        let request = v1::ReopenContainerLogRequest { container_id: self.id.clone() };
        match cri.runtime.reopen_container_log(request).await {
            Ok(_) => ensure!(self.current.exists(), "the log was not made before the answer"),
            Err(status) => {
                ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
                ensure!(!self.current.exists(), "a refused request made a log");
                fs::rename(&rotated, &self.current)?;
                return Ok(false);
            }
        }
        self.read(&rotated)?;
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_many_containers_are_logged_and_rotated_without_loss() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let lines = count("BERTH_FLOOD_LINES", 20_000)?;
    let (mut floods, mut shims) = (Vec::new(), Vec::new());
    for pod in 0..PODS {
        let pod = node.pod(&format!("pod-{pod}")).await?;
        let (shim, name) = (node.shim_pid(&pod.id).await?, pod.config.metadata.clone());
        let logs = node.log_directory(&name.context("no metadata")?.name);
        shims.push((shim, memory(shim)?));
        for container in 0..CONTAINERS / PODS {
            let name = format!("flood-{container}");
            let config = container_config(&name, &image, &["seq", "1", &lines.to_string()]);
            let id = node.run(&pod, &config).await?;
            floods.push(Flood { id, shim, current: logs.join(format!("{name}.log")), read: 0 });
        }
    }
    let mut run = true;
    while run {
        run = false;
        for flood in &mut floods {
            run |= flood.rotate(&mut node.cri).await?;
            let before = shims.iter().find(|(shim, _)| *shim == flood.shim).context("no shim")?.1;
            let now = memory(flood.shim)?;
            ensure!(now <= before + LOG_MEMORY, "a shim grew from {before} to {now} bytes");
        }
    }
    for flood in &mut floods {
        node.wait_exit(&flood.id).await?;
        let current = flood.current.clone();
        flood.read(&current)?;
        assert_eq!(flood.read, lines, "{}", current.display());
    }
    node.assert_clean().await
}

/// A pod that is being deleted still writes, and kubelet still rotates.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_container_that_is_being_stopped_is_rotated() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let text = "trap 'echo last; read x < /tmp/go; echo words; exit 6' TERM; mkfifo /tmp/go; \
                echo ready; while :; do sleep 0.01; done";
    let id = node.run(&pod, &script(&image, text)).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    let (mut cri, stopped) = (node.cri.clone(), id.clone());
    let stop = tokio::spawn(async move { cri.stop_container(&stopped, 100).await });
    node.wait_for_line("pod", "main", "last").await?;
    let current = node.log_directory("pod").join("main.log");
    let rotated = current.with_extension("old");
    fs::rename(&current, &rotated)?;
    let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
    node.cri.runtime.reopen_container_log(request).await?;
    assert!(current.exists());
    node.cri.exec(&id, &["sh", "-c", "echo > /tmp/go"], 10).await?;
    stop.await??;
    assert_eq!(node.wait_exit(&id).await?.exit_code, 6);
    assert_eq!(log::text(&log::read(&rotated)?, "stdout"), "ready\nlast\n");
    assert_eq!(log::text(&log::read(&current)?, "stdout"), "words\n");
    node.assert_clean().await
}
