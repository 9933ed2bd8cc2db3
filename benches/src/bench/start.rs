//! One pod at a time: up until its first byte of output is in its log, down until all its
//! verbs have answered, and settled: the processor time of the whole machine, for each pod,
//! until the kernel has really taken it apart.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use tokio::time::sleep;

use super::failures::{Failures, GIVE_UP};
use super::fleet::Fleet;
use super::samples::counted;
use crate::cpu::{Reading, Used};
use crate::plan::{self, Plan};
use crate::pod::{Down, Up};
use crate::quiet::Before;
use crate::report::{Bench, Better, Sheet};
use crate::settle::{self, Objects, Settled};
use crate::target::Target;

/// What `start` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Pods in each turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    pub(crate) pods: usize,
    /// Pods of each runtime before the first turn, which do not count.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) warm_up: usize,
    /// Milliseconds of rest before each pod: a node seldom starts pods back to back, and a
    /// machine that slept is slower.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub(crate) pause: u64,
    /// Pods with the network of the node: what is left when none has to be made for them.
    #[arg(long)]
    pub(crate) host_network: bool,
}

const WHAT: &str = "one pod with one container at a time, up until its first byte of output \
                    is in its log, then down";

/// How pods of one target went.
#[derive(Default)]
struct Pods {
    ups: Vec<Up>,
    downs: Vec<Down>,
}

/// What a turn gave.
struct Turn {
    pods: Pods,
    used: Used,
    before: Before,
    settled: Settled,
    restless: Option<String>,
    written: Duration,
}

/// Starts and ends pods of all targets in turn.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], pause: Duration) -> Result<Bench> {
    ensure!(plan.samples > 0 && plan.rounds > 0, "nothing to measure: no pods or no rounds");
    let name = if pause.is_zero() { "start" } else { "start-rested" };
    let mut bench = Bench::new(name, WHAT);
    bench.setting("pods per turn", plan.samples);
    bench.setting("rounds", plan.rounds);
    bench.setting("rest before each pod, ms", pause.as_millis());
    let host = targets.iter().any(|target| target.host_network);
    bench.setting("network", if host { "the node's" } else { "a pod's own" });
    let mut sheet = Sheet::new(targets);
    let mut failures = vec![Failures::default(); targets.len()];
    for (target, failures) in targets.iter_mut().zip(&mut failures) {
        let before = Objects::count(target.daemon).await?;
        pods(target, ("warm", plan.warm_up), Duration::ZERO, failures).await?;
        before.settle(target.daemon).await?;
    }
    for (number, which) in plan.turns(targets.len()).enumerate() {
        let target = &mut targets[which.target];
        let (name, failures) = (format!("turn-{number}"), &mut failures[which.target]);
        let turn = one_turn(plan, target, &name, pause, failures).await?;
        for left in &turn.settled.left {
            bench.note(format!("{}: not settled: {left}", target.name));
        }
        if !turn.before.quiet {
            bench.note("settled means nothing here: turns began on a machine that was not quiet");
        }
        if let Some(restless) = &turn.restless {
            bench.note(format!("{}: {restless}", target.name));
        }
        turn.tell(which, &mut sheet);
    }
    super::failures::tell(&failures, &mut sheet, &mut bench);
    bench.metrics = sheet.into_metrics();
    if bench.metrics.iter().all(|metric| metric.name != "up") {
        bail!("no pod came up: {}", bench.notes.join("; "));
    }
    explain(&mut bench);
    Ok(bench)
}

fn explain(bench: &mut Bench) {
    bench.note(
        "up is the sum of its three verbs and of the wait for output; first byte is counted from \
         StartContainer's answer, and 0 if output was there before",
    );
    bench.note(
        "settled is processor time of the whole machine for each pod, from before its \
         RunPodSandbox until its network namespace, links and cgroups are gone and the machine \
         rests as before (0.8 s at least, spread over the pods of a turn), without idle, iowait, \
         steal, the machine's idle rate before the first pod of anybody, and this tool's own \
         time; rows of their own say what was taken off, and what was not although the machine \
         was busier just before the turn: so much of settled may be somebody else's",
    );
    bench.note(
        "turns begin and end with `sync`, so that no turn writes what another one left; settled \
         has its processor time, and a row says how long it took after all pods of a turn",
    );
}

async fn one_turn(
    plan: &Plan,
    target: &mut Target,
    name: &str,
    pause: Duration,
    failures: &mut Failures,
) -> Result<Turn> {
    settle::written().await?;
    let before = plan.quiet().await?;
    let objects = Objects::count(target.daemon).await?;
    let start = Reading::take()?;
    let pods = pods(target, (name, plan.samples), pause, failures).await?;
    let settled = objects.settle(target.daemon).await?;
    let written = settle::written().await?;
    let restless = settle::rest(before.idle).await?;
    let used = Reading::take()?.since(&start);
    Ok(Turn { pods, used, before, settled, restless, written })
}

/// Starts and ends `count` pods called `name` and a number. What fails is counted and removed.
async fn pods(
    target: &mut Target,
    (name, count): (&str, usize),
    pause: Duration,
    failures: &mut Failures,
) -> Result<Pods> {
    let (mut pods, mut in_a_row) = (Pods::default(), 0);
    for number in 0..count {
        sleep(pause).await;
        match pods.one(target, &format!("{name}-{number}")).await {
            Ok(()) => in_a_row = 0,
            Err(error) => {
                failures.note(&error);
                in_a_row += 1;
                let mut half = Fleet::default();
                half.clear(target).await?;
                failures.add(half.failures);
            }
        }
        if in_a_row == GIVE_UP {
            break;
        }
    }
    Ok(pods)
}

impl Pods {
    async fn one(&mut self, target: &mut Target, name: &str) -> Result<()> {
        let (pod, up) = target.up(name).await?;
        self.ups.push(up);
        self.downs.push(target.down(&pod).await?);
        Ok(())
    }
}

impl Turn {
    /// Writes down that the turn `which` gave this.
    fn tell(&self, which: plan::Turn, sheet: &mut Sheet) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let lower = |name| (name, "ms", Better::Lower);
        if self.pods.ups.is_empty() {
            return;
        }
        let ups = self.pods.ups.iter();
        let downs = self.pods.downs.iter();
        let mut up = |name, of: fn(&Up) -> Duration| {
            sheet.add(which, lower(name), ups.clone().map(|up| ms(of(up))));
        };
        up("up", Up::total);
        up("RunPodSandbox", |up| up.run);
        up("CreateContainer", |up| up.create);
        up("StartContainer", |up| up.start);
        up("first byte", |up| up.output);
        let mut down = |name, of: fn(&Down) -> Duration| {
            sheet.add(which, lower(name), downs.clone().map(|down| ms(of(down))));
        };
        down("down", Down::total);
        down("StopContainer", |down| down.stop);
        down("RemoveContainer", |down| down.remove);
        down("StopPodSandbox", |down| down.stop_sandbox);
        down("RemovePodSandbox", |down| down.remove_sandbox);
        // Those that failed are in what the machine used, too.
        let pods = counted(self.pods.ups.len());
        let cpu = |name| (name, "ms CPU", Better::Lower);
        for (name, seconds) in self.before.bill(&self.used) {
            sheet.add(which, cpu(name), [seconds * 1e3 / pods]);
        }
        sheet.add(which, lower("sync after all pods"), [ms(self.written)]);
        sheet.add(which, lower("last pod gone after"), [ms(self.settled.after)]);
    }
}
