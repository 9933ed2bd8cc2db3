//! `lists`: how long the questions take that kubelet asks again and again, and how that
//! grows with the number of pods.
//!
//! Every target has its pods at the same time and idle; questions go to one of them at a
//! time, in turn. An answer that leaves pods out, or has no numbers in it, is a failure. A
//! runtime may answer from memory what it measured before: how old the numbers of
//! statistics are is measured too.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_api::v1::runtime_service_client::RuntimeServiceClient;
use clap::Args;
use nix::time::{ClockId, clock_gettime};
use tonic::transport::Channel;

use super::fleet::{self, Fleet};
use super::samples::{Plots, Samples, milliseconds};
use crate::plan::{Plan, Turn};
use crate::report::{Bench, Better, Sheet};
use crate::target::Target;

/// How long new pods are left alone before the first question, and runtimes before a question
/// whose answer they might remember.
const REST: Duration = Duration::from_secs(2);

/// What `lists` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Idle pods of one container each.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) pods: usize,
    /// Numbers of pods on the way to that at which is measured too.
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    pub(crate) steps: usize,
    /// Times that each question is asked in each turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    pub(crate) times: usize,
    /// Times that it is asked first, which do not count.
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    pub(crate) warm_up: usize,
}

const WHAT: &str = "questions that kubelet asks again and again, without filters, to a runtime \
                    with idle pods";

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Question {
    Sandboxes,
    Containers,
    Status,
    SandboxStats,
    ContainerStats,
}

/// What an answer was like.
#[derive(Clone, Copy, Debug)]
struct Answer {
    took: Duration,
    /// How many pods or containers it has.
    items: usize,
    /// How old the oldest number in it is.
    age: Option<Duration>,
}

/// Asks each target, in turn, at growing numbers of pods.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], options: &Options) -> Result<Bench> {
    ensure!(options.pods > 0 && options.steps > 0, "lists needs pods and steps");
    let mut bench = Bench::new("lists", WHAT);
    bench.setting("pods", options.pods);
    bench.setting("steps", options.steps);
    bench.setting("questions of each kind per turn", plan.samples);
    bench.setting("rounds", plan.rounds);
    let mut sheet = Sheet::new(targets);
    let mut plots = Plots::new(targets, "pods");
    let mut fleets: Vec<Fleet> = targets.iter().map(|_| Fleet::new("lists".into())).collect();
    for step in 1..=options.steps {
        let size = options.pods * step / options.steps;
        for (fleet, target) in fleets.iter_mut().zip(&mut *targets) {
            fleet.grow(target, size).await?;
        }
        tokio::time::sleep(REST).await;
        for turn in plan.turns(targets.len()) {
            let index = turn.target;
            plan.quiet().await?;
            let (target, fleet) = (&mut targets[index], &mut fleets[index]);
            let mut samples = Samples::default();
            for (question, answer) in ask_all(plan, target, fleet).await {
                let took = milliseconds(answer.took);
                plots.add(index, (question.verb(), "ms"), fleet.pods.len(), took);
                answer.tell(question, &mut samples);
            }
            if step == options.steps {
                for question in [Question::SandboxStats, Question::ContainerStats] {
                    rested(question, target, fleet, &mut samples).await;
                }
                samples.tell(turn, &mut sheet);
            }
        }
    }
    fleet::note_sharing(targets, &mut bench);
    for (index, (fleet, target)) in fleets.iter_mut().zip(targets).enumerate() {
        fleet.clear(target).await?;
        let mut samples = Samples::default();
        fleet.tell(&mut samples, &mut bench);
        samples.tell(Turn { round: 0, target: index }, &mut sheet);
    }
    bench.metrics = sheet.into_metrics();
    bench.curves = plots.curves();
    bench.note(
        "an answer may be made of what was measured before: age is that of the oldest number in \
         it when it arrived",
    );
    Ok(bench)
}

async fn ask_all(plan: &Plan, target: &mut Target, fleet: &mut Fleet) -> Vec<(Question, Answer)> {
    let mut answers = Vec::new();
    for sample in 0..plan.warm_up + plan.samples {
        for question in Question::ALL {
            match ask(question, target, fleet, sample).await {
                Ok(answer) if sample >= plan.warm_up => answers.push((question, answer)),
                Ok(_) => {}
                Err(error) => fleet.failures.note(&error),
            }
        }
    }
    answers
}

