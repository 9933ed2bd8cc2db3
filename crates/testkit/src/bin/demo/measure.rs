//! How long a pod takes: `berth-demo --measure PODS`.
//!
//! **up** is RunPodSandbox, CreateContainer and StartContainer of one pod with one busybox
//! container, one pod at a time, until the first byte of the container's output is in its
//! log; **down** the four verbs that end it. A first look, not a benchmark: no peer runs
//! beside it, and nothing waits for a quiet machine.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_testkit::{Node, container_config};

use crate::narrator::milliseconds;
use crate::story::daemon_memory;

/// Pods that warm caches up before the first one that counts.
const WARM_UP: usize = 5;
const OUTPUT_DEADLINE: Duration = Duration::from_secs(10);

/// Starts and ends `pods` pods, one after another, and prints percentiles.
pub(crate) async fn measure(pods: usize) -> Result<()> {
    ensure!(pods > 0, "--measure needs at least one pod");
    let mut node =
        Node::start_with(berth_testkit::NodeOptions { quiet: true, ..Default::default() }).await?;
    let image = node.busybox().await?;
    println!("berthd at rest: {}", daemon_memory(&node)?);
    let mut phases = Phases::default();
    for number in 0..WARM_UP + pods {
        let taken = one(&mut node, &format!("pod-{number}"), &image).await?;
        if number >= WARM_UP {
            phases.add(taken);
        }
    }
    phases.print();
    println!("berthd after {} pods: {}", WARM_UP + pods, daemon_memory(&node)?);
    node.assert_clean().await
}

/// Durations of one pod's verbs, in order.
type Taken = [Duration; 8];

const NAMES: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "first output",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

async fn one(node: &mut Node, name: &str, image: &str) -> Result<Taken> {
    let config = node.sandbox_config(name);
    let log = node.log_directory(name).join("main.log");
    let container_config =
        container_config("main", image, &["sh", "-c", "echo up; exec sleep 1000"]);
    let mut clock = Clock(Instant::now());
    let sandbox = node.cri.run_sandbox(&config).await?;
    let run = clock.lap();
    let container = node.cri.create_container(&sandbox, &config, &container_config).await?;
    let create = clock.lap();
    node.cri.start_container(&container).await?;
    let start = clock.lap();
    wait_for_byte(&log)?;
    let output = clock.lap();
    node.cri.stop_container(&container, 0).await?;
    let stop = clock.lap();
    node.cri.remove_container(&container).await?;
    let remove = clock.lap();
    node.cri.stop_sandbox(&sandbox).await?;
    let stop_sandbox = clock.lap();
    node.cri.remove_sandbox(&sandbox).await?;
    Ok([run, create, start, output, stop, remove, stop_sandbox, clock.lap()])
}

struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}

fn wait_for_byte(log: &Path) -> Result<()> {
    let started = Instant::now();
    while fs::metadata(log).map_or(0, |found| found.len()) == 0 {
        if started.elapsed() > OUTPUT_DEADLINE {
            bail!("no output in {} after {OUTPUT_DEADLINE:?}", log.display());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

#[derive(Default)]
struct Phases(Vec<Taken>);

impl Phases {
    fn add(&mut self, taken: Taken) {
        self.0.push(taken);
    }

    fn print(&self) {
        println!("{:<18} {:>9} {:>9} {:>9}   ms, {} pods", "", "p10", "p50", "p99", self.0.len());
        for (index, name) in NAMES.iter().enumerate() {
            self.row(name, |taken| taken[index]);
        }
        self.row("up", |taken| taken[..4].iter().sum());
        self.row("down", |taken| taken[4..].iter().sum());
    }

    fn row(&self, name: &str, of: impl Fn(&Taken) -> Duration) {
        let mut times: Vec<f64> = self.0.iter().map(|taken| milliseconds(of(taken))).collect();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        println!("{name:<18} {:>9.2} {:>9.2} {:>9.2}", at(10), at(50), at(99));
    }
}

/// Reads the number after `--measure`.
pub(crate) fn pods(text: &str) -> Result<usize> {
    text.parse().with_context(|| format!("{text:?} is not a number of pods"))
}
