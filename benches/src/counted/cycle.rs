//! Pod cycles of a node of our own, under a tracer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::image::{Image, busybox_builder};
use berth_testkit::tar::Tar;
use berth_testkit::{Known, Node, NodeOptions, binaries, container_config, resources};
use serde::Serialize;
use tempfile::TempDir;

use crate::kinds::{self, Counts};
use crate::trace::Trace;
use crate::tracer::Tracer;

/// Cycles that fill caches and pools before the first one that is counted.
const WARM_UP: usize = 3;
/// Cycles that are counted: as many as tell a disturbed one from what is done now and then.
const CYCLES: usize = 8;
/// How long a node goes on with what its last pod left to do.
const CALM: Duration = Duration::from_secs(4);
/// How long a node at rest is looked at. What a shim or the daemon does each second is seen;
/// the daemon gives memory back every half minute, which falls into it or not.
const REST: Duration = Duration::from_secs(5);
/// Longest wait for the output of a container.
const OUTPUT_DEADLINE: Duration = Duration::from_secs(20);

/// What was counted: samples, one of each cycle, by step and by name.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Counted {
    samples: BTreeMap<&'static str, BTreeMap<&'static str, Vec<u64>>>,
    /// How often each call was made in the cycle that is in the middle, by step.
    calls: BTreeMap<&'static str, BTreeMap<String, u64>>,
    #[serde(skip)]
    all_calls: BTreeMap<&'static str, Vec<BTreeMap<String, u64>>>,
}

impl Counted {
    fn add(&mut self, step: &'static str, counts: Counts) {
        let samples = self.samples.entry(step).or_default();
        for (name, count) in counts {
            samples.entry(name).or_default().push(count);
        }
    }

    fn add_calls(&mut self, step: &'static str, calls: BTreeMap<String, u64>) {
        self.all_calls.entry(step).or_default().push(calls);
    }

    /// Leaves of each step the calls of one cycle.
    fn finish(mut self) -> Self {
        for (step, mut cycles) in std::mem::take(&mut self.all_calls) {
            cycles.sort_by_key(|calls| calls.values().sum::<u64>());
            let middle = cycles.len() / 2;
            self.calls.extend(cycles.into_iter().nth(middle).map(|calls| (step, calls)));
        }
        self
    }
}

/// Counts what pods cost a daemon and its shims; the traces go to `kept`.
pub(crate) async fn count(kept: Option<PathBuf>) -> Result<Counted> {
    // Not in the node's directory: what names that is taken for a process of the node.
    let dir = tempfile::Builder::new().prefix("counted-").tempdir().context("make a directory")?;
    let shim = install(dir.path())?;
    let options = NodeOptions {
        quiet: true,
        unarmed: true,
        binaries: Some(dir.path().to_owned()),
        ..NodeOptions::default()
    };
    let mut node = Node::start_with(options).await?;
    let image = node.push("counted", "latest", &image()?)?;
    let daemon = node.daemon().pid().context("the daemon does not run")?;
    let mut counter = Counter::new(daemon, dir, &shim, kept);
    for _ in 0..WARM_UP {
        cycle(&mut node, &image, &mut counter).await?;
    }
    counter.attach().await?;
    for _ in 0..CYCLES {
        cycle(&mut node, &image, &mut counter).await?;
    }
    rest(&mut node, &image, &mut counter).await?;
    let counted = counter.end();
    node.assert_clean().await?;
    Ok(counted)
}

/// Copies daemon and shim to where their paths are as long as anywhere else: they are in
/// what is written, and in what is read in pieces. Returns the shim's.
fn install(dir: &Path) -> Result<PathBuf> {
    const SHIM: &str = "containerd-shim-berth-v1";
    let from = binaries()?;
    for name in ["berthd", SHIM] {
        let copied = fs::copy(from.join(name), dir.join(name));
        copied
            .with_context(|| format!("copy {} to {}", from.join(name).display(), dir.display()))?;
    }
    Ok(dir.join(SHIM))
}

/// busybox, and a second layer of many small files.
fn image() -> Result<Image> {
    let mut files = Tar::new().directory("data/", 0o755);
    for number in 0..100_u8 {
        files = files.file(&format!("data/{number:03}"), 0o644, &vec![number; 1000]);
    }
    busybox_builder()?.layer(files)?.build()
}

/// One image and one pod come and go.
async fn cycle(node: &mut Node, image: &str, counter: &mut Counter) -> Result<()> {
    node.cri.pull(image).await?;
    counter.step("pull").await?;
    node.cri.pull(image).await?;
    counter.step("pull_present").await?;
    let pod = up(node, image).await?;
    counter.step("up").await?;
    let exec = node.cri.exec(&pod.container, &["true"], 10).await?;
    ensure!(exec.exit_code == 0, "exec of true ended with {}", exec.exit_code);
    counter.step("exec").await?;
    polls(node).await?;
    counter.step("polls").await?;
    down(node, &pod).await?;
    counter.step("down").await?;
    node.cri.remove_image(image).await?;
    counter.step("remove_image").await
}

