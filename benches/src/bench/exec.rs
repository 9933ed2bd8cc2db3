//! ExecSync `true` in a container that runs.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::failures::{Failures, GIVE_UP};
use super::samples::counted;
use crate::cpu::Reading;
use crate::plan::Plan;
use crate::pod::{Clock, Pod};
use crate::report::{Bench, Better, Sheet};
use crate::settle;
use crate::target::Target;

/// What `exec` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Commands in each turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    pub(crate) commands: usize,
    /// Commands of each runtime before the first turn, which do not count.
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    pub(crate) warm_up: usize,
}

/// Seconds that a command may take.
const TIMEOUT: i64 = 30;

/// Runs commands in one container of each target, in turn.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target]) -> Result<Bench> {
    ensure!(plan.samples > 0 && plan.rounds > 0, "nothing to measure: no commands or no rounds");
    let mut bench = Bench::new("exec", "ExecSync `true` in a running container, one at a time");
    bench.setting("commands per turn", plan.samples);
    bench.setting("rounds", plan.rounds);
    let mut sheet = Sheet::new(targets);
    let mut pods = Vec::new();
    let mut failures = vec![Failures::default(); targets.len()];
    for (target, failures) in targets.iter_mut().zip(&mut failures) {
        let pod = match target.up("exec").await {
            Ok((pod, _)) => Some(pod),
            Err(error) => {
                failures.note(&error);
                None
            }
        };
        if let Some(pod) = &pod {
            commands(target, pod, plan.warm_up, failures).await;
        }
        pods.push(pod);
    }
    for turn in plan.turns(targets.len()) {
        settle::written().await?;
        let before = plan.quiet().await?;
        let index = turn.target;
        let Some(pod) = &pods[index] else { continue };
        let (target, failures) = (&mut targets[index], &mut failures[index]);
        let start = Reading::take()?;
        let taken = commands(target, pod, plan.samples, failures).await;
        settle::written().await?;
        let restless = settle::rest(before.idle).await?;
        let used = Reading::take()?.since(&start);
        if let Some(restless) = restless {
            bench.note(format!("{}: {restless}", target.name));
        }
        if !before.quiet {
            bench.note("settled means nothing here: turns began on a machine that was not quiet");
        }
        if !taken.is_empty() {
            for (name, seconds) in before.bill(&used) {
                let each = seconds * 1e3 / counted(taken.len());
                sheet.add(turn, (name, "ms CPU", Better::Lower), [each]);
            }
            sheet.add(turn, ("ExecSync", "ms", Better::Lower), taken);
        }
    }
    for (target, (pod, failures)) in targets.iter_mut().zip(pods.iter().zip(&mut failures)) {
        let Some(pod) = pod else { continue };
        if let Err(error) = target.down(pod).await {
            failures.note(&error);
        }
    }
    super::failures::tell(&failures, &mut sheet, &mut bench);
    bench.metrics = sheet.into_metrics();
    if bench.metrics.iter().all(|metric| metric.name != "ExecSync") {
        bail!("no command ran: {}", bench.notes.join("; "));
    }
    Ok(bench)
}

/// How long each of `count` commands took. Those that fail are counted instead; some in a row
/// end it.
async fn commands(
    target: &mut Target,
    pod: &Pod,
    count: usize,
    failures: &mut Failures,
) -> Vec<f64> {
    let (mut taken, mut in_a_row) = (Vec::with_capacity(count), 0);
    for _ in 0..count {
        match command(target, pod).await {
            Ok(time) => {
                taken.push(time.as_secs_f64() * 1e3);
                in_a_row = 0;
            }
            Err(error) => {
                failures.note(&error);
                in_a_row += 1;
            }
        }
        if in_a_row == GIVE_UP {
            break;
        }
    }
    taken
}

async fn command(target: &mut Target, pod: &Pod) -> Result<Duration> {
    let mut clock = Clock::start();
    let answer = target.cri.exec(&pod.container, &["true"], TIMEOUT).await;
    let taken = clock.lap();
    let answer = answer.with_context(|| format!("{}: ExecSync", target.name))?;
    let code = answer.exit_code;
    ensure!(code == 0, "{}: `true` ended with {code}", target.name);
    Ok(taken)
}
