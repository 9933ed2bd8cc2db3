//! `RESULTS.md`: what was measured, how, and where Berth is slower.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Field;
use super::goals::{self, Held, Verdict};
use crate::peers::{Kind, version};
use crate::report::{self, Bench, Better, Metric, Report, Series, number};
use crate::stats;

/// What the page is called.
pub(super) const FILE: &str = "RESULTS.md";
/// The folder of its charts, beside it.
const CHARTS: &str = "charts";
/// What a cell says where nothing was measured.
const NOTHING: &str = "–";
/// What is said of a loss that was seen once.
const ONCE: &str = ", in one round";
/// Quantities that are neither good nor bad.
const NEUTRAL: [&str; 2] = ["taken off", "workload"];
/// Longest wait for a quiet machine in all steps together, as far as it can be told before.
const WAITING: Duration = Duration::from_secs(240);
/// About as many turns does a step have.
const TURNS: u64 = 12;
/// What differs by no more than this, of the other's, is the same.
const SAME: f64 = 0.05;

/// What is to be written.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) report: Report,
    /// Steps that failed, and why.
    pub(super) failures: Vec<(String, String)>,
    pub(super) took: Duration,
    quick: bool,
    /// Of each runtime: its versions and how it was set up.
    who: Vec<(String, String, String)>,
    /// Where a pod's time goes, as a table.
    pub(super) phases: Option<String>,
    missing: Vec<String>,
}

/// The folder for charts of a page in `dir`, which is made.
pub(super) fn charts(dir: &Path) -> Result<PathBuf> {
    let charts = dir.join(CHARTS);
    fs::create_dir_all(&charts).with_context(|| format!("make {}", charts.display()))?;
    Ok(charts)
}

impl Page {
    pub(super) fn new(report: Report, quick: bool) -> Self {
        let (who, missing, failures) = (Vec::new(), Vec::new(), Vec::new());
        Self { report, failures, took: Duration::ZERO, quick, who, phases: None, missing }
    }

    /// How long a turn of the next step may wait for a quiet machine, seconds: `patience`, or
    /// what all waiting together has left for each.
    pub(super) fn patience(&self, patience: u64) -> u64 {
        let noise = self.report.benches.iter().filter_map(|bench| bench.noise.as_ref());
        let waited: f64 = noise.map(|noise| noise.waited).sum();
        let waited = Duration::from_secs_f64(waited.max(0.0));
        patience.min(WAITING.saturating_sub(waited).as_secs() / TURNS)
    }

    /// Notes who takes part.
    pub(super) fn who(&mut self, field: &Field) {
        for (peer, target) in field.peers.iter().zip(&self.report.targets) {
            let mut versions = format!("{} {}", target.runtime.name, target.runtime.version);
            if let Kind::Containerd(oci) = peer.kind {
                let version = version(oci.program());
                write!(versions, ", {}", version.as_deref().unwrap_or("runtime unknown")).ok();
            }
            self.who.push((target.name.clone(), versions, peer.notes().join("; ")));
        }
        self.missing.clone_from(&field.missing);
    }

    /// Steps that failed, in words.
    pub(super) fn failed(&self) -> String {
        let names: Vec<_> = self.failures.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// Writes the page and its charts into `dir`.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let folder = charts(dir)?;
        let mut charts = Vec::new();
        for bench in &self.report.benches {
            charts.push(report::chart::draw(bench, &folder)?);
        }
        let mut text = self.head();
        text += &self.goals();
        text += &self.slower();
        for (bench, charts) in self.report.benches.iter().zip(&charts) {
            text += &section(bench);
            for chart in charts {
                let name = chart.file_name().unwrap_or_default().to_string_lossy();
                let title = name.trim_end_matches(".svg");
                writeln!(text, "![{title}]({CHARTS}/{name})\n").ok();
            }
        }
        if let Some(phases) = &self.phases {
            writeln!(
                text,
                "## phases\n\n```text\n{}\n```\n\n![phases]({CHARTS}/phases.svg)\n",
                phases.trim_end()
            )
            .ok();
        }
        let file = dir.join(FILE);
        fs::write(&file, text.trim_end().to_owned() + "\n")
            .with_context(|| format!("write {}", file.display()))
    }

