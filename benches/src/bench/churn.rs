//! `churn`: many pods at once, by several clients.
//!
//! ```text
//! clients start pods ── all have written their first byte ── clients end them ──
//!   every verb has answered ── links, cgroups, namespaces and processes are gone
//! ```
//!
//! What a runtime leaves for later is in the last rate and in the processor time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::clients;
use super::fleet::Fleet;
use super::samples::{Samples, counted, milliseconds, number};
use crate::cpu;
use crate::plan::Plan;
use crate::pod::{Pod, Up};
use crate::quiet::Before;
use crate::report::{Bench, Better, Sheet};
use crate::settle::{self, Objects};
use crate::target::Target;

/// What `churn` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Pods of one container each, in every turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    pub(crate) pods: usize,
    /// Clients that start and end them, each one pod at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub(crate) clients: usize,
    /// Pods of each runtime before the first turn, which do not count.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) warm_up: usize,
}

/// What it is called that is settled in other benchmarks.
const CYCLE: &str = "CPU of the whole machine, per pod cycle";
const WHAT: &str = "many pods of one container each, started and then ended by several clients, \
                    each of which does one pod at a time";

/// What a turn gives.
struct Turn<'a> {
    samples: Samples,
    bench: &'a mut Bench,
    fleet: Fleet,
    name: String,
}

/// Lets each target start and end many pods, in turn.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], options: &Options) -> Result<Bench> {
    ensure!(options.pods > 0 && options.clients > 0, "churn needs pods and clients");
    let mut bench = Bench::new("churn", WHAT);
    bench.setting("pods", options.pods);
    bench.setting("clients", options.clients);
    bench.setting("rounds", plan.rounds);
    let mut sheet = Sheet::new(targets);
    for target in &mut *targets {
        let mut warm = Fleet::new("churn-warm".to_owned());
        warm.grow(target, plan.warm_up).await?;
        warm.clear(target).await?;
    }
    for (number, which) in plan.turns(targets.len()).enumerate() {
        settle::written().await?;
        let before = plan.quiet().await?;
        let name = format!("churn-{number}");
        let (samples, fleet) = (Samples::default(), Fleet::default());
        let mut turn = Turn { samples, bench: &mut bench, fleet, name };
        turn.take(&mut targets[which.target], options, before).await?;
        turn.samples.tell(which, &mut sheet);
    }
    bench.metrics = sheet.into_metrics();
    explain(&mut bench);
    Ok(bench)
}

fn explain(bench: &mut Bench) {
    bench.note(
        "a pod is up when its first byte of output is in its log; the rates are of pods that came \
         up and went, over the time from the first client's first request to the last one's end",
    );
    bench.note(
        "a pod is gone when its links, cgroups and network namespace are; processor time is \
         counted until the machine rests after that, without this tool's own and the machine's \
         idle rate before the first pod of anybody; `sync` is in it, with which turns begin and end",
    );
}

impl Turn<'_> {
    async fn take(&mut self, target: &mut Target, options: &Options, before: Before) -> Result<()> {
        let objects = Objects::count(target.daemon).await?;
        let machine = cpu::Reading::take()?;
        self.start(target, options).await?;
        let (ended, wall) = self.end(target, options).await?;
        let answered = Instant::now();
        if self.fleet.failures.count() > 0 {
            // What failed to go is removed, and is in the time until all is gone.
            self.fleet.clear(target).await?;
        }
        let removing = answered.elapsed();
        let settled = objects.settle(target.daemon).await?;
        self.rate("pods gone", ended, wall + removing + settled.after);
        let written = settle::written().await?;
        let restless = settle::rest(before.idle).await?;
        let used = cpu::Reading::take()?.since(&machine);
        self.bill(ended, &used, before);
        self.took("sync after all pods", written);
        if let Some(restless) = restless {
            self.bench.note(format!("{}: {restless}", target.name));
        }
        let left = self.fleet.gone(target).await?;
        self.samples.add(("processes left", "", Better::Lower), number(left));
        for what in settled.left {
            self.bench.note(format!("{}: not settled: {what}", target.name));
        }
        self.fleet.tell(&mut self.samples, self.bench);
        Ok(())
    }

    async fn start(&mut self, target: &mut Target, options: &Options) -> Result<()> {
        let name = self.name.clone();
        let up = async move |target: &mut Target, number: usize| {
            target.up(&format!("{name}-{number}")).await
        };
        let ups = clients::run(target, options.clients, options.pods, up).await?;
        for result in ups.results {
            match result {
                Ok((pod, up)) => {
                    self.fleet.pods.push(pod);
                    self.up(up);
                }
                Err(error) => self.fleet.failures.note(&error),
            }
        }
        self.rate("pods up", self.fleet.pods.len(), ups.wall);
        self.fleet.learn(target).await
    }

    /// Says what the machine `used` for each of `ended` pods.
    fn bill(&mut self, ended: usize, used: &cpu::Used, before: Before) {
        if ended == 0 {
            return;
        }
        for (name, seconds) in before.bill(used) {
            let name = if name == "settled" { CYCLE } else { name };
            self.samples.add((name, "ms CPU", Better::Lower), seconds * 1e3 / counted(ended));
        }
        if !before.quiet {
            self.bench.note("CPU means nothing here: turns began on a machine that was not quiet");
        }
    }

    /// Says how many pods went as they should, and how long all took together.
    async fn end(&mut self, target: &mut Target, options: &Options) -> Result<(usize, Duration)> {
        let pods: Arc<[Pod]> = std::mem::take(&mut self.fleet.pods).into();
        let count = pods.len();
        let down = async move |target: &mut Target, number: usize| target.down(&pods[number]).await;
        let downs = clients::run(target, options.clients, count, down).await?;
        let mut ended = 0;
        for result in downs.results {
            match result {
                Ok(down) => {
                    ended += 1;
                    self.took("down, under load", down.total());
                }
                Err(error) => self.fleet.failures.note(&error),
            }
        }
        self.rate("pods down", ended, downs.wall);
        Ok((ended, downs.wall))
    }

    fn rate(&mut self, what: &str, pods: usize, time: Duration) {
        let rate = if time.is_zero() { 0.0 } else { counted(pods) / time.as_secs_f64() };
        self.samples.add((what, "1/s", Better::Higher), rate);
    }

    fn up(&mut self, up: Up) {
        self.took("up, under load", up.total());
        self.took("RunPodSandbox, under load", up.run);
        self.took("CreateContainer, under load", up.create);
        self.took("StartContainer, under load", up.start);
    }

    fn took(&mut self, what: &str, time: Duration) {
        self.samples.add((what, "ms", Better::Lower), milliseconds(time));
    }
}
