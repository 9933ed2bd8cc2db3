//! `benches/budgets.toml`: how much work each step may be.
//!
//! ```toml
//! # Why these are as they are.
//! [up]
//! processes = 5
//! written = { count = 60559, slack = 1 }
//! daemon_calls = { most = 4 }
//! ```
//!
//! A subset of TOML, one budget on a line, so that a number can be replaced and every
//! comment stays. `slack` is in percent; `most` was chosen, not counted, and stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context as _, Result, bail};

/// Samples by step and by name.
pub(super) type Samples = BTreeMap<String, BTreeMap<String, Vec<u64>>>;

/// How many percent more than its cycles' budgets a step may be in all, for cycles that
/// something disturbed; and how much at least.
const TOTAL_SLACK: u64 = 1;
const TOTAL_LEAST: u64 = 2;

/// A line of the file.
#[derive(Debug)]
enum Line {
    /// A comment, or nothing.
    Text(String),
    Step(String),
    Budget(String, Budget),
}

/// How much may be counted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Budget {
    /// What was counted when it was made, and how many percent more it may be.
    Counted { count: u64, slack: u64 },
    /// A ceiling for what is chance.
    Most(u64),
}

impl Budget {
    fn allowed(self) -> u64 {
        match self {
            Self::Counted { count, slack } => count + count * slack / 100,
            Self::Most(most) => most,
        }
    }

    /// How much all `cycles` together may be; nothing is said of chance. Of what there is none
    /// there may be none at all.
    fn allowed_in(self, cycles: u64) -> Option<u64> {
        let Self::Counted { .. } = self else { return None };
        let total = self.allowed() * cycles;
        let disturbed = (total * TOTAL_SLACK / 100).max(TOTAL_LEAST);
        Some(if total == 0 { 0 } else { total + disturbed })
    }

    /// What is too much of `counted`, the samples of all cycles.
    fn complaint(self, counted: &[u64]) -> Option<String> {
        let (typical, allowed) = (median(counted), self.allowed());
        let (total, cycles) = (counted.iter().sum::<u64>(), counted.len());
        let in_all = self.allowed_in(u64::try_from(cycles).unwrap_or(u64::MAX));
        if typical > allowed {
            return Some(format!(
                "counted {typical}, allowed {allowed} (budget {self}), samples {counted:?}"
            ));
        }
        let allowed = in_all.filter(|allowed| total > *allowed)?;
        Some(format!(
            "counted {total} in {cycles} cycles, allowed {allowed} (budget {self} each), \
             samples {counted:?}"
        ))
    }

    /// Made of `counted`, unless that is within its slack: what is no finding is no change.
    fn renewed(self, counted: u64) -> Self {
        match self {
            Self::Counted { slack, .. } if counted > self.allowed() || self.is_spare(counted) => {
                Self::Counted { count: counted, slack }
            }
            kept => kept,
        }
    }

    /// Whether it would be lower, were it made of `counted`.
    fn is_spare(self, counted: u64) -> bool {
        match self {
            Self::Counted { count, slack } => counted < count - count * slack.min(100) / 100,
            Self::Most(_) => false,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted { count, slack: 0 } => write!(to, "{count}"),
            Self::Counted { count, slack } => {
                write!(to, "{{ count = {count}, slack = {slack} }}")
            }
            Self::Most(most) => write!(to, "{{ most = {most} }}"),
        }
    }
}

/// The file, line by line.
#[derive(Debug)]
pub(super) struct Budgets(Vec<Line>);

/// What came of holding counts against the budgets.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// What is more than it may be, or not as it should be.
    pub(super) complaints: Vec<String>,
    /// Steps of which something is too much.
    pub(super) exceeded: BTreeSet<String>,
    /// What is less than it may be.
    pub(super) spare: Vec<String>,
    /// How many were held.
    pub(super) kept: usize,
}

