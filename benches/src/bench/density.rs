//! `density`: what idle pods cost in memory, processes and threads.
//!
//! In each turn one runtime has pods and the others have none:
//!
//! ```text
//! settled, read ── pods are added in steps; settled, read after each ──
//!   all pods are removed; processes gone, settled, read again
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use super::fleet::Fleet;
use super::samples::{Plots, Quantity, Samples, counted, milliseconds, number};
use crate::measure::footprint::{Footprint, Group};
use crate::measure::memory::{KERNEL, Settled};
use crate::plan::Plan;
use crate::report::{Bench, Better, Sheet};
use crate::target::Target;

/// Longest wait, after that rest, until memory stays where it is.
const LONGEST: Duration = Duration::from_secs(6);

/// What `density` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Idle pods of one container each.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) pods: usize,
    /// Readings on the way to that number.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) steps: usize,
    /// Least time between a change and its reading, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub(crate) hold: u64,
}

const WHAT: &str = "idle pods of one container each, added in steps; memory is read when it has \
                    settled after each step, and again when all pods were removed";

/// What one target held at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    machine: Settled,
    runtime: Footprint,
}

/// What a turn gives.
struct Turn<'a> {
    samples: Samples,
    plots: &'a mut Plots,
    bench: &'a mut Bench,
    target: usize,
    name: String,
}

/// Lets each target have idle pods, in turn, and reads what they cost.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], options: &Options) -> Result<Bench> {
    ensure!(options.pods > 0 && options.steps > 0, "density needs pods and steps");
    let mut bench = Bench::new("density", WHAT);
    bench.setting("pods", options.pods);
    bench.setting("steps", options.steps);
    bench.setting("rest before each reading, s", options.hold);
    bench.setting("rounds", plan.rounds);
    let mut sheet = Sheet::new(targets);
    let mut plots = Plots::new(targets, "pods");
    for (number, which) in plan.turns(targets.len()).enumerate() {
        plan.quiet().await?;
        let (plots, bench) = (&mut plots, &mut bench);
        let (samples, name) = (Samples::default(), targets[which.target].name.clone());
        let mut turn = Turn { samples, plots, bench, target: which.target, name };
        let fleet = Fleet::new(format!("density-{number}"));
        turn.take(&mut targets[which.target], fleet, options).await?;
        turn.samples.tell(which, &mut sheet);
    }
    bench.metrics = sheet.into_metrics();
    bench.curves = plots.curves();
    explain(&mut bench);
    Ok(bench)
}

fn explain(bench: &mut Bench) {
    bench.note(
        "the drop of MemAvailable is the whole truth of a machine where nothing else happens: \
         kernel, monitors, daemon and the workload itself; PSS is of processes only, and does \
         not change with what else the machine does",
    );
    bench.note(
        "accounted for is what the processes of the runtime and of pods share out among them, \
         and growth of the kernel's own memory: the rest of the drop is somebody else's, or page \
         cache that is in use",
    );
    bench.note(
        "the daemon is the process that answers and what it started that is nothing else; a \
         monitor is whatever watches over a pod from outside (a shim, conmon)",
    );
}

impl Reading {
    async fn take(target: &Target, fleet: &Fleet, options: &Options) -> Result<Self> {
        let hold = Duration::from_secs(options.hold);
        let machine = Settled::wait(hold, hold + LONGEST).await?;
        Ok(Self { machine, runtime: Footprint::read(target.daemon, &fleet.ids)? })
    }

    /// How much MemAvailable fell since `before`, KiB.
    fn taken(&self, before: &Self) -> f64 {
        self.machine.memory.growth(&before.machine.memory).available()
    }

    /// PSS of monitors and pause processes, and the daemon's growth, KiB.
    fn overhead(&self, before: &Self) -> f64 {
        pss(&self.runtime.monitors) + pss(&self.runtime.pause) + self.daemon(before)
    }

    /// What pods hold as far as it is known who holds it, KiB: the PSS of all processes, and
    /// what the kernel says that it holds for itself. Other programs that grow meanwhile are
    /// not in it, as they are in the drop of MemAvailable.
    fn accounted(&self, before: &Self) -> f64 {
        let grown = self.machine.memory.growth(&before.machine.memory);
        let kernel = grown.kinds().filter(|(kind, _)| KERNEL.contains(kind));
        let kernel: f64 = kernel.map(|(_, amount)| amount).sum();
        self.overhead(before) + pss(&self.runtime.workload) + kernel
    }

    /// How much the daemon's PSS grew, KiB.
    fn daemon(&self, before: &Self) -> f64 {
        pss(&self.runtime.daemon) - pss(&before.runtime.daemon)
    }
}

