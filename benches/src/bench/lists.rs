//! `lists`: how long the questions take that kubelet asks again and again, and how that
//! grows with the number of pods.
//!
//! Every target has its pods at the same time and idle; questions go to one of them at a
//! time, in turn. An answer that leaves pods out, or has no numbers in it, is a failure. A
//! runtime may answer from memory what it measured before: how old the numbers of
//! statistics are is measured too, those of writable layers apart, which are dear to measure
//! and commonly kept for longer.

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
/// whose answer they might remember. What they keep for longer shows in its age.
const REST: Duration = Duration::from_secs(2);

/// Statistics are asked for once in so many times: where a runtime measures them anew for each
/// answer, they take seconds.
const SPARSE: usize = 5;

/// How often a question is asked after a rest.
const RESTED: usize = 5;

/// What `lists` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Idle pods of one container each.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) pods: usize,
    /// Numbers of pods on the way to that at which is measured too.
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    pub(crate) steps: usize,
    /// Times that each question is asked in each turn; for statistics, a fifth of that.
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
    ages: Ages,
}

/// How old the oldest numbers in an answer are, where it has any.
#[derive(Clone, Copy, Debug, Default)]
struct Ages {
    /// CPU, memory, network, processes.
    usage: Option<Duration>,
    writable_layer: Option<Duration>,
}

/// When the numbers of one pod or container were measured, nanoseconds after 1970; no number
/// has the time 0.
#[derive(Clone, Debug, Default)]
struct Times {
    usage: Vec<i64>,
    writable_layer: Vec<i64>,
}

/// Asks each target, in turn, at growing numbers of pods.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], options: &Options) -> Result<Bench> {
    ensure!(options.pods > 0 && options.steps > 0, "lists needs pods and steps");
    let mut bench = Bench::new("lists", WHAT);
    bench.setting("pods", options.pods);
    bench.setting("steps", options.steps);
    bench.setting("questions of each kind per turn, statistics a fifth", plan.samples);
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
                answer.tell(question.verb(), &mut samples);
            }
            if step == options.steps {
                for _ in 0..RESTED {
                    rested(Question::SandboxStats, target, fleet, &mut samples).await;
                    rested(Question::ContainerStats, target, fleet, &mut samples).await;
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
         it when it arrived, that of a writable layer apart: what is kept for long costs next to \
         nothing, also after the rest",
    );
    Ok(bench)
}

async fn ask_all(plan: &Plan, target: &mut Target, fleet: &mut Fleet) -> Vec<(Question, Answer)> {
    let mut answers = Vec::new();
    for sample in 0..plan.warm_up + plan.samples {
        let asked =
            |question: &Question| !question.is_of_statistics() || sample.is_multiple_of(SPARSE);
        for question in Question::ALL.into_iter().filter(asked) {
            match ask(question, target, fleet, sample).await {
                Ok(answer) if sample >= plan.warm_up => answers.push((question, answer)),
                Ok(_) => {}
                Err(error) => fleet.failures.note(&error),
            }
        }
    }
    answers
}

