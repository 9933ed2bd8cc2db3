//! Where each millisecond goes: the phases of a pod's start, of a command in it, and of its
//! end, from the spans of `berthd` itself.
//!
//! The daemon runs on a node of its own with `debug` spans as JSON. Writing them takes time
//! too, so the totals here are above those of `start`, which runs a daemon as users do; what
//! this is for is proportion.

mod floor;
mod spans;
mod table;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::{Node, NodeOptions, kubelet};
use clap::Args;

use self::spans::Closed;
use self::tree::Phase;
use crate::facts::Facts;
use crate::interrupt::Interrupts;
use crate::report::{Bench, Better, Measured, Metric, Report, Series};
use crate::stats::Summary;
use crate::target::{Target, Version};

/// What tables call it.
const BERTH: &str = "berth";
/// Pods that warm caches up and are not counted.
const WARM_UP: usize = 5;
/// How long a first byte may take.
const OUTPUT: Duration = Duration::from_secs(10);
/// How long work that nobody waits for may go on after the last pod.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// What `berth-bench phases` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Pods that are started and ended, one after another.
    #[arg(long, value_name = "NUMBER", default_value_t = 40)]
    pub(crate) pods: usize,
    /// Pause before each pod, milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) pause: u64,
    /// Folder of `berthd` and its shim; without it, the one that `BERTH_BIN_DIR` names.
    #[arg(long, value_name = "DIR")]
    pub(crate) binaries: Option<PathBuf>,
    /// Where to write the phases as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where to draw them (SVG).
    #[arg(long, value_name = "DIR")]
    pub(crate) charts: Option<PathBuf>,
}

/// The verbs of a pod's life as a client calls them, and the names of their spans.
const VERBS: [(&str, &str); 8] = [
    ("RunPodSandbox", "cri.run_pod_sandbox"),
    ("CreateContainer", "cri.create_container"),
    ("StartContainer", "cri.start_container"),
    ("ExecSync", "cri.exec_sync"),
    ("StopContainer", "cri.stop_container"),
    ("RemoveContainer", "cri.remove_container"),
    ("StopPodSandbox", "cri.stop_pod_sandbox"),
    ("RemovePodSandbox", "cri.remove_pod_sandbox"),
];

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// By name of the span; work that no verb waited for has an empty one.
    phases: BTreeMap<String, Vec<Phase>>,
    /// What the client saw of each verb, in the order of [`VERBS`], ms.
    client: Vec<Vec<f64>>,
    /// From the answer of StartContainer until the first byte was in the log, ms.
    first_byte: Vec<f64>,
    options: Options,
}