    fn head(&self) -> String {
        let mut text = "# Results\n\n".to_owned();
        if self.quick {
            text +=
                "**A smoke run: next to nothing was measured, so the numbers mean nothing.**\n\n";
        }
        if self.report.machine.debug_build {
            text += "**The tool was built without optimization, and adds to every latency.**\n\n";
        }
        writeln!(
            text,
            "Measured in {} min by `berth-bench compare`, with all runtimes on one machine, in \
             turn, round by round. `cargo xtask bench` repeats it; `README.md` says what each \
             quantity means and how it comes about.\n\n{}\n",
            number(self.took.as_secs_f64() / 60.0),
            self.report.machine.line()
        )
        .ok();
        let noise = || self.report.benches.iter().filter_map(|bench| bench.noise.as_ref());
        let (noisy, turns): (usize, usize) =
            (noise().map(|noise| noise.noisy).sum(), noise().map(|noise| noise.turns).sum());
        if noisy > 0 {
            writeln!(
                text,
                "**{noisy} of {turns} turns began on a machine that was not quiet**: what is \
                 counted of the whole machine (settled, MemAvailable, kernel kinds) is least \
                 to be trusted then.\n"
            )
            .ok();
        }
        text += "| runtime | versions | set up with |\n|---|---|---|\n";
        for (name, versions, notes) in &self.who {
            writeln!(text, "| {name} | {versions} | {notes} |").ok();
        }
        text += "\nEach runtime has a network and mounts of its own, and private directories, and \
                 is asked for the same pods. A pod's network is part of `up`, `down` and \
                 `settled`: who has it made by executables pays for these there. ";
        writeln!(text, "Not measured: {}.\n", self.missing.join("; ")).ok();
        for (step, why) in &self.failures {
            writeln!(text, "**{step} failed:** {why}\n").ok();
        }
        text
    }

    fn goals(&self) -> String {
        let held = goals::held(&self.report.benches, &self.targets());
        let targets = self.targets();
        let mut text = "## Goals\n\nMedians, unless said otherwise; `×` is the ratio of the first \
                        runtime to the other one, of medians round by round.\n\n"
            .to_owned();
        write!(text, "| what | goal | {} |", targets.join(" | ")).ok();
        for other in targets.iter().skip(1) {
            write!(text, " × {other} |").ok();
        }
        writeln!(text, " |\n|---|---|{}|---|", vec!["---:"; targets.len() * 2 - 1].join("|")).ok();
        for goal in &held {
            let values = goal.values.iter().map(|value| value.as_deref().unwrap_or(NOTHING));
            let values: Vec<_> = values.collect();
            let ratios = goal.ratios.iter().map(|ratio| ratio.map_or(NOTHING.into(), number));
            let met = match goal.verdict {
                Verdict::Held => "held",
                Verdict::Missed => "**missed**",
                Verdict::NotMeasured => "not measured",
                Verdict::Drowned => "lost in noise",
            };
            let ratios: String = ratios.map(|ratio: String| format!(" {ratio} |")).collect();
            let (what, aim) = (goal.what, &goal.goal);
            writeln!(text, "| {what} | {aim} | {} |{ratios} {met} |", values.join(" | ")).ok();
        }
        text.push('\n');
        text
    }

    fn targets(&self) -> Vec<&str> {
        self.report.targets.iter().map(|target| target.name.as_str()).collect()
    }