impl Budgets {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate();
        let line = |(number, line)| {
            Line::parse(line).with_context(|| format!("line {}: {line}", number + 1))
        };
        lines.map(line).collect::<Result<_>>().map(Self)
    }

    /// Each budget with its step.
    fn all(&self) -> Vec<(&str, &str, Budget)> {
        let mut step = "";
        let mut all = Vec::new();
        for line in &self.0 {
            match line {
                Line::Step(name) => step = name,
                Line::Budget(name, budget) => all.push((step, name.as_str(), *budget)),
                Line::Text(_) => {}
            }
        }
        all
    }

    /// What was counted in `step`, by name.
    pub(super) fn counts(&self, step: &str) -> BTreeMap<&str, u64> {
        let all = self.all().into_iter().filter(|(of, _, _)| *of == step);
        all.map(|(_, name, budget)| (name, budget.allowed())).collect()
    }

    /// Holds `samples` against the budgets, one of each cycle. The median must be within its
    /// budget, so that a disturbed cycle is forgiven; and so must be the sum, or what is done in
    /// every third cycle would cost nothing. Steps that are `skipped` have no samples.
    pub(super) fn judge(&self, samples: &Samples, skipped: &[&str]) -> Verdict {
        let mut verdict = Verdict::default();
        let budgets = self.all();
        for (step, name, budget) in &budgets {
            if skipped.contains(step) {
                continue;
            }
            let Some(counted) = samples.get(*step).and_then(|step| step.get(*name)) else {
                verdict.complaints.push(format!("{step}.{name} has a budget and was not counted"));
                continue;
            };
            if let Some(complaint) = budget.complaint(counted) {
                verdict.complaints.push(format!("{step}.{name}: {complaint}"));
                verdict.exceeded.insert((*step).to_owned());
            } else {
                verdict.kept += 1;
            }
            let typical = median(counted);
            if budget.is_spare(typical) {
                verdict.spare.push(format!("{step}.{name}: counted {typical}, budget {budget}"));
            }
        }
        for (step, names) in samples {
            for name in names.keys() {
                if !budgets.iter().any(|budget| (budget.0, budget.1) == (step, name)) {
                    verdict.complaints.push(format!("{step}.{name} was counted and has no budget"));
                }
            }
        }
        verdict
    }

    /// Makes what was counted the budget: the median, since the least of a few samples is
    /// rarer than what others will count. What has no budget yet gets one at the end of its
    /// step.
    pub(super) fn update(&mut self, samples: &Samples) {
        let mut missing = samples.clone();
        let mut step = String::new();
        for line in &mut self.0 {
            match line {
                Line::Step(name) => step.clone_from(name),
                Line::Budget(name, budget) => {
                    let counted = missing.get_mut(&step).and_then(|step| step.remove(name));
                    *budget = counted.map_or(*budget, |counted| budget.renewed(median(&counted)));
                }
                Line::Text(_) => {}
            }
        }
        for (step, names) in missing {
            let budgets = names.into_iter().map(|(name, counted)| {
                Line::Budget(name, Budget::Counted { count: median(&counted), slack: 0 })
            });
            let at = self.end_of(&step);
            self.0.splice(at..at, budgets.collect::<Vec<_>>());
        }
    }

    /// Behind the last budget of `step`, which is begun when there is none.
    fn end_of(&mut self, step: &str) -> usize {
        let header = |line: &Line| matches!(line, Line::Step(name) if name == step);
        let Some(begin) = self.0.iter().position(header) else {
            self.0.extend([Line::Text(String::new()), Line::Step(step.to_owned())]);
            return self.0.len();
        };
        let next = self.0[begin + 1..].iter().position(|line| matches!(line, Line::Step(_)));
        let end = next.map_or(self.0.len(), |next| begin + 1 + next);
        let last = self.0[begin..end].iter().rposition(|line| !matches!(line, Line::Text(_)));
        begin + last.unwrap_or(0) + 1
    }
}

impl fmt::Display for Budgets {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.0 {
            match line {
                Line::Text(text) => writeln!(to, "{text}")?,
                Line::Step(name) => writeln!(to, "[{name}]")?,
                Line::Budget(name, budget) => writeln!(to, "{name} = {budget}")?,
            }
        }
        Ok(())
    }
}

impl Line {
    fn parse(line: &str) -> Result<Self> {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            return Ok(Self::Text(line.to_owned()));
        }
        if let Some(step) = trimmed.strip_prefix('[') {
            return Ok(Self::Step(
                step.strip_suffix(']').context("a step ends with ]")?.to_owned(),
            ));
        }
        let (name, value) = trimmed.split_once('=').context("a budget is NAME = COUNT")?;
        let (name, value) = (name.trim().to_owned(), value.trim());
        let Some(table) = value.strip_prefix('{') else {
            return Ok(Self::Budget(name, Budget::Counted { count: value.parse()?, slack: 0 }));
        };
        let table = table.strip_suffix('}').context("a table ends with } on its line")?;
        let numbers = table.split(',').map(|pair| {
            let (key, value) = pair.split_once('=').context("a table has KEY = NUMBER")?;
            Ok((key.trim(), value.trim().parse()?))
        });
        let numbers: Vec<(&str, u64)> = numbers.collect::<Result<_>>()?;
        let budget = match numbers.as_slice() {
            [("count", count), ("slack", slack)] => {
                Budget::Counted { count: *count, slack: *slack }
            }
            [("most", most)] => Budget::Most(*most),
            _ => bail!("a budget has a count and slack, or a most"),
        };
        Ok(Self::Budget(name, budget))
    }
}