/// A node with one pod, of which nobody wants anything.
async fn rest(node: &mut Node, image: &str, counter: &mut Counter) -> Result<()> {
    node.cri.pull(image).await?;
    let pod = up(node, image).await?;
    counter.rest().await?;
    down(node, &pod).await
}

struct Pod {
    sandbox: String,
    container: String,
    logs: PathBuf,
}

/// A pod with kubelet's namespaces, seccomp profile and memory limit, but without the paths
/// that it hides (12 mounts) and makes read-only (5), until the first byte of output is in its log.
async fn up(node: &mut Node, image: &str) -> Result<Pod> {
    let sandbox_config = node.sandbox_config("counted");
    let mut config = container_config("main", image, &["sh", "-c", "echo up; exec sleep 1000"]);
    resources(&mut config).memory_limit_in_bytes = 128 << 20;
    let sandbox = node.cri.run_sandbox(&sandbox_config).await?;
    let container = node.cri.create_container(&sandbox, &sandbox_config, &config).await?;
    node.cri.start_container(&container).await?;
    let logs = node.log_directory("counted");
    let log = logs.join("main.log");
    let started = std::time::Instant::now();
    while fs::metadata(&log).map_or(0, |found| found.len()) == 0 {
        ensure!(started.elapsed() < OUTPUT_DEADLINE, "no output in {}", log.display());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(Pod { sandbox, container, logs })
}

/// Until nothing of the pod is left.
async fn down(node: &mut Node, pod: &Pod) -> Result<()> {
    node.cri.stop_container(&pod.container, 0).await?;
    node.cri.remove_container(&pod.container).await?;
    node.cri.stop_sandbox(&pod.sandbox).await?;
    node.cri.remove_sandbox(&pod.sandbox).await?;
    node.settle(&Known::default())?;
    fs::remove_dir_all(&pod.logs).with_context(|| format!("remove {}", pod.logs.display()))
}

/// What kubelet asks again and again.
async fn polls(node: &mut Node) -> Result<()> {
    node.cri.sandboxes().await?;
    for id in node.cri.containers().await? {
        node.cri.container_status(&id).await?;
    }
    let runtime = &mut node.cri.runtime;
    runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?;
    runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await?;
    Ok(())
}

/// The tracer, and what it has counted.
struct Counter {
    daemon: u32,
    /// Has the programs and the trace.
    dir: TempDir,
    tracer: Option<Tracer>,
    trace: Trace,
    counted: Counted,
    /// Where pieces of the trace are kept, and how many were.
    kept: Option<PathBuf>,
    pieces: usize,
}

impl Counter {
    fn new(daemon: u32, dir: TempDir, shim: &Path, kept: Option<PathBuf>) -> Self {
        let trace = Trace::new(&shim.display().to_string());
        Self { daemon, dir, tracer: None, trace, counted: Counted::default(), kept, pieces: 0 }
    }

    async fn attach(&mut self) -> Result<()> {
        let mut tracer = Tracer::attach(self.daemon, self.dir.path().join("trace"))?;
        // What the last cycle left to do belongs to none that is counted.
        self.trace.read(&tracer.cut().await?);
        self.tracer = Some(tracer);
        for socket in netlink_sockets(self.daemon)? {
            self.trace.knows_netlink(socket);
        }
        Ok(())
    }

    /// What was done since the last step was `step`.
    async fn step(&mut self, step: &'static str) -> Result<()> {
        let Some(tracer) = &mut self.tracer else { return Ok(()) };
        let text = tracer.cut().await?;
        self.keep(step, &text)?;
        let calls = self.trace.read(&text);
        self.counted.add(step, kinds::count(&calls, &self.trace));
        self.counted.add_calls(step, kinds::by_name(&calls));
        Ok(())
    }

    /// Lets a while go by in which nobody asks for anything.
    async fn rest(&mut self) -> Result<()> {
        let tracer = self.tracer.as_mut().context("nothing is traced")?;
        // A little later memory is given back that the last pod needed.
        tokio::time::sleep(CALM).await;
        self.trace.read(&tracer.cut().await?);
        tokio::time::sleep(REST).await;
        let text = tracer.take()?;
        self.keep("rest", &text)?;
        let calls = self.trace.read(&text);
        self.counted.add("rest", kinds::wake_ups(&calls));
        self.counted.add_calls("rest", kinds::by_name(&calls));
        Ok(())
    }

    /// Keeps a piece of the trace for who wants to know what is behind a count.
    fn keep(&mut self, step: &str, text: &str) -> Result<()> {
        let Some(dir) = &self.kept else { return Ok(()) };
        self.pieces += 1;
        let path = dir.join(format!("{:03}-{step}", self.pieces));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn end(self) -> Counted {
        self.counted.finish()
    }
}

/// The netlink sockets of the namespace that process `pid` is in.
fn netlink_sockets(pid: u32) -> Result<Vec<String>> {
    let path = Path::new("/proc").join(pid.to_string()).join("net/netlink");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let inode = |line: &str| Some(format!("socket:[{}]", line.split_whitespace().last()?));
    Ok(text.lines().skip(1).filter_map(inode).collect())
}