    fn slower(&self) -> String {
        let mut text = "## Where Berth misses a goal or is slower\n\n".to_owned();
        let held = goals::held(&self.report.benches, &self.targets());
        let mut lines: Vec<String> = held.iter().filter_map(missed).collect();
        for bench in &self.report.benches {
            lines.extend(bench.metrics.iter().flat_map(|metric| worse(bench, metric)));
        }
        if lines.is_empty() {
            lines.push("- Nowhere in this run.".to_owned());
        }
        text += &lines.join("\n");
        text += "\n\nListed is every quantity whose median was worse than a peer's by more than 5 % of \
             it, in every round that both have. Where one of them is nothing, or less, there is \
             no ratio: the difference decides.\n\n";
        text
    }
}

fn missed(goal: &Held) -> Option<String> {
    let ours = goal.values.first()?.as_deref()?;
    (goal.verdict == Verdict::Missed)
        .then(|| format!("- **goal missed**: {}: {ours}, goal {}", goal.what, goal.goal))
}

/// Of each other target: whether the first one is worse in every round that both have.
fn worse(bench: &Bench, metric: &Metric) -> Vec<String> {
    if NEUTRAL.iter().any(|word| metric.name.contains(word)) {
        return Vec::new();
    }
    let Some((first, others)) = metric.series.split_first() else { return Vec::new() };
    let said = |other: &&Series| {
        let median =
            |series: &Series| series.summary().map_or(NOTHING.to_owned(), |all| number(all.p50));
        let (bench, name, unit) = (&bench.name, &metric.name, &metric.unit);
        let (ours, theirs) = (median(first), median(other));
        let ratio = stats::ratios(&first.rounds, &other.rounds);
        let ratio = ratio.map_or(String::new(), |ratio| format!(" (× {})", number(ratio.p50)));
        let once = if stats::pairs(&first.rounds, &other.rounds).len() == 1 { ONCE } else { "" };
        format!("- {bench}: {name}: {ours} {unit}; {}: {theirs}{ratio}{once}", other.target)
            .replace(" ;", ";")
    };
    let is_worse = |other: &&Series| {
        let pairs = stats::pairs(&first.rounds, &other.rounds);
        !pairs.is_empty() && pairs.into_iter().all(|pair| is_worse(metric.better, pair))
    };
    others.iter().filter(is_worse).map(|other| said(&other)).collect()
}

/// Whether ours is worse than theirs. It is told by the difference, since a ratio means
/// nothing where one of them is nothing, or less.
fn is_worse(better: Better, (ours, theirs): (f64, f64)) -> bool {
    let more = match better {
        Better::Lower => ours - theirs,
        Better::Higher => theirs - ours,
    };
    more > theirs.abs() * SAME
}

/// One benchmark: what was done, its table, notes and noise.
fn section(bench: &Bench) -> String {
    let mut text = format!("## {}\n\n{}.\n", bench.name, capital(&bench.what));
    for (name, value) in &bench.settings {
        write!(text, "{name}: {value}. ").ok();
    }
    let Some(first) = bench.metrics.first() else { return text + "\n\n" };
    if bench.metrics.iter().flat_map(|metric| &metric.series).all(|one| one.rounds.len() <= 1) {
        // Who comes first has the emptiest caches, and nothing says how much chance there is.
        write!(text, "**n = 1**: one round, in the order of the columns. ").ok();
    }
    text.truncate(text.trim_end().len());
    text += "\n\n| median (p99) | unit |";
    for series in &first.series {
        write!(text, " {} |", series.target).ok();
    }
    for series in first.series.iter().skip(1) {
        write!(text, " × {} (rounds) |", series.target).ok();
    }
    let columns = first.series.len() * 2 - 1;
    writeln!(text, "\n|---|---|{}|", vec!["---:"; columns].join("|")).ok();
    for metric in &bench.metrics {
        writeln!(text, "{}", row(metric)).ok();
    }
    text.push('\n');
    for note in &bench.notes {
        writeln!(text, "- {note}").ok();
    }
    if let Some(noise) = &bench.noise {
        writeln!(text, "- noise: {}", report::said(noise)).ok();
    }
    text.push('\n');
    text
}

