//! OCI runtimes by themselves: what it takes to run busybox `true` in a bundle.
//!
//! They are driven by runc's command line, as a shim drives runc. Berth has no such command
//! yet, its shim has the runtime as a library: `berth-bench-oci` puts `run` in front of it and
//! is measured here, so what an executed runtime pays for being executed is in its number too.

mod bundle;
mod runtime;

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;

use self::runtime::{Lap, Runtime, Stage};
use crate::interrupt::Interrupts;
use crate::plan::{Plan, Turn};
use crate::report::{Bench, Better, Measured, Metric, Sheet};
use crate::target::Version;

/// How often it is looked whether the run is to end, while it waits.
const LOOK: Duration = Duration::from_millis(100);

/// Removed when the run ends, with what is in it.
fn cgroup() -> String {
    format!("/berth-bench-oci-{}", std::process::id())
}

/// What `berth-bench oci` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// OCI runtimes with runc's command line, by path or by their name in `PATH`; the first is
    /// what the others are compared with. Without it: `berth-bench-oci` beside this program,
    /// and those of runc, crun and youki that are installed.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) runtime: Vec<PathBuf>,
    /// Containers of each runtime in a turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    pub(crate) containers: usize,
    /// Containers of each runtime before the first turn, which do not count.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub(crate) warm_up: usize,
    /// Rounds, in each of which every runtime has its turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) rounds: usize,
    /// Longest wait for a quiet machine before a turn, seconds; 0 does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) patience: u64,
    /// Where to write everything that was measured, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where to draw charts (SVG).
    #[arg(long, value_name = "DIR")]
    pub(crate) charts: Option<PathBuf>,
}

/// Finds the runtimes, measures them in turn, and removes what they left.
pub(crate) async fn run(plan: &Plan, programs: &[PathBuf]) -> Result<(Bench, Vec<Measured>)> {
    ensure!(plan.samples > 0 && plan.rounds > 0, "nothing to measure: no containers or no rounds");
    let found = runtime::find(programs)?;
    ensure!(!found.is_empty(), "no OCI runtime found: neither berth-bench-oci, crun nor runc");
    let stage = Stage::make(&cgroup())?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut interrupts = Interrupts::listen()?;
    let listener = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            if interrupts.unless(pending::<Result<()>>()).await.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    let measured = measure(plan, &stage, found, &stop).await;
    listener.abort();
    let cleaned = stage.remove();
    let measured = measured?;
    cleaned.map(|()| measured)
}

async fn measure(
    plan: &Plan,
    stage: &Stage,
    found: Vec<(String, PathBuf)>,
    stop: &Arc<AtomicBool>,
) -> Result<(Bench, Vec<Measured>)> {
    let mut bench = Bench::new(
        "oci",
        "busybox `true` by OCI runtimes alone: pid, network, IPC, UTS and mount namespaces, \
         default seccomp profile, 128 MiB, a plain directory as root",
    );
    bench.setting("containers per turn", plan.samples);
    bench.setting("rounds", plan.rounds);
    let mut runtimes = Vec::new();
    for (name, program) in found {
        match stage.open(&name, &program) {
            Ok(runtime) => {
                if runtime.hides_unified() {
                    bench.note(format!(
                        "{name} refuses a cgroup v1 machine that has v2 mounted beside it: \
                         an empty tmpfs hides `unified` from it, so it makes one cgroup less"
                    ));
                }
                runtimes.push(runtime);
            }
            Err(error) => bench.note(format!("{name} cannot be measured here: {error:#}")),
        }
    }
    ensure!(!runtimes.is_empty(), "no runtime can be measured here: {}", bench.notes.join("; "));
    bench.note(
        "berth-bench-oci is Berth's runtime library behind `run` alone, for this benchmark: \
         Berth's shim executes no runtime",
    );
    bench.metrics = turns(plan, &runtimes, stop).await?;
    bench.noise = Some(plan.noise()?);
    plan.settings(&mut bench);
    let measured = |runtime: &Runtime| Measured {
        name: runtime.name.clone(),
        handler: String::new(),
        runtime: Version { name: runtime.name.clone(), version: runtime.version().to_owned() },
    };
    Ok((bench, runtimes.iter().map(measured).collect()))
}

/// Lets `runtimes` run containers in turn.
async fn turns(plan: &Plan, runtimes: &[Runtime], stop: &Arc<AtomicBool>) -> Result<Vec<Metric>> {
    let names = runtimes.iter().map(|runtime| runtime.name.clone()).collect();
    let mut sheet = Sheet::named(names);
    let mut hung = vec![0.0; runtimes.len()];
    for runtime in runtimes {
        runtime.turn(plan.warm_up, stop)?;
    }
    for turn in plan.turns(runtimes.len()) {
        let index = turn.target;
        tokio::select! {
            quiet = plan.quiet() => drop(quiet?),
            () = stopped(stop) => bail!("interrupted"),
        }
        let laps = runtimes[index].turn(plan.samples, stop)?;
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        for (name, of) in LAPS {
            let samples: Vec<f64> = laps.iter().filter_map(of).collect();
            if !samples.is_empty() {
                sheet.add(turn, (name, "ms", Better::Lower), samples);
            }
        }
        hung[index] += laps.iter().map(|lap| if lap.hung { 1.0 } else { 0.0 }).sum::<f64>();
    }
    for (target, hung) in hung.into_iter().enumerate() {
        let turn = Turn { round: 0, target };
        sheet.add(turn, ("containers that hung", "containers", Better::Lower), [hung]);
    }
    Ok(sheet.into_metrics())
}

/// Ends when somebody wants the run to end.
async fn stopped(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a lap has what is measured.
type Of = fn(&Lap) -> Option<f64>;

const LAPS: [(&str, Of); 4] = [
    ("run", |lap| lap.run),
    ("create", |lap| lap.create),
    ("start", |lap| lap.start),
    ("delete", |lap| lap.delete),
];
