//! `cargo xtask torture`: the daemon is killed wherever it may be, thousands of times.
//!
//! What is done is in `e2e/src/torture` and in the tests of the stores; here are the
//! counts, and the summary of a whole run without a failure: `e2e/TORTURE.md`.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::report::Report;
use crate::{binaries, host, run};

/// How to call it.
pub(crate) const USAGE: &str = "usage: cargo xtask torture [OPTION VALUE]...

  --seed NUMBER     choices to repeat; without it, new ones
  --only NAME       failpoints, kills, store, pages, power, shim, clients, floods,
                    requests, patterns, private, or the start of a failpoint's name
  --rounds NUMBER   kills at each failpoint, and every other count
  --count NAME=NUMBER
                    every count of that step, whatever --rounds says; may be repeated
  --ways NUMBER     kills on each way to each failpoint, in place of one that is drawn
  --minutes NUMBER  longest for the failpoints, and for the random kills
";

/// Kills at each failpoint, and random kills.
const COUNTS: (u64, u64) = (20, 2000);
/// The same in `cargo xtask test`.
const SMALL: (u64, u64) = (1, 50);

/// A test whose counts are in its environment.
struct Step {
    name: &'static str,
    /// What it does, for the summary.
    does: &'static str,
    /// Its file.
    test: &'static str,
    /// Each count: its variable, and what it is in a whole run.
    counts: &'static [(&'static str, &'static str)],
    seed: &'static str,
    /// Which daemon and shim it drives: what ships, where it asks for no failpoints.
    drives: binaries::Profile,
}

const STEPS: [Step; 9] = [
    Step {
        name: "store",
        does: "each system call of both stores fails in turn (EIO, ENOSPC), or is the last one",
        test: "sweep",
        counts: &[("BERTH_SWEEP", "all")],
        seed: "BERTH_SWEEP_SEED",
        drives: binaries::Profile::Dev,
    },
    Step {
        name: "pages",
        does: "random damage to the files of both stores",
        test: "damage",
        counts: &[("BERTH_ROUNDS", "10000")],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Dev,
    },
    Step {
        name: "power",
        does: "power cuts during pulls, removals and pod starts",
        test: "power_cut",
        counts: &[("BERTH_POWER_CUTS", "200")],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Release,
    },
    Step {
        name: "shim",
        does: "the shim's own tests, with more orphans, kills, MiB of logs and clients",
        test: "shim",
        counts: &[
            ("BERTH_TEST_ORPHANS", "100000"),
            ("BERTH_TEST_KILLS", "200"),
            ("BERTH_TEST_LOG_MIB", "100"),
            ("BERTH_TEST_CLIENTS", "10000"),
        ],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Dev,
    },
    Step {
        name: "clients",
        does: "the engine's own tests, with clients of commands and containers that vanish",
        test: "pod",
        counts: &[("BERTH_TEST_CLIENTS", "10000")],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Dev,
    },
    Step {
        name: "floods",
        does: "commands by the thousand, and 20 containers that write as fast as they can",
        test: "floods",
        counts: &[
            ("BERTH_EXECS", "100000"),
            ("BERTH_FLOOD_SECONDS", "60"),
            ("BERTH_FLOOD_LINES", "2000000"),
        ],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Release,
    },
    Step {
        name: "requests",
        does: "generated requests of each RPC: none is a fault of the daemon",
        test: "generated",
        counts: &[("BERTH_GENERATED", "10000")],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Release,
    },
    Step {
        name: "patterns",
        does: "kills for memory, and pods with init containers and sidecars at once",
        test: "patterns",
        counts: &[("BERTH_OOMS", "1000"), ("BERTH_PODS", "100")],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Release,
    },
    Step {
        name: "private",
        does: "pairs of containers at once, whose environments are compared",
        test: "private",
        counts: &[("BERTH_PAIRS", "1000")],
        seed: "BERTH_SEED",
        drives: binaries::Profile::Release,
    },
];

impl Step {
    fn command(&self, options: &Options) -> Result<Command> {
        let built = binaries::build(self.drives)?;
        let features = format!("--features={}", binaries::TEST_FEATURES);
        let mut command =
            run::cargo(["test", "--workspace", "--locked", &features, "--test", self.test]);
        command.args(["--", "--show-output"]).env("BERTH_BIN_DIR", built.folder);
        command.envs(self.counted(options));
        command.env(self.seed, options.seed.to_string());
        Ok(command)
    }

    /// Its counts in this run.
    fn counted(&self, options: &Options) -> Vec<(&'static str, String)> {
        let own = options.counts.iter().rev().find(|(name, _)| name == self.name);
        let told = own.map(|(_, count)| *count).or(options.rounds);
        let count = |whole: &str| told.map_or_else(|| whole.to_owned(), |told| told.to_string());
        self.counts.iter().map(|(variable, whole)| (*variable, count(whole))).collect()
    }