/// Asks after a rest, as kubelet does: what was remembered since the last question is too
/// old to be told again.
async fn rested(question: Question, target: &mut Target, fleet: &mut Fleet, samples: &mut Samples) {
    tokio::time::sleep(REST).await;
    match ask(question, target, fleet, 0).await {
        Ok(answer) => {
            let name = format!("{}, after {} s", question.verb(), REST.as_secs());
            samples.add((&name, "ms", Better::Lower), milliseconds(answer.took));
        }
        Err(error) => fleet.failures.note(&error),
    }
}

async fn ask(
    question: Question,
    target: &mut Target,
    fleet: &Fleet,
    sample: usize,
) -> Result<Answer> {
    let what = || format!("{}: {}", target.name, question.verb());
    let wanted = if matches!(question, Question::Status) { 1 } else { fleet.pods.len() };
    let answer = question.put(&mut target.cri.runtime.clone(), fleet, sample).await;
    let answer = answer.with_context(what)?;
    let found = answer.items;
    ensure!(found >= wanted, "{}: the answer leaves some out", what());
    Ok(answer)
}

impl Question {
    const ALL: [Self; 5] =
        [Self::Sandboxes, Self::Containers, Self::Status, Self::SandboxStats, Self::ContainerStats];

    fn verb(self) -> &'static str {
        match self {
            Self::Sandboxes => "ListPodSandbox",
            Self::Containers => "ListContainers",
            Self::Status => "ContainerStatus",
            Self::SandboxStats => "ListPodSandboxStats",
            Self::ContainerStats => "ListContainerStats",
        }
    }

    /// Asks, without filters.
    async fn put(self, runtime: &mut Runtime, fleet: &Fleet, sample: usize) -> Result<Answer> {
        let started = Instant::now();
        let answer = |items, age| Answer { took: started.elapsed(), items, age };
        Ok(match self {
            Self::Sandboxes => {
                let listed = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
                answer(listed.into_inner().items.len(), None)
            }
            Self::Containers => {
                let listed = runtime.list_containers(v1::ListContainersRequest::default()).await?;
                answer(listed.into_inner().containers.len(), None)
            }
            Self::Status => {
                let pod = fleet.pods.get(sample % fleet.pods.len().max(1));
                let container_id = pod.context("there is no pod")?.container.clone();
                let request = v1::ContainerStatusRequest { container_id, verbose: false };
                let status = runtime.container_status(request).await?;
                answer(status.into_inner().status.iter().len(), None)
            }
            Self::SandboxStats => {
                let request = v1::ListPodSandboxStatsRequest::default();
                let stats = runtime.list_pod_sandbox_stats(request).await?;
                let took = answer(0, None);
                let times = stats.into_inner().stats.into_iter().filter_map(sandbox_time);
                took.with_times(now()?, times)
            }
            Self::ContainerStats => {
                let request = v1::ListContainerStatsRequest::default();
                let stats = runtime.list_container_stats(request).await?;
                let took = answer(0, None);
                let times = stats.into_inner().stats.into_iter();
                took.with_times(now()?, times.filter_map(|stats| Some(stats.cpu?.timestamp)))
            }
        })
    }
}

type Runtime = RuntimeServiceClient<Channel>;

/// Time since 1970 by the clock that statistics are stamped with.
fn now() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).context("read the clock")?;
    Ok(Duration::from(now))
}

fn sandbox_time(stats: v1::PodSandboxStats) -> Option<i64> {
    Some(stats.linux?.cpu?.timestamp)
}

impl Answer {
    fn tell(self, question: Question, samples: &mut Samples) {
        samples.add((question.verb(), "ms", Better::Lower), milliseconds(self.took));
        if let Some(age) = self.age {
            let name = format!("{}: age", question.verb());
            samples.add((&name, "ms", Better::Lower), milliseconds(age));
        }
    }

    /// With items that were measured at `times`, nanoseconds after 1970.
    fn with_times(self, now: Duration, times: impl Iterator<Item = i64>) -> Self {
        let times: Vec<i64> = times.collect();
        let oldest = times.iter().min().and_then(|oldest| u64::try_from(*oldest).ok());
        let age = oldest.map(|oldest| now.saturating_sub(Duration::from_nanos(oldest)));
        Self { items: times.len(), age, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_without_numbers_are_no_items_and_age_is_that_of_the_oldest() {
        let before = |seconds: i64| (100 - seconds) * 1_000_000_000;
        let now = Duration::from_secs(100);
        let plain = Answer { took: Duration::ZERO, items: 0, age: None };
        let answer = plain.with_times(now, [before(3), before(9), before(5)].into_iter());
        assert_eq!(answer.items, 3);
        assert_eq!(answer.age.unwrap().as_secs(), 9);
        let none = plain.with_times(now, std::iter::empty());
        assert_eq!((none.items, none.age), (0, None));
    }
}
