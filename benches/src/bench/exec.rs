//! ExecSync `true` in a container that runs.

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::plan::Plan;
use crate::pod::{Clock, Pod};
use crate::report::{Bench, Better, Sheet};
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
    for target in &mut *targets {
        let (pod, _) = target.up("exec").await?;
        commands(target, &pod, plan.warm_up).await?;
        pods.push(pod);
    }
    for turn in plan.turns(targets.len()) {
        plan.quiet().await?;
        let taken = commands(&mut targets[turn.target], &pods[turn.target], plan.samples).await?;
        sheet.add(turn, ("ExecSync", "ms", Better::Lower), taken);
    }
    for (target, pod) in targets.iter_mut().zip(&pods) {
        target.down(pod).await?;
    }
    bench.metrics = sheet.into_metrics();
    Ok(bench)
}

async fn commands(target: &mut Target, pod: &Pod, count: usize) -> Result<Vec<f64>> {
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let mut clock = Clock::start();
        let answer = target.cri.exec(&pod.container, &["true"], TIMEOUT).await;
        taken.push(clock.lap().as_secs_f64() * 1e3);
        let answer = answer.with_context(|| format!("{}: ExecSync", target.name))?;
        let code = answer.exit_code;
        ensure!(code == 0, "{}: `true` ended with {code}", target.name);
    }
    Ok(taken)
}
