//! `idle`: what a runtime does while pods do nothing.
//!
//! Every target has its pods at the same time. In each turn one of them is first left alone
//! and then polled as kubelet polls: pods and containers are listed every second, the status
//! is asked for every five, statistics every ten (the first time at once). The others are
//! left alone meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use clap::Args;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::failures::Failures;
use super::fleet::{self, Fleet};
use super::samples::{Samples, number};
use crate::cpu;
use crate::measure::tree::Kind;
use crate::measure::work;
use crate::plan::{Plan, Turn};
use crate::report::{Bench, Better, Sheet};
use crate::target::Target;

/// How long new pods are left alone before the first turn.
const REST: Duration = Duration::from_secs(3);
const SECOND: Duration = Duration::from_secs(1);
/// Polls from one question for the runtime's status to the next.
const STATUS: u64 = 5;
/// Polls from one question for statistics to the next.
const STATS: u64 = 10;

/// What `idle` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Idle pods of one container each.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) pods: usize,
    /// How long a target is polled in each round, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub(crate) seconds: u64,
    /// How long it is left alone before that, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) alone: u64,
}

const WHAT: &str = "idle pods, left alone and then polled as kubelet polls: lists every second, \
                    status every 5 s, statistics every 10 s";

/// A moment from which on is counted what is done.
struct Span {
    runtime: work::Reading,
    /// The same, looked at every second.
    seen: work::Reading,
    machine: cpu::Reading,
}

/// Polls each target, in turn, and reads what its processes do.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], options: &Options) -> Result<Bench> {
    ensure!(options.pods > 0 && options.seconds > 0, "idle needs pods and seconds");
    let mut bench = Bench::new("idle", WHAT);
    bench.setting("pods", options.pods);
    bench.setting("alone, s", options.alone);
    bench.setting("polled, s", options.seconds);
    bench.setting("rounds", plan.rounds);
    let mut sheet = Sheet::new(targets);
    let mut fleets: Vec<Fleet> = targets.iter().map(|_| Fleet::new("idle".into())).collect();
    for (fleet, target) in fleets.iter_mut().zip(&mut *targets) {
        fleet.grow(target, options.pods).await?;
    }
    sleep(REST).await;
    for turn in plan.turns(targets.len()) {
        plan.quiet().await?;
        let (target, fleet) = (&mut targets[turn.target], &mut fleets[turn.target]);
        let mut samples = Samples::default();
        if options.alone > 0 {
            let mut alone = Span::begin(target, fleet)?;
            for _ in 0..options.alone {
                sleep(SECOND).await;
                alone.seen.look()?;
            }
            alone.end("alone", target, fleet, &mut samples)?;
        }
        let mut polled = Span::begin(target, fleet)?;
        poll(target, options.seconds, &mut polled, &mut fleet.failures).await?;
        polled.end("polled", target, fleet, &mut samples)?;
        samples.tell(turn, &mut sheet);
    }
    fleet::note_sharing(targets, &mut bench);
    for (index, (fleet, target)) in fleets.iter_mut().zip(targets).enumerate() {
        fleet.clear(target).await?;
        let mut samples = Samples::default();
        fleet.tell(&mut samples, &mut bench);
        samples.tell(Turn { round: 0, target: index }, &mut sheet);
    }
    bench.metrics = sheet.into_metrics();
    explain(&mut bench);
    Ok(bench)
}

fn explain(bench: &mut Bench) {
    bench.note(
        "CPU is of the processes themselves and of children that they waited for; wakeups are \
         voluntary context switches, each of which ends with one; threads are looked at every \
         second before they end, but those of children that came and went are not in it",
    );
    bench.note(
        "CPU of the whole machine is without this tool's own, and with whatever else ran: look \
         at it for work that a runtime has others do",
    );
}

/// Asks what kubelet asks, for `seconds`, and looks at the threads of `span`.
async fn poll(
    target: &mut Target,
    seconds: u64,
    span: &mut Span,
    failures: &mut Failures,
) -> Result<()> {
    let mut ticks = interval(SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for second in 0..seconds {
        ticks.tick().await;
        if let Err(error) = questions(target, second).await {
            failures.note(&error);
        }
        span.seen.look()?;
    }
    ticks.tick().await;
    Ok(())
}

async fn questions(target: &mut Target, second: u64) -> Result<()> {
    let said = |verb| format!("{}: {verb}, polling", target.name);
    let runtime = &mut target.cri.runtime;
    let listed = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
    listed.with_context(|| said("ListPodSandbox"))?;
    let listed = runtime.list_containers(v1::ListContainersRequest::default()).await;
    listed.with_context(|| said("ListContainers"))?;
    if second.is_multiple_of(STATUS) {
        let status = runtime.status(v1::StatusRequest::default()).await;
        status.with_context(|| said("Status"))?;
    }
    if second.is_multiple_of(STATS) {
        let stats = runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default());
        stats.await.with_context(|| said("ListPodSandboxStats"))?;
        let stats = runtime.list_container_stats(v1::ListContainerStatsRequest::default());
        stats.await.with_context(|| said("ListContainerStats"))?;
        let disk = target.cri.image.image_fs_info(v1::ImageFsInfoRequest::default()).await;
        disk.with_context(|| said("ImageFsInfo"))?;
    }
    Ok(())
}

impl Span {
    fn begin(target: &Target, fleet: &Fleet) -> Result<Self> {
        let runtime = work::Reading::take(target.daemon, &fleet.ids)?;
        Ok(Self { seen: runtime.clone(), runtime, machine: cpu::Reading::take()? })
    }

    /// Adds what was done since, to quantities called by `how` the time was spent.
    fn end(self, how: &str, target: &Target, fleet: &Fleet, samples: &mut Samples) -> Result<()> {
        let used = cpu::Reading::take()?.since(&self.machine);
        let now = work::Reading::take(target.daemon, &fleet.ids)?.remembering(self.seen);
        let wall = used.wall.as_secs_f64();
        ensure!(wall > 0.0, "no time has passed");
        let done = |kind| now.since(&self.runtime, kind);
        let (daemon, monitors, pause) =
            (done(Kind::Daemon), done(Kind::Monitor), done(Kind::Pause));
        let mut add = |what: &str, unit: &str, value: f64| {
            samples.add((&format!("{how}: {what}"), unit, Better::Lower), value);
        };
        let mut cpu = |what: &str, time: Duration| {
            add(&format!("CPU of {what}"), "% of a core", time.as_secs_f64() / wall * 100.0);
        };
        cpu("the daemon", daemon.cpu);
        cpu("all monitors and pause", monitors.cpu + pause.cpu);
        cpu("the whole machine", used.machine.saturating_sub(used.own));
        let mut rate = |what: &str, count: u64| add(what, "1/s", number(count) / wall);
        rate("wakeups of the daemon", daemon.wakeups);
        rate("wakeups of all monitors and pause", monitors.wakeups + pause.wakeups);
        let preempted = daemon.preemptions + monitors.preemptions + pause.preemptions;
        rate("involuntary switches of all", preempted);
        Ok(())
    }
}