    fn shown(&self, options: &Options) -> String {
        let counts = self.counted(options);
        let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
        counts.join(" ")
    }
}

/// What to do, and how often.
#[derive(Debug, Default)]
struct Options {
    seed: u64,
    only: Option<String>,
    rounds: Option<u64>,
    /// Of single steps, by their names.
    counts: Vec<(String, u64)>,
    ways: Option<u64>,
    minutes: Option<u64>,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self { seed: RandomState::new().hash_one(arguments), ..Self::default() };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { bail!("{USAGE}") };
            let number = || value.parse::<u64>().with_context(|| format!("{name} {value}"));
            match *name {
                "--seed" => options.seed = number()?,
                "--only" => options.only = Some((*value).to_owned()),
                "--rounds" => options.rounds = Some(number()?),
                "--count" => {
                    let (step, count) = value.split_once('=').context(USAGE)?;
                    if !STEPS.iter().any(|known| known.name == step) {
                        bail!("{USAGE}");
                    }
                    let count = count.parse().with_context(|| format!("{name} {value}"))?;
                    options.counts.push((step.to_owned(), count));
                }
                "--ways" => options.ways = Some(number()?),
                "--minutes" => options.minutes = Some(number()?),
                _ => bail!("{USAGE}"),
            }
        }
        Ok(options)
    }

    /// How much of a whole run this is, for the summary.
    fn bounds(&self) -> String {
        let rounds = self.rounds.map(|rounds| format!("{rounds} of each"));
        let counts = self.counts.iter().filter(|(step, _)| self.wants(step));
        let counts = counts.map(|(step, count)| format!("{count} of `{step}`"));
        let ways = self.ways.map(|ways| format!("{ways} of each way to a failpoint"));
        let minutes = self.minutes.map(|minutes| {
            format!("the failpoints {minutes} minutes at most, and so the random kills")
        });
        let bounds: Vec<_> = rounds.into_iter().chain(counts).chain(ways).chain(minutes).collect();
        if bounds.is_empty() { "the full ones".to_owned() } else { bounds.join(", ") }
    }

    fn wants(&self, step: &str) -> bool {
        match self.only.as_deref() {
            None => true,
            Some(only) if STEPS.iter().any(|step| step.name == only) => step == only,
            Some(_) => step == "kills",
        }
    }
}

/// Does everything, often.
pub(crate) fn torture(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    if !host::is_root() {
        bail!("not root: pods need namespaces, mounts, cgroups and links");
    }
    host::install_packages()?;
    eprintln!("seed {}", options.seed);
    let tree = Tree::read()?;
    let mut report = Report::default();
    let summary = file("torture-summary.md")?;
    let done = steps(&options, &mut report, &summary);
    report.sum_up();
    let text = page(&options, &tree, &report, &summary, done.is_ok());
    let whole = options.only.is_none() && done.is_ok();
    let to = match whole {
        true => run::repository().join("e2e/TORTURE.md"),
        false => file("TORTURE.md")?,
    };
    fs::write(&to, text?).with_context(|| format!("write {}", to.display()))?;
    eprintln!("summary: {}", to.display());
    done
}

/// Runs every step, also after one that failed; the first failure is returned.
fn steps(options: &Options, report: &mut Report, summary: &Path) -> Result<()> {
    let mut failure = Ok(());
    if options.wants("kills") {
        let (failpoints, kills) = options.rounds.map_or(COUNTS, |rounds| (rounds, rounds));
        let mut command = program(failpoints, kills)?;
        command.args(["--seed", &options.seed.to_string()]).arg("--summary").arg(summary);
        if let Some(only) = &options.only {
            command.args(["--only", only]);
        }
        if let Some(ways) = options.ways {
            command.args(["--ways", &ways.to_string()]);
        }
        if let Some(minutes) = options.minutes {
            command.args(["--minutes", &minutes.to_string()]);
        }
        failure = failure.and(report.step("torture", command));
    }
    for step in &STEPS {
        if options.wants(step.name) {
            failure = failure.and(report.step(step.name, step.command(options)?));
        }
    }
    failure
}

/// The small counts, as a step of `cargo xtask test`.
pub(crate) fn small() -> Result<Command> {
    program(SMALL.0, SMALL.1)
}

/// Builds everything; how to kill at failpoints and at random so many times.
fn program(failpoints: u64, kills: u64) -> Result<Command> {
    let built = binaries::build(binaries::Profile::Dev)?;
    let features = format!("--features={}", binaries::TEST_FEATURES);
    let mut build = run::cargo(["build", "--workspace", "--locked", "--bin", "berth-torture"]);
    build.arg(features);
    run::check(build)?;
    let mut command = Command::new(run::target().join("debug/berth-torture"));
    command.env("BERTH_BIN_DIR", built.folder);
    command.args(["--failpoints", &failpoints.to_string(), "--kills", &kills.to_string()]);
    command.arg("--logs").arg(file("torture")?);
    Ok(command)
}