impl Turn<'_> {
    /// Grows `fleet` and removes it again, and reads what it costs on the way.
    async fn take(
        &mut self,
        target: &mut Target,
        mut fleet: Fleet,
        options: &Options,
    ) -> Result<()> {
        let before = Reading::take(target, &fleet, options).await?;
        for step in 1..=options.steps {
            let (from, size) = (fleet.pods.len(), options.pods * step / options.steps);
            for (nth, taken) in fleet.grow(target, size).await?.into_iter().enumerate() {
                let taken = milliseconds(taken);
                self.sample(("up, as pods are added", "ms", Better::Lower), taken);
                self.point(("time until a pod is up", "ms"), from + nth + 1, taken);
            }
            let now = Reading::take(target, &fleet, options).await?;
            self.step(&before, &now, fleet.pods.len());
            if step == options.steps && !fleet.pods.is_empty() {
                self.full(&before, &now, fleet.pods.len());
            }
        }
        for taken in fleet.clear(target).await? {
            self.sample(("down, one after another", "ms", Better::Lower), milliseconds(taken));
        }
        let left = fleet.gone(target).await?;
        let after = Reading::take(target, &fleet, options).await?;
        self.empty(&before, &after, left);
        fleet.tell(&mut self.samples, self.bench);
        Ok(())
    }

    fn sample(&mut self, what: Quantity<'_>, value: f64) {
        self.samples.add(what, value);
    }

    fn point(&mut self, what: (&str, &str), at: usize, value: f64) {
        self.plots.add(self.target, what, at, value);
    }

    /// What `pods` pods took in all.
    fn step(&mut self, before: &Reading, now: &Reading, pods: usize) {
        const MIB: f64 = 1024.0;
        self.point(("drop of MemAvailable", "MiB"), pods, now.taken(before) / MIB);
        let overhead = now.overhead(before) / MIB;
        self.point(("PSS of monitors, pause and daemon growth", "MiB"), pods, overhead);
        self.calm(now, pods);
    }

    /// What each of `pods` pods costs.
    fn full(&mut self, before: &Reading, now: &Reading, pods: usize) {
        let each = counted(pods);
        let mut pod = |name: &str, unit: &str, value: f64| {
            self.sample((&format!("{name}, per pod"), unit, Better::Lower), value / each);
        };
        let runtime = &now.runtime;
        pod("drop of MemAvailable", "KiB", now.taken(before));
        pod("accounted for: PSS of processes and kernel kinds", "KiB", now.accounted(before));
        pod("PSS of monitors, pause and daemon growth", "KiB", now.overhead(before));
        pod("PSS of monitors", "KiB", pss(&runtime.monitors));
        pod("PSS of pause", "KiB", pss(&runtime.pause));
        pod("growth of the daemon's PSS", "KiB", now.daemon(before));
        pod("PSS of the workload", "KiB", pss(&runtime.workload));
        pod("RSS of monitors", "KiB", number(runtime.monitors.memory.rss));
        let grown = now.machine.memory.growth(&before.machine.memory);
        for (kind, amount) in grown.kinds().skip(1) {
            pod(kind, "KiB", amount);
        }
        pod("processes beside the workload", "", number(runtime.beside()));
        let threads = runtime.monitors.threads + runtime.pause.threads;
        pod("threads beside the workload", "", number(threads));
        pod("processes of the workload", "", number(runtime.workload.processes));
        let threads = number(runtime.daemon.threads);
        self.sample(("threads of the daemon, with all pods", "", Better::Lower), threads);
    }

    /// What is left when all pods were removed; `left` processes of them stayed.
    fn empty(&mut self, before: &Reading, after: &Reading, left: u64) {
        let grown = after.machine.memory.growth(&before.machine.memory);
        let name = |what: &str| format!("left after all were removed: {what}");
        self.sample((&name("MemAvailable"), "KiB", Better::Lower), grown.available());
        self.sample((&name("processes"), "", Better::Lower), number(left));
        let mut daemon = |when: &str, reading: &Reading| {
            let group = reading.runtime.daemon;
            let (name, unit) = (format!("daemon's PSS {when}"), "KiB");
            self.sample((&name, unit, Better::Lower), number(group.memory.pss));
            let name = format!("daemon's anonymous PSS {when}");
            self.sample((&name, unit, Better::Lower), number(group.memory.anon));
            let name = format!("daemon's RSS {when}");
            self.sample((&name, unit, Better::Lower), number(group.memory.rss));
        };
        daemon("before the turn", before);
        daemon("after all were removed", after);
        for (kind, amount) in grown.kinds().skip(1) {
            self.sample((&name(kind), "KiB", Better::Lower), amount);
        }
        self.calm(after, 0);
    }

    fn calm(&mut self, reading: &Reading, pods: usize) {
        if !reading.machine.calm() {
            self.bench.note(format!(
                "{}: MemAvailable did not come to rest within {:.0} s at {pods} pods: it varied \
                 by {:.0} KiB",
                self.name,
                reading.machine.after.as_secs_f64(),
                reading.machine.spread
            ));
        }
    }
}

fn pss(group: &Group) -> f64 {
    number(group.memory.pss)
}
