//! `cargo xtask bench-check`: counted work against committed budgets.
//!
//! Counted are system calls of pods and images that come and go on a node of their own
//! (`berth-counted`), and instructions of library paths that are on the way of a start or a
//! pull (`berth-paths`, under callgrind). The calls are those of test builds, which make the
//! same as release builds; instructions are counted of optimised code.

mod budgets;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use crate::{binaries, host, run};
use budgets::{Budgets, Samples, Verdict};

const BUDGETS: &str = "benches/budgets.toml";
const CALLS: &str = "benches/calls.toml";
/// How the list of calls begins.
const CALLS_HEAD: &str = "\
# The calls behind the counts in budgets.toml, written by `cargo xtask bench-check --update`.
# Nothing is held against them: they tell which calls a count that grew has grown by.
";

/// What was counted.
#[derive(Debug, Default)]
struct Counted {
    samples: Samples,
    /// How often each call was made, by step.
    calls: Samples,
    /// What could not be counted here, and why.
    skipped: Vec<(&'static [&'static str], String)>,
}

/// The steps of `berth-counted`.
const STEPS: &[&str] =
    &["up", "exec", "polls", "down", "rest", "pull", "pull_present", "remove_image"];
/// The step of `berth-paths`.
const INSTRUCTIONS: &[&str] = &["instructions"];

/// This task, as a step of `cargo xtask test`.
pub(crate) fn command() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("bench-check");
    Ok(command)
}

/// Counts, and holds the counts against the budgets; or makes them the budgets.
pub(crate) fn bench_check(update: bool) -> Result<()> {
    host::install_packages()?;
    let counted = count()?;
    let path = run::repository().join(BUDGETS);
    let text = fs::read_to_string(&path).with_context(|| format!("read {BUDGETS}"))?;
    let mut budgets = Budgets::parse(&text).with_context(|| format!("parse {BUDGETS}"))?;
    if update {
        budgets.update(&counted.samples);
        fs::write(&path, budgets.to_string()).with_context(|| format!("write {BUDGETS}"))?;
        let mut calls = Budgets::parse(CALLS_HEAD)?;
        calls.update(&counted.calls);
        fs::write(run::repository().join(CALLS), calls.to_string())
            .with_context(|| format!("write {CALLS}"))?;
        eprintln!("{BUDGETS} is rewritten; say in the commit why a budget was raised");
        return Ok(());
    }
    let known = fs::read_to_string(run::repository().join(CALLS)).unwrap_or_default();
    let known = Budgets::parse(&known).with_context(|| format!("parse {CALLS}"))?;
    let verdict = judge(&budgets, &counted);
    tell(&verdict, &known, &counted);
    outcome(&verdict)
}

/// Which calls are made more or less often than when the budgets were made.
fn changes(known: &BTreeMap<&str, u64>, calls: &BTreeMap<String, Vec<u64>>) -> String {
    let names: BTreeSet<&str> =
        known.keys().copied().chain(calls.keys().map(String::as_str)).collect();
    let change = |name: &&str| {
        let before = known.get(name).copied().unwrap_or(0);
        let now = calls.get(*name).and_then(|counts| counts.first()).copied().unwrap_or(0);
        (before != now).then(|| format!("{name} {before} -> {now}"))
    };
    let changes: Vec<String> = names.iter().filter_map(change).collect();
    if changes.is_empty() { "as they were".to_owned() } else { changes.join(", ") }
}

fn judge(budgets: &Budgets, counted: &Counted) -> Verdict {
    let skipped: Vec<&str> =
        counted.skipped.iter().flat_map(|(steps, _)| steps.iter().copied()).collect();
    budgets.judge(&counted.samples, &skipped)
}

#[allow(clippy::print_stdout, reason = "the summary of `cargo xtask test` reads what is printed")]
fn tell(verdict: &Verdict, known: &Budgets, counted: &Counted) {
    for (step, calls) in counted.calls.iter().filter(|(step, _)| verdict.exceeded.contains(*step)) {
        eprintln!("calls of {step}: {}", changes(&known.counts(step), calls));
    }
    for spare in &verdict.spare {
        eprintln!("spare: {spare}; `cargo xtask bench-check --update` lowers the budget");
    }
    for complaint in &verdict.complaints {
        eprintln!("bench-check: {complaint}");
    }
    for (steps, reason) in &counted.skipped {
        println!("skipped: budgets of {}: {reason}", steps.join(", "));
    }
    // As a test runner says it, for the summary of `cargo xtask test`.
    let failed = verdict.complaints.len();
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {} passed; {failed} failed; budgets", verdict.kept);
}

fn outcome(verdict: &Verdict) -> Result<()> {
    let failed = verdict.complaints.len();
    if failed > 0 {
        bail!(
            "{failed} budgets do not hold; if the work is worth it, raise them with \
             `cargo xtask bench-check --update` and say why in the commit"
        );
    }
    Ok(())
}

