//! The numbers that Berth is to hold, and whether it does.

use crate::report::{Bench, Metric, Series, number};
use crate::stats::{self, Summary};

/// What is said of a number.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// The median of all samples.
    Median,
    /// The value that 99 % are not larger than.
    P99,
    /// How many times the median that is: at a quiet machine, how steady.
    Steadiness,
    /// The ratio of the first target to the second: of medians, round by round.
    Ratio,
}

/// What it must be.
#[derive(Clone, Copy, Debug)]
enum Bound {
    Most(f64),
    Least(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::Most(most) => value <= most,
            Self::Least(least) => value >= least,
        }
    }
}

/// A number to hold.
#[derive(Debug)]
struct Goal {
    what: &'static str,
    bench: &'static str,
    metric: &'static str,
    of: Of,
    bound: Bound,
}

/// A goal beside what was measured.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) what: &'static str,
    /// In words: `≤ 10 ms`.
    pub(super) goal: String,
    /// The number of each target, in words; `None` where there is none.
    pub(super) values: Vec<Option<String>>,
    /// Over each other target: ratios of medians, round by round.
    pub(super) ratios: Vec<Option<f64>>,
    pub(super) verdict: Verdict,
}

/// Whether the first target holds a goal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Held,
    Missed,
    NotMeasured,
    /// What cannot be less than nothing was: others on the machine made the number.
    Drowned,
}

const MIB: f64 = 1024.0;

const fn goal(
    what: &'static str,
    (bench, metric): (&'static str, &'static str),
    of: Of,
    bound: Bound,
) -> Goal {
    Goal { what, bench, metric, of, bound }
}

/// All of them, in the order of the design.
const GOALS: &[Goal] = &[
    goal("a pod up, to its first byte of output", ("start", "up"), Of::Median, Bound::Most(10.0)),
    goal("the same: p99 over p50", ("start", "up"), Of::Steadiness, Bound::Most(3.0)),
    goal("up, after 100 ms of rest", ("start-rested", "up"), Of::Median, Bound::Most(10.0)),
    goal("a pod down", ("start", "down"), Of::Median, Bound::Most(4.0)),
    goal("down: p99 over p50", ("start", "down"), Of::Steadiness, Bound::Most(3.0)),
    goal("settled: CPU of a pod cycle", ("start", "settled"), Of::Median, Bound::Most(16.0)),
    goal("ExecSync `true`", ("exec", "ExecSync"), Of::Median, Bound::Most(4.0)),
    goal("ExecSync, of containerd's", ("exec", "ExecSync"), Of::Ratio, Bound::Most(0.1)),
    goal("ExecSync: p99 over p50", ("exec", "ExecSync"), Of::Steadiness, Bound::Most(3.0)),
    goal("50 pods, 10 clients", ("churn", "pods up"), Of::Median, Bound::Least(120.0)),
    goal(
        "memory of an idle pod: drop of MemAvailable",
        ("density", "drop of MemAvailable, per pod"),
        Of::Median,
        Bound::Most(0.9 * MIB),
    ),
    goal(
        "memory of an idle pod: PSS of monitors, pause and daemon growth",
        ("density", "PSS of monitors, pause and daemon growth, per pod"),
        Of::Median,
        Bound::Most(0.3 * MIB),
    ),
    goal(
        "processes of a pod beside its workload",
        ("density", "processes beside the workload, per pod"),
        Of::Median,
        Bound::Most(1.0),
    ),
    goal(
        "threads of a pod beside its workload",
        ("density", "threads beside the workload, per pod"),
        Of::Median,
        Bound::Most(1.0),
    ),
    goal(
        "daemon after start: PSS",
        ("density", "daemon's PSS before the turn"),
        Of::Median,
        Bound::Most(12.0 * MIB),
    ),
    goal(
        "daemon after start: anonymous",
        ("density", "daemon's anonymous PSS before the turn"),
        Of::Median,
        Bound::Most(5.0 * MIB),
    ),
    goal(
        "daemon after its pods came and went: PSS",
        ("density", "daemon's PSS after all were removed"),
        Of::Median,
        Bound::Most(20.0 * MIB),
    ),
    goal(
        "100 idle pods, polled as kubelet polls: CPU of the daemon",
        ("idle", "polled: CPU of the daemon"),
        Of::Median,
        Bound::Most(1.0),
    ),
    goal(
        "the same: wakeups of monitors",
        ("idle", "polled: wakeups of all monitors and pause"),
        Of::Median,
        Bound::Most(0.0),
    ),
    goal(
        "cold pull and sync, of containerd's",
        ("pull", "durable: pull and sync"),
        Of::Ratio,
        Bound::Most(0.5),
    ),
    goal("pull when present", ("pull", "PullImage, present"), Of::Median, Bound::Most(2.0)),
    goal(
        "`run` of busybox `true`, OCI runtime alone",
        ("oci", "run"),
        Of::Median,
        Bound::Most(5.0),
    ),
    goal(
        "ListPodSandbox with 500 pods, p99 (the goal is for 1,000)",
        ("lists", "ListPodSandbox"),
        Of::P99,
        Bound::Most(10.0),
    ),
    goal(
        "ListContainers with 500 pods, p99 (the goal is for 1,000)",
        ("lists", "ListContainers"),
        Of::P99,
        Bound::Most(10.0),
    ),
    goal(
        "ListPodSandboxStats with 500 pods",
        ("lists", "ListPodSandboxStats, after 2 s"),
        Of::Median,
        Bound::Most(50.0),
    ),
];

/// Every goal, beside what `benches` measured of it; `targets` are the runtimes, of which the
/// first is to hold them.
pub(super) fn held(benches: &[Bench], targets: &[&str]) -> Vec<Held> {
    GOALS.iter().map(|goal| goal.held(benches, targets)).collect()
}