/// The middle of the samples, the upper one of two.
fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Pods.\n\n[up]\n# Two shims.\nprocesses = 5\n\
                        written = { count = 1000, slack = 2 }\n\n[rest]\nshim_calls = { most = 0 }\n";

    fn samples(list: &[(&str, &str, &[u64])]) -> Samples {
        let mut samples = Samples::new();
        for (step, name, counted) in list {
            let step = samples.entry((*step).to_owned()).or_default();
            step.insert((*name).to_owned(), counted.to_vec());
        }
        samples
    }

    #[track_caller]
    fn judged(up: &[u64], written: &[u64], rest: &[u64]) -> Verdict {
        let counted =
            [("up", "processes", up), ("up", "written", written), ("rest", "shim_calls", rest)];
        Budgets::parse(TEXT).unwrap().judge(&samples(&counted), &[])
    }

    #[test]
    fn what_is_within_its_budget_passes() {
        let verdict = judged(&[5, 5, 5], &[1020, 1030, 1020], &[0]);
        assert_eq!(verdict, Verdict { kept: 3, ..Verdict::default() });
    }

    #[test]
    fn one_more_than_allowed_fails_and_says_which() {
        let verdict = judged(&[6, 6, 7], &[1021, 1021], &[1]);
        assert_eq!(verdict.complaints.len(), 3, "{verdict:?}");
        assert!(verdict.complaints[0].contains("up.processes: counted 6, allowed 5"));
        assert!(verdict.complaints[1].contains("up.written: counted 1021, allowed 1020"));
        assert_eq!((verdict.exceeded, verdict.kept), (["up".into(), "rest".into()].into(), 0));
    }

    #[test]
    fn a_disturbed_cycle_is_forgiven_and_work_of_half_the_cycles_is_not() {
        assert_eq!(judged(&[5, 7, 5, 5], &[1000], &[0]).complaints, Vec::<String>::new());
        let verdict = judged(&[5, 6, 5, 6], &[1000], &[0]);
        assert_eq!(verdict.complaints.len(), 1, "{verdict:?}");
    }

    #[test]
    fn a_sweep_in_every_fourth_cycle_fails_by_the_sum() {
        let verdict = judged(&[5, 5, 5, 8, 5, 5, 5, 5], &[1000], &[0]);
        assert!(verdict.complaints[0].contains("counted 43 in 8 cycles, allowed 42"));
        let written = |sweep: u64| judged(&[5], &[1020, 1020, 1020, 1020 + sweep], &[0]).complaints;
        assert_eq!((written(40).len(), written(41).len()), (0, 1));
    }

    #[test]
    fn what_is_never_done_is_not_done_once_and_chance_has_no_sum() {
        let judged = |budget: &str, counted: &[u64]| {
            let budgets = Budgets::parse(&format!("[up]\nsyncs = {budget}")).unwrap();
            budgets.judge(&samples(&[("up", "syncs", counted)]), &[]).complaints.len()
        };
        assert_eq!(judged("0", &[0, 0, 1, 0]), 1);
        assert_eq!(judged("{ most = 4 }", &[4, 4, 40]), 0);
    }

    #[test]
    fn what_got_less_is_said_and_passes() {
        let verdict = judged(&[4, 4, 5], &[1000], &[0]);
        assert_eq!((verdict.complaints.len(), verdict.spare.len()), (0, 1));
    }

    #[test]
    fn a_count_without_budget_and_a_budget_without_count_fail() {
        let counted = samples(&[("up", "processes", &[5]), ("down", "calls", &[1])]);
        let verdict = Budgets::parse(TEXT).unwrap().judge(&counted, &[]);
        let text = verdict.complaints.join("\n");
        for part in ["up.written has a budget", "rest.shim_calls has", "down.calls was counted"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_step_that_cannot_be_counted_here_is_not_missed() {
        let counted = samples(&[("rest", "shim_calls", &[1])]);
        let verdict = Budgets::parse(TEXT).unwrap().judge(&counted, &["up"]);
        assert_eq!((verdict.complaints.len(), verdict.kept), (1, 0));
    }

    #[test]
    fn an_update_replaces_numbers_adds_what_is_new_and_keeps_every_comment() {
        let mut budgets = Budgets::parse(TEXT).unwrap();
        budgets.update(&samples(&[
            ("up", "processes", &[4, 3, 4]),
            ("up", "mounts", &[7]),
            ("up", "written", &[1020]),
            ("rest", "shim_calls", &[9]),
            ("exec", "execs", &[1]),
        ]));
        let expected = "# Pods.\n\n[up]\n# Two shims.\nprocesses = 4\n\
                        written = { count = 1000, slack = 2 }\nmounts = 7\n\n[rest]\n\
                        shim_calls = { most = 0 }\n\n[exec]\nexecs = 1\n";
        assert_eq!(budgets.to_string(), expected);
    }

    #[test]
    fn an_update_takes_what_is_beyond_the_slack() {
        for (counted, expected) in [(979, 979), (980, 1000), (1020, 1000), (1021, 1021)] {
            let mut budgets =
                Budgets::parse("[up]\nwritten = { count = 1000, slack = 2 }").unwrap();
            budgets.update(&samples(&[("up", "written", &[counted])]));
            assert_eq!(budgets.counts("up")["written"], expected + expected * 2 / 100);
        }
    }

    #[test]
    fn what_is_no_budget_is_refused() {
        for wrong in ["[up", "calls", "calls = many", "calls = { slack = 1 }", "a = { most = }"] {
            assert!(Budgets::parse(wrong).is_err(), "{wrong}");
        }
    }
}