fn file(name: &str) -> Result<PathBuf> {
    let folder = run::target().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder.join(name))
}

/// What is tortured.
#[derive(Debug)]
struct Tree {
    commit: String,
    dirty: bool,
}

impl Tree {
    fn read() -> Result<Self> {
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.current_dir(run::repository()).args(arguments);
            run::output(command).map(|said| String::from_utf8_lossy(&said).trim().to_owned())
        };
        let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
        Ok(Self { commit: git(&["rev-parse", "HEAD"])?, dirty: !changed.is_empty() })
    }
}

/// The summary.
fn page(
    options: &Options,
    tree: &Tree,
    report: &Report,
    summary: &Path,
    green: bool,
) -> Result<String> {
    let dirty = if tree.dirty { ", **with uncommitted changes**" } else { "" };
    let partly = options.only.as_ref().map_or(String::new(), |only| format!(", only `{only}`"));
    let result = if green { "no failure" } else { "**FAILED**" };
    let machine = machine()?;
    let mut page = format!(
        "# Torture: the last run\n\n\
         Written by `cargo xtask torture`{partly}. \
         `cargo xtask torture --seed {seed}` makes the same choices; \
         `--only NAME --rounds N` those of one failpoint.\n\n\
         | | |\n|---|---|\n\
         | result | {result} |\n\
         | commit | {commit}{dirty} |\n\
         | seed | {seed} |\n\
         | counts | {counts} |\n\
         | machine | {machine} |\n\n\
         | step | passed | failed | time |\n|---|---|---|---|\n",
        seed = options.seed,
        counts = options.bounds(),
        commit = tree.commit,
    );
    for step in report.steps() {
        let (passed, failed, took) = (step.passed, step.failed, step.took.as_secs_f64());
        page += &format!("| {} | {passed} | {failed} | {took:.0} s |\n", step.name);
    }
    page += "\n";
    for step in STEPS.iter().filter(|step| options.wants(step.name)) {
        let driven = match step.drives {
            binaries::Profile::Dev => "",
            binaries::Profile::Release => "; of release binaries",
        };
        let (name, does, counts) = (step.name, step.does, step.shown(options));
        page += &format!("- `{name}`: {does} ({counts}{driven}).\n");
    }
    page += "\nA test that passed is one in the table, however many rounds it made.\n\n";
    if options.wants("kills") {
        page.push_str(&fs::read_to_string(summary).unwrap_or_default());
    }
    Ok(page)
}

fn machine() -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let cpu = read("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = field("model name").unwrap_or_else(|| "unknown".to_owned());
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let memory = read("/proc/meminfo")?;
    let total = memory.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let total: u64 = total.and_then(|total| total.parse().ok()).unwrap_or(0);
    Ok(format!("Linux {}, {cores} cores ({model}), {} GiB", kernel.trim(), total >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_what_is_done() {
        let options = Options::parse(&["--only", "store", "--seed", "7"]).unwrap();
        assert!(options.wants("store") && !options.wants("kills") && !options.wants("pages"));
        let options = Options::parse(&["--only", "run.stored"]).unwrap();
        assert!(options.wants("kills") && !options.wants("store"));
        assert!(Options::parse(&[]).unwrap().wants("pages"));
        let options = Options::parse(&["--rounds", "3", "--ways", "2"]).unwrap();
        assert_eq!(options.bounds(), "3 of each, 2 of each way to a failpoint");
        let options = Options::parse(&["--count", "power=80"]).unwrap();
        let power = STEPS.iter().find(|step| step.name == "power").unwrap();
        assert_eq!(
            (power.shown(&options), options.bounds()),
            ("BERTH_POWER_CUTS=80".to_owned(), "80 of `power`".to_owned())
        );
        let private = STEPS.iter().find(|step| step.name == "private").unwrap();
        assert_eq!(private.shown(&options), "BERTH_PAIRS=1000");
        assert!(Options::parse(&["--count", "power"]).is_err());
        assert!(Options::parse(&["--count", "none=1"]).is_err());
        assert!(Options::parse(&["--seed"]).is_err() && Options::parse(&["--fast", "1"]).is_err());
    }

    #[test]
    fn a_failed_or_dirty_run_says_so() {
        let tree = Tree { commit: "abc".to_owned(), dirty: true };
        let options = Options { seed: 7, ..Options::default() };
        let text = page(&options, &tree, &Report::default(), Path::new("/none"), false).unwrap();
        assert!(text.contains("**FAILED**") && text.contains("abc, **with uncommitted changes**"));
        assert!(text.contains("--seed 7"));
    }
}