fn row(metric: &Metric) -> String {
    let mut text = format!("| {} | {} |", metric.name, metric.unit);
    for series in &metric.series {
        let cell = series.summary().map_or(NOTHING.to_owned(), |all| {
            let single = series.rounds.iter().all(|round| round.len() <= 1);
            let p99 = if single { String::new() } else { format!(" ({})", number(all.p99)) };
            number(all.p50) + &p99
        });
        write!(text, " {cell} |").ok();
    }
    for other in metric.series.iter().skip(1) {
        let cell = metric.ratio(other).unwrap_or_else(|| NOTHING.to_owned());
        write!(text, " {cell} |").ok();
    }
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(better: Better, ours: &[f64], theirs: &[f64]) -> Metric {
        let series = |target: &str, rounds: &[f64]| Series {
            target: target.to_owned(),
            rounds: rounds.iter().map(|sample| vec![*sample]).collect(),
        };
        Metric {
            name: "up".to_owned(),
            unit: "ms".to_owned(),
            better,
            series: vec![series("berth", ours), series("other", theirs)],
        }
    }

    #[test]
    fn worse_is_what_is_worse_in_every_round() {
        let bench = Bench::new("start", "");
        let lines = |better, ours: &[f64], theirs: &[f64]| {
            worse(&bench, &metric(better, ours, theirs)).len()
        };
        assert_eq!(lines(Better::Lower, &[3.0, 2.0], &[1.0, 1.0]), 1);
        assert_eq!(lines(Better::Lower, &[3.0, 0.9], &[1.0, 1.0]), 0);
        assert_eq!(lines(Better::Higher, &[3.0, 2.0], &[1.0, 1.0]), 0);
        assert_eq!(lines(Better::Higher, &[0.5, 0.5], &[1.0, 1.0]), 1);
        // A cost that only we have.
        assert_eq!(lines(Better::Lower, &[3.0], &[0.0]), 1);
        // What has no ratio is no secret.
        assert_eq!(lines(Better::Lower, &[5000.0, 40.0], &[-200.0, 0.0]), 1);
        assert_eq!(lines(Better::Lower, &[-5.0], &[-200.0]), 1);
        assert_eq!(lines(Better::Lower, &[-200.0], &[-5.0]), 0);
        assert_eq!(lines(Better::Higher, &[0.0], &[3.0]), 1);
        assert_eq!(lines(Better::Lower, &[1.04, 9.0], &[1.0, 1.0]), 0);
        assert_eq!(lines(Better::Lower, &[0.0], &[0.0]), 0);
        let said = worse(&bench, &metric(Better::Lower, &[3.0, 3.0], &[1.0, 1.0]));
        assert_eq!(said, ["- start: up: 3.00 ms; other: 1.00 (× 3.00)"]);
    }

    #[test]
    fn what_was_measured_once_says_so() {
        let section = |ours: &[f64], theirs: &[f64]| {
            let mut bench = Bench::new("start", "pods");
            bench.metrics.push(metric(Better::Lower, ours, theirs));
            (section(&bench).contains("n = 1"), worse(&bench, &bench.metrics[0]).remove(0))
        };
        let (told, loss) = section(&[3.0], &[1.0]);
        assert!(told && loss.ends_with("(× 3.00), in one round"), "{loss}");
        let (told, loss) = section(&[3.0, 3.0], &[1.0, 1.0]);
        assert!(!told && loss.ends_with("(× 3.00)"), "{loss}");
    }

    #[test]
    fn a_row_has_a_cell_for_every_target_and_every_ratio() {
        let row = row(&metric(Better::Lower, &[1.0, 3.0], &[4.0, 4.0]));
        assert_eq!(row, "| up | ms | 2.00 | 4.00 | 0.500 (0.250–0.750) |");
        let row = super::row(&metric(Better::Lower, &[1.0, 3.0], &[4.0, -1.0]));
        assert_eq!(row, "| up | ms | 2.00 | 1.50 | 0.250, 1 of 2 rounds |");
    }
}
