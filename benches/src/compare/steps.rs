//! The benchmarks of a comparison, in the order in which they run.
//!
//! Memory comes first: daemons are young then, and "after start" means that.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::bench::{churn, density, exec, idle, lists, pull, start};
use crate::oci;
use crate::peers::Store;
use crate::plan::Plan;
use crate::report::Bench;
use crate::session::Session;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Next to nothing.
    pub(crate) quick: bool,
    /// Longest wait for a quiet machine before a turn, seconds.
    pub(crate) patience: u64,
}

impl Scale {
    /// `full`, or `quick` in a smoke run.
    fn of<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    fn plan(self, rounds: usize, samples: usize, warm_up: usize) -> Plan {
        let rounds = self.of(rounds, 1);
        Plan::of(rounds, self.patience, samples, warm_up).telling()
    }
}

/// One of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Density,
    Start,
    Rested,
    Exec,
    Churn,
    Lists,
    Idle,
    Pull,
    Oci,
}

/// All steps.
const STEPS: &[Step] = &[
    Step::Density,
    Step::Start,
    Step::Rested,
    Step::Exec,
    Step::Churn,
    Step::Lists,
    Step::Idle,
    Step::Pull,
    Step::Oci,
];

/// Those that `names` say; all, if it says none.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Step>> {
    for name in names {
        if !STEPS.iter().any(|step| step.name() == name) {
            let known: Vec<_> = STEPS.iter().map(|step| step.name()).collect();
            bail!("{name:?} is no step; steps are {}", known.join(", "));
        }
    }
    let wanted = |step: &&Step| names.is_empty() || names.iter().any(|name| name == step.name());
    Ok(STEPS.iter().filter(wanted).copied().collect())
}

impl Step {
    /// What it is called, as its benchmark is in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Density => "density",
            Self::Start => "start",
            Self::Rested => "start-rested",
            Self::Exec => "exec",
            Self::Churn => "churn",
            Self::Lists => "lists",
            Self::Idle => "idle",
            Self::Pull => "pull",
            Self::Oci => "oci",
        }
    }

    /// Measures all targets of `session`.
    pub(crate) async fn run(
        self,
        session: &mut Session,
        store: &Store,
        scale: Scale,
    ) -> Result<Bench> {
        let mut bench = match self {
            Self::Density => {
                let (pods, steps, hold) = scale.of((100, 4, 3), (4, 2, 1));
                let options = density::Options { pods, steps, hold };
                let plan = scale.plan(1, pods, 0);
                let run =
                    async |plan: &_, targets: &mut [_]| density::run(plan, targets, &options).await;
                session.measure(&plan, run).await
            }
            Self::Churn => {
                let (pods, clients, warm_up) = scale.of((50, 10, 5), (4, 2, 1));
                let options = churn::Options { pods, clients, warm_up };
                let plan = scale.plan(3, pods, warm_up);
                let run =
                    async |plan: &_, targets: &mut [_]| churn::run(plan, targets, &options).await;
                session.measure(&plan, run).await
            }
            Self::Lists => {
                let (pods, steps, times, warm_up) = scale.of((500, 2, 100, 5), (4, 1, 3, 1));
                let options = lists::Options { pods, steps, times, warm_up };
                let plan = scale.plan(1, times, warm_up);
                let run =
                    async |plan: &_, targets: &mut [_]| lists::run(plan, targets, &options).await;
                session.measure(&plan, run).await
            }
            Self::Idle => {
                let (pods, seconds, alone) = scale.of((100, 20, 5), (4, 2, 1));
                let options = idle::Options { pods, seconds, alone };
                let plan = scale.plan(1, 1, 0);
                let run =
                    async |plan: &_, targets: &mut [_]| idle::run(plan, targets, &options).await;
                session.measure(&plan, run).await
            }
            Self::Oci => {
                let plan = scale.plan(5, scale.of(20, 3), 3);
                oci::run(&plan, &[]).await.map(|(bench, _)| bench)
            }
            Self::Start => self.start(session, scale, Duration::ZERO).await,
            Self::Rested => self.start(session, scale, Duration::from_millis(100)).await,
            Self::Exec => {
                let plan = scale.plan(5, scale.of(30, 3), 5);
                session.measure(&plan, exec::run).await
            }
            Self::Pull => pulls(session, store, scale).await,
        }?;
        self.name().clone_into(&mut bench.name);
        Ok(bench)
    }

    async fn start(self, session: &mut Session, scale: Scale, pause: Duration) -> Result<Bench> {
        let rounds = if self == Self::Rested { 3 } else { 5 };
        let plan = scale.plan(rounds, scale.of(10, 2), 3);
        let start = async |plan: &_, targets: &mut [_]| start::run(plan, targets, pause).await;
        session.measure(&plan, start).await
    }
}

/// Pulls by the first target and its first peer: how images are pulled is no matter of OCI
/// runtimes.
async fn pulls(session: &mut Session, store: &Store, scale: Scale) -> Result<Bench> {
    let made = pull::make(scale.of(1, 20)).context("make the large image")?;
    let reference = store.push("large", &made.image)?;
    let (shape, id) = (made.shape(), made.image.id.to_string());
    drop(made);
    let plan = scale.plan(4, scale.of(20, 3), 1);
    let pull = async |plan: &_, targets: &mut [_]| {
        let pulling = targets.len().min(2);
        let targets = &mut targets[..pulling];
        let source = pull::Source::of(&reference, &shape, Some(id), targets);
        pull::run(plan, targets, &source).await
    };
    session.measure(&plan, pull).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_chosen_by_name_and_run_in_their_own_order() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let chosen = |list: Vec<String>| chosen(&list).unwrap();
        assert_eq!(chosen(names(&["pull", "start"])), [Step::Start, Step::Pull]);
        assert_eq!(chosen(Vec::new()), STEPS);
        assert!(super::chosen(&names(&["fly"])).is_err());
    }
}