impl Goal {
    fn held(&self, benches: &[Bench], targets: &[&str]) -> Held {
        let metric = benches
            .iter()
            .filter(|bench| bench.name == self.bench)
            .flat_map(|bench| &bench.metrics)
            .find(|metric| metric.name == self.metric);
        let unit = match self.of {
            Of::Median | Of::P99 => metric.map_or("", |metric| &metric.unit),
            Of::Steadiness | Of::Ratio => "×",
        };
        let goal = match self.bound {
            Bound::Most(most) => format!("≤ {} {unit}", bare(most)),
            Bound::Least(least) => format!("≥ {} {unit}", bare(least)),
        };
        let series: Vec<_> = targets.iter().map(|target| series(metric?, target)).collect();
        let ours = series.first().copied().flatten();
        let peer = series.iter().skip(1).flatten().next().copied();
        let value = |series: &Option<&Series>| self.value((*series)?, peer);
        let values: Vec<_> = series.iter().map(value).collect();
        let verdict = match values.first().copied().flatten() {
            None => Verdict::NotMeasured,
            Some(ours) if ours < 0.0 => Verdict::Drowned,
            Some(ours) if self.bound.holds(ours) => Verdict::Held,
            Some(_) => Verdict::Missed,
        };
        let compared = !matches!(self.of, Of::Steadiness);
        let ratio = |other: &Option<&Series>| ratio(ours.filter(|_| compared)?, (*other)?);
        Held {
            what: self.what,
            goal: goal.trim_end().to_owned(),
            values: values.into_iter().map(|value| value.map(number)).collect(),
            ratios: series.iter().skip(1).map(ratio).collect(),
            verdict,
        }
    }

    /// The number of `series`; `peer` is the first one of another target.
    fn value(&self, series: &Series, peer: Option<&Series>) -> Option<f64> {
        let all: Summary = series.summary()?;
        match self.of {
            Of::Median => Some(all.p50),
            Of::P99 => Some(all.p99),
            Of::Steadiness => (all.p50 > 0.0).then(|| all.p99 / all.p50),
            Of::Ratio => ratio(series, peer?),
        }
    }
}

fn ratio(ours: &Series, theirs: &Series) -> Option<f64> {
    stats::ratios(&ours.rounds, &theirs.rounds).map(|ratio| ratio.p50)
}

/// The series of `target`. OCI runtimes alone go by the names of their programs.
fn series<'a>(metric: &'a Metric, target: &str) -> Option<&'a Series> {
    let program = target.rsplit(" + ").next().unwrap_or(target);
    let is = |series: &&Series| {
        series.target == target
            || series.target == program
            || series.target == format!("{program}-bench-oci")
    };
    metric.series.iter().find(is)
}

/// A bound as it was written: without digits that nobody wrote.
fn bare(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Better;

    fn bench(samples: &[(&str, &[f64])]) -> Bench {
        let series = |(target, samples): &(&str, &[f64])| Series {
            target: (*target).to_owned(),
            rounds: vec![samples.to_vec()],
        };
        let mut bench = Bench::new("start", "");
        bench.metrics = vec![Metric {
            name: "up".to_owned(),
            unit: "ms".to_owned(),
            better: Better::Lower,
            series: samples.iter().map(series).collect(),
        }];
        bench
    }

    #[test]
    fn a_goal_is_held_missed_or_not_measured() {
        let up = |ours: f64| {
            let benches = [bench(&[("berth", &[ours]), ("other", &[20.0])])];
            held(&benches, &["berth", "other"]).into_iter().next().unwrap()
        };
        assert_eq!((up(10.0).verdict, up(10.1).verdict), (Verdict::Held, Verdict::Missed));
        assert_eq!(up(5.0).ratios, [Some(0.25)]);
        assert_eq!(up(5.0).goal, "≤ 10 ms");
        assert_eq!(held(&[], &["berth", "other"])[0].verdict, Verdict::NotMeasured);
        assert_eq!(up(-1.0).verdict, Verdict::Drowned);
    }

    #[test]
    fn a_late_tail_is_missed_though_the_median_is_held() {
        let mut samples = vec![5.0; 97];
        samples.extend([16.0, 16.0, 16.0]);
        let held = held(&[bench(&[("berth", &samples)])], &["berth"]);
        assert_eq!((held[0].verdict, held[1].verdict), (Verdict::Held, Verdict::Missed));
    }

    #[test]
    fn a_ratio_is_of_ours_to_the_first_that_was_measured() {
        let mut bench = bench(&[("berth", &[1.0]), ("other", &[4.0])]);
        "pull".clone_into(&mut bench.name);
        "durable: pull and sync".clone_into(&mut bench.metrics[0].name);
        let goals = held(&[bench], &["berth", "absent", "other"]);
        let goal = goals.iter().find(|goal| goal.goal == "≤ 0.5 ×").unwrap();
        assert_eq!(goal.verdict, Verdict::Held);
        assert_eq!(goal.values, [Some("0.250".to_owned()), None, Some("1.00".to_owned())]);
    }

    #[test]
    fn oci_runtimes_alone_belong_to_who_drives_them() {
        let bench = bench(&[("berth-bench-oci", &[1.0]), ("crun", &[4.0]), ("runc", &[8.0])]);
        let of = |target| series(&bench.metrics[0], target).map(|series| series.rounds[0][0]);
        assert_eq!(of("berth"), Some(1.0));
        assert_eq!(of("containerd + runc"), Some(8.0));
        assert_eq!(of("CRI-O"), None);
    }
}