/// Builds both workers and runs them.
fn count() -> Result<Counted> {
    let mut counted = Counted::default();
    match calls_possible() {
        Ok(()) => add(&mut counted, calls()?)?,
        Err(reason) => counted.skipped.push((STEPS, reason)),
    }
    match works("valgrind", &["--tool=callgrind", "--callgrind-out-file=/dev/null", "true"]) {
        Ok(()) => add(&mut counted, instructions()?)?,
        Err(reason) => counted.skipped.push((INSTRUCTIONS, reason)),
    }
    Ok(counted)
}

/// Why pods cannot be traced here, if they cannot.
fn calls_possible() -> Result<(), String> {
    if !host::is_root() {
        return Err("not root: pods need namespaces, mounts, cgroups and links".to_owned());
    }
    works("strace", &["-qq", "-o", "/dev/null", "true"])
}

/// Whether a tracer works here, shown by a program that does nothing.
fn works(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments);
    run::output(command).map(drop).map_err(|error| format!("{error:#}"))
}

fn calls() -> Result<Vec<u8>> {
    let built = binaries::build(binaries::Profile::Dev)?;
    let mut build = run::cargo(["build", "--workspace", "--locked", "--bin", "berth-counted"]);
    build.arg(format!("--features={}", binaries::TEST_FEATURES));
    run::check(build)?;
    let mut worker = Command::new(run::target().join("debug/berth-counted"));
    // The length of paths is in what is counted.
    worker.env("BERTH_BIN_DIR", built.folder).env_remove("TMPDIR");
    worker_output(worker)
}

fn instructions() -> Result<Vec<u8>> {
    run::check(run::cargo(["build", "--package", "berth-paths", "--profile=counted", "--locked"]))?;
    worker_output(Command::new(run::target().join("counted/berth-paths")))
}

/// What a worker printed; what it says to a person comes through.
fn worker_output(mut worker: Command) -> Result<Vec<u8>> {
    worker.stderr(std::process::Stdio::inherit());
    run::output(worker)
}

/// Adds what a worker printed.
fn add(counted: &mut Counted, output: Vec<u8>) -> Result<()> {
    let said: Value = serde_json::from_slice(&output).context("parse what was counted")?;
    let samples = said["samples"].clone();
    let samples: Samples = serde_json::from_value(samples).context("read the samples")?;
    counted.samples.extend(samples);
    let calls = said.get("calls").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    let calls: BTreeMap<String, BTreeMap<String, u64>> =
        serde_json::from_value(calls).context("read the calls")?;
    for (step, calls) in calls {
        let calls = calls.into_iter().map(|(name, count)| (name, vec![count]));
        counted.calls.insert(step, calls.collect());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(output: &str) -> Counted {
        let mut counted = Counted::default();
        add(&mut counted, output.as_bytes().to_vec()).unwrap();
        counted
    }

    #[test]
    fn a_budget_that_is_exceeded_fails_the_task() {
        let budgets = Budgets::parse("[up]\nprocesses = 5\n").unwrap();
        let told = |processes| {
            let output = format!(
                r#"{{"samples":{{"up":{{"processes":[{processes}]}}}},"calls":{{"up":{{"clone3":6}}}}}}"#
            );
            outcome(&judge(&budgets, &counted(&output)))
        };
        assert!(told(5).is_ok());
        assert!(told(6).unwrap_err().to_string().contains("1 budgets do not hold"));
    }

    #[test]
    fn the_committed_budgets_name_every_step() {
        let text = fs::read_to_string(run::repository().join(BUDGETS)).unwrap();
        let budgets = Budgets::parse(&text).unwrap();
        assert_eq!(budgets.to_string(), text);
        for step in STEPS.iter().chain(INSTRUCTIONS) {
            assert!(text.contains(&format!("[{step}]")), "{step}");
        }
    }

    #[test]
    fn calls_that_changed_are_told() {
        let known = BTreeMap::from([("close", 5), ("open", 2), ("read", 1)]);
        let now = [("close", 6), ("dup", 1), ("read", 1)];
        let now = now.map(|(name, count)| (name.to_owned(), vec![count])).into();
        assert_eq!(changes(&known, &now), "close 5 -> 6, dup 0 -> 1, open 2 -> 0");
    }

    #[test]
    fn what_cannot_be_counted_here_is_skipped_and_not_missed() {
        let budgets = Budgets::parse("[up]\nprocesses = 5\n").unwrap();
        let skipped = vec![(STEPS, "not root".to_owned())];
        let told = |counted: Counted| outcome(&judge(&budgets, &counted));
        assert!(told(Counted { skipped, ..Counted::default() }).is_ok());
        assert!(told(Counted::default()).is_err());
    }
}