/// Asks after a rest, as kubelet does: what is remembered for a moment only is forgotten.
async fn rested(question: Question, target: &mut Target, fleet: &mut Fleet, samples: &mut Samples) {
    tokio::time::sleep(REST).await;
    match ask(question, target, fleet, 0).await {
        Ok(answer) => {
            let name = format!("{}, after {} s", question.verb(), REST.as_secs());
            answer.tell(&name, samples);
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

    fn is_of_statistics(self) -> bool {
        matches!(self, Self::SandboxStats | Self::ContainerStats)
    }

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
        let answer = |items| Answer { took: started.elapsed(), items, ages: Ages::default() };
        Ok(match self {
            Self::Sandboxes => {
                let listed = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
                answer(listed.into_inner().items.len())
            }
            Self::Containers => {
                let listed = runtime.list_containers(v1::ListContainersRequest::default()).await?;
                answer(listed.into_inner().containers.len())
            }
            Self::Status => {
                let pod = fleet.pods.get(sample % fleet.pods.len().max(1));
                let container_id = pod.context("there is no pod")?.container.clone();
                let request = v1::ContainerStatusRequest { container_id, verbose: false };
                let status = runtime.container_status(request).await?;
                answer(status.into_inner().status.iter().len())
            }
            Self::SandboxStats => {
                let request = v1::ListPodSandboxStatsRequest::default();
                let stats = runtime.list_pod_sandbox_stats(request).await?;
                let (took, now) = (answer(0), now()?);
                took.with_times(now, stats.get_ref().stats.iter().filter_map(Times::of_sandbox))
            }
            Self::ContainerStats => {
                let request = v1::ListContainerStatsRequest::default();
                let stats = runtime.list_container_stats(request).await?;
                let (took, now) = (answer(0), now()?);
                took.with_times(now, stats.get_ref().stats.iter().filter_map(Times::of_container))
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

impl Times {
    /// `None` without CPU time, which every runtime must have measured.
    fn of_sandbox(stats: &v1::PodSandboxStats) -> Option<Self> {
        let stats = stats.linux.as_ref()?;
        let others = [
            stats.memory.as_ref().map(|memory| memory.timestamp),
            stats.network.as_ref().map(|network| network.timestamp),
            stats.process.as_ref().map(|process| process.timestamp),
        ];
        let mut times = Self::of(stats.cpu.as_ref()?.timestamp, others);
        for container in stats.containers.iter().filter_map(Self::of_container) {
            times.usage.extend(container.usage);
            times.writable_layer.extend(container.writable_layer);
        }
        Some(times)
    }

    /// Likewise.
    fn of_container(stats: &v1::ContainerStats) -> Option<Self> {
        let memory = stats.memory.as_ref().map(|memory| memory.timestamp);
        let mut times = Self::of(stats.cpu.as_ref()?.timestamp, [memory]);
        times.writable_layer.extend(stats.writable_layer.as_ref().map(|layer| layer.timestamp));
        Some(times)
    }

    fn of<const N: usize>(cpu: i64, others: [Option<i64>; N]) -> Self {
        let usage = others.into_iter().flatten().chain([cpu]).collect();
        Self { usage, ..Self::default() }
    }
}

impl Answer {
    /// Adds what it was like, to quantities of `name`.
    fn tell(self, name: &str, samples: &mut Samples) {
        samples.add((name, "ms", Better::Lower), milliseconds(self.took));
        let Ages { usage, writable_layer } = self.ages;
        for (what, age) in [("age", usage), ("age of writable layers", writable_layer)] {
            if let Some(age) = age {
                samples.add((&format!("{name}: {what}"), "ms", Better::Lower), milliseconds(age));
            }
        }
    }

    /// With the items that were measured at `times`.
    fn with_times(self, now: Duration, times: impl Iterator<Item = Times>) -> Self {
        let times: Vec<Times> = times.collect();
        let age = |of: fn(&Times) -> &[i64]| {
            let told = times.iter().flat_map(of).filter(|time| **time > 0);
            let oldest = u64::try_from(*told.min()?).ok()?;
            Some(now.saturating_sub(Duration::from_nanos(oldest)))
        };
        let usage = age(|times| &times.usage);
        let ages = Ages { usage, writable_layer: age(|times| &times.writable_layer) };
        Self { items: times.len(), ages, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Answer =
        Answer { took: Duration::ZERO, items: 0, ages: Ages { usage: None, writable_layer: None } };

    /// Nanoseconds after 1970, so many seconds before `NOW`.
    fn before(seconds: i64) -> i64 {
        (100 - seconds) * 1_000_000_000
    }
    const NOW: Duration = Duration::from_secs(100);

    fn container(cpu: i64, memory: i64, layer: i64) -> v1::ContainerStats {
        v1::ContainerStats {
            cpu: Some(v1::CpuUsage { timestamp: cpu, ..Default::default() }),
            memory: Some(v1::MemoryUsage { timestamp: memory, ..Default::default() }),
            writable_layer: Some(v1::FilesystemUsage { timestamp: layer, ..Default::default() }),
            ..Default::default()
        }
    }

    fn ages(answer: Answer) -> [Option<u64>; 2] {
        let Ages { usage, writable_layer } = answer.ages;
        [usage, writable_layer].map(|age| age.map(|age| age.as_secs()))
    }

    #[test]
    fn age_is_of_the_oldest_number_and_of_the_oldest_layer() {
        let told =
            [container(before(3), before(9), before(30)), container(before(5), before(1), 0)];
        let answer = PLAIN.with_times(NOW, told.iter().filter_map(Times::of_container));
        assert_eq!((answer.items, ages(answer)), (2, [Some(9), Some(30)]));
    }

    #[test]
    fn a_sandbox_is_as_old_as_its_oldest_container() {
        let mut linux = v1::LinuxPodSandboxStats {
            cpu: Some(v1::CpuUsage { timestamp: before(1), ..Default::default() }),
            network: Some(v1::NetworkUsage { timestamp: before(2), ..Default::default() }),
            ..Default::default()
        };
        let told = |linux: &v1::LinuxPodSandboxStats| {
            let stats = v1::PodSandboxStats { linux: Some(linux.clone()), ..Default::default() };
            ages(PLAIN.with_times(NOW, Times::of_sandbox(&stats).into_iter()))
        };
        assert_eq!(told(&linux), [Some(2), None]);
        linux.containers.push(container(before(7), before(4), before(8)));
        assert_eq!(told(&linux), [Some(7), Some(8)]);
    }

    #[test]
    fn statistics_without_cpu_time_are_no_items() {
        let empty = [v1::ContainerStats::default()];
        let answer = PLAIN.with_times(NOW, empty.iter().filter_map(Times::of_container));
        assert_eq!((answer.items, ages(answer)), (0, [None, None]));
        assert!(Times::of_sandbox(&v1::PodSandboxStats::default()).is_none());
    }
}