/// Runs pods on a node of its own, prints the table, writes what was asked for.
pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(options.pods > 0, "--pods needs at least one");
    Report::writable(options.json.as_deref())?;
    let facts = Facts::gather()?;
    println!("{}", facts.line());
    // Dropping the work ends the node and removes what is on it.
    let mut interrupts = Interrupts::listen()?;
    let (found, version) = interrupts.unless(measure(options.clone())).await?;
    print!("{}", table::table(&found));
    if let Some(file) = &options.json {
        let handler = String::new();
        let berth = Measured { name: BERTH.to_owned(), handler, runtime: version };
        let mut report = Report::of(facts, vec![berth]);
        report.benches.push(found.bench());
        report.write(file)?;
    }
    if let Some(dir) = &options.charts {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let file = dir.join("phases.svg");
        fs::write(&file, table::picture(&found))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// The table of `pods` pods; draws them into `charts`.
pub(crate) async fn in_words(pods: usize, charts: &Path) -> Result<String> {
    let options = Options { pods, pause: 0, binaries: None, json: None, charts: None };
    let (found, _) = measure(options).await?;
    let file = charts.join("phases.svg");
    fs::write(&file, table::picture(&found))
        .with_context(|| format!("write {}", file.display()))?;
    Ok(table::table(&found))
}

async fn measure(options: Options) -> Result<(Found, Version)> {
    let mut node = Node::start_with(NodeOptions {
        log_format: "json".to_owned(),
        // Of the engine everything: its shims tell how long they take then.
        log_filter: "debug,berth_engine=trace,h2=warn,hyper=warn,tower=warn".to_owned(),
        binaries: options.binaries.clone(),
        ..NodeOptions::default()
    })
    .await?;
    let image = node.busybox().await?;
    let socket = node.daemon().socket().to_owned();
    let version = Target::version(&mut node.cri, &socket).await?;
    let mut client = vec![Vec::new(); VERBS.len()];
    let mut first_byte = Vec::new();
    let mut spans = Vec::new();
    let mut skip = 0;
    for number in 0..WARM_UP + options.pods {
        if number == WARM_UP {
            tokio::time::sleep(AFTERWARDS).await;
            skip = fs::metadata(node.daemon().log())?.len();
        }
        tokio::time::sleep(Duration::from_millis(options.pause)).await;
        let (verbs, byte, shim) = one(&mut node, &format!("pod-{number}"), &image).await?;
        if number >= WARM_UP {
            first_byte.push(byte);
            spans.extend(shim);
            for (all, verb) in client.iter_mut().zip(verbs) {
                all.push(verb);
            }
        }
    }
    tokio::time::sleep(AFTERWARDS).await;
    let log = fs::read(node.daemon().log())?;
    node.assert_clean().await?;
    let log = log.get(usize::try_from(skip)?..).context("the daemon's log became shorter")?;
    let log = String::from_utf8_lossy(log);
    spans.extend(log.lines().filter_map(spans::closed));
    // As they ended: what the shims told is not between what the daemon told yet. Those that
    // the daemon told keep their order.
    spans.sort_by(|one, other| one.ended().total_cmp(&other.ended()));
    let phases = tree::phases(spans);
    for (verb, span) in VERBS {
        ensure!(phases.contains_key(span), "the daemon told no span of {verb} ({span})");
    }
    Ok((Found { phases, client, first_byte, options }, version))
}

/// What one pod took: each verb, and the first byte after StartContainer, ms; and the phases
/// that its shim told.
type Pod = ([f64; VERBS.len()], f64, Vec<Closed>);

/// One pod up, one command in it, and down.
async fn one(node: &mut Node, name: &str, image: &str) -> Result<Pod> {
    let logs = node.log_directory(name);
    let config = kubelet::sandbox(name, "phases", &format!("uid-{name}"), &logs);
    let log = logs.join("main.log");
    let main = kubelet::container("main", image, &["sh", "-c", "echo up; exec sleep 1000"]);
    let mut clock = Clock(Instant::now());
    let sandbox = node.cri.run_sandbox(&config).await?;
    let run = clock.lap();
    let container = node.cri.create_container(&sandbox, &config, &main).await?;
    let create = clock.lap();
    node.cri.start_container(&container).await?;
    let start = clock.lap();
    first_byte(&log)?;
    let byte = clock.lap();
    let ended = node.cri.exec(&container, &["true"], 10).await?;
    let exec = clock.lap();
    ensure!(ended.exit_code == 0, "true ended with {} in {name}", ended.exit_code);
    let shim = told_by_shim(node, &sandbox);
    clock.lap();
    node.cri.stop_container(&container, 0).await?;
    let stop = clock.lap();
    node.cri.remove_container(&container).await?;
    let remove = clock.lap();
    node.cri.stop_sandbox(&sandbox).await?;
    let stop_sandbox = clock.lap();
    // `Cri::remove_sandbox` would stop it once more.
    let removal = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    node.cri.runtime.remove_pod_sandbox(removal).await?;
    Ok(([run, create, start, exec, stop, remove, stop_sandbox, clock.lap()], byte, shim))
}

/// The parts of which making a container and a command in it consists, as its shim logged
/// them; none by a shim that does not tell them.
fn told_by_shim(node: &Node, sandbox: &str) -> Vec<Closed> {
    const CREATE: [&str; 3] = ["cri.start_container", "start_container", "task_create"];
    const EXEC: [&str; 4] = ["cri.exec_sync", "exec_sync", "exec_start", "task_start"];
    let log = node.path("run").join("sandboxes").join(sandbox).join("shim.log");
    let log = fs::read_to_string(log).unwrap_or_default();
    let made: Vec<&str> = log.lines().filter(|line| line.contains("made a process")).collect();
    let paths = [CREATE.as_slice(), EXEC.as_slice()];
    made.iter().zip(paths).flat_map(|(line, path)| spans::made(line, path)).collect()
}

struct Clock(Instant);

impl Clock {
    /// Milliseconds since the last lap.
    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let lap = now.duration_since(std::mem::replace(&mut self.0, now));
        lap.as_secs_f64() * 1e3
    }
}

fn first_byte(log: &Path) -> Result<()> {
    let began = Instant::now();
    while fs::metadata(log).map_or(0, |found| found.len()) == 0 {
        if began.elapsed() > OUTPUT {
            bail!("no output in {} after {OUTPUT:?}", log.display());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

impl Found {
    /// What the client saw of a verb.
    fn client(&self, verb: usize) -> Option<Summary> {
        Summary::of(self.client.get(verb)?.iter().copied())
    }

    /// The same for JSON: a metric for each phase.
    fn bench(&self) -> Bench {
        let metric = |name: String, samples: Vec<f64>| Metric {
            name,
            unit: "ms".to_owned(),
            better: Better::Lower,
            series: vec![Series { target: BERTH.to_owned(), rounds: vec![samples] }],
        };
        let client = VERBS.iter().zip(&self.client);
        let mut metrics: Vec<Metric> = client
            .map(|((verb, _), samples)| metric((*verb).to_owned(), samples.clone()))
            .collect();
        metrics.push(metric("first byte".to_owned(), self.first_byte.clone()));
        for phase in VERBS.iter().filter_map(|(_, span)| self.phases.get(*span)).flatten() {
            metrics.push(metric(phase.path.join(" > "), vec![phase.takes.p50]));
        }
        let what = "Phases of one pod at a time, from the daemon's own spans.";
        let mut bench = Bench::new("phases", what);
        bench.setting("pods", self.options.pods);
        bench.setting("pause", format!("{} ms", self.options.pause));
        bench.note("phases are medians; the daemon writes its spans as JSON");
        bench.metrics = metrics;
        bench
    }
}
