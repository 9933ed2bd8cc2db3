//! Charts of a benchmark, as SVG files that stand for themselves.
//!
//! | picture | of |
//! |---|---|
//! | `NAME-distribution.svg` | samples of what matters most: which share took at most how long |
//! | `NAME-latency.svg` | range, p10 to p90, and median of everything that was timed |
//! | `NAME-memory.svg` | parts that add up, stacked for each target |
//! | `NAME-bars.svg` | all other quantities, one small chart each |
//! | `NAME-curve-N.svg` | what grows with the number of pods, or with time |
//! | [`waterfall`] | phases on one time axis |
//!
//! A picture is drawn where there are numbers for it, and for nothing else.

mod bars;
mod distribution;
mod lines;
mod scale;
mod stack;
mod svg;
pub(crate) mod waterfall;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use self::svg::{Anchor, MARGIN, Svg, WIDTH};
use super::{Bench, Better, Metric};

/// With fewer samples than that, a distribution says less than a bar.
const DISTRIBUTION: usize = 10;

/// Draws what suits `bench` into the directory `dir`, which is made; returns the files.
pub(crate) fn draw(bench: &Bench, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let mut files = Vec::new();
    for (name, picture) in pictures(bench) {
        let file = dir.join(format!("{}-{name}.svg", bench.name));
        fs::write(&file, picture).with_context(|| format!("write {}", file.display()))?;
        files.push(file);
    }
    Ok(files)
}

/// Names and pictures.
fn pictures(bench: &Bench) -> Vec<(String, String)> {
    let targets = Targets::of(bench);
    let mut pictures = Vec::new();
    let mut add = |name: &str, picture: Option<String>| {
        pictures.extend(picture.map(|picture| (name.to_owned(), picture)));
    };
    let (stacked, rest): (Vec<_>, Vec<_>) =
        bench.metrics.iter().filter(|metric| measured(metric)).partition(|m| stack::is_part(m));
    let (timed, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|metric| spread(metric));
    add("distribution", distribution::shares(bench, &targets, &timed));
    add("latency", distribution::ranges(bench, &targets, &timed));
    add("memory", stack::draw(bench, &targets, &stacked));
    add("bars", bars::draw(bench, &targets, &rest));
    for (index, curve) in bench.curves.iter().enumerate() {
        add(&format!("curve-{}", index + 1), lines::draw(bench, &targets, curve));
    }
    pictures
}

/// Whether anything was measured.
fn measured(metric: &Metric) -> bool {
    metric.series.iter().any(|series| series.summary().is_some())
}

/// Whether it is a time of which there are enough samples to show how they are spread.
fn spread(metric: &Metric) -> bool {
    let many = |metric: &Metric| {
        let counts = metric.series.iter().filter_map(|series| series.summary());
        counts.map(|summary| summary.count).max().is_some_and(|count| count >= DISTRIBUTION)
    };
    ["ns", "µs", "us", "ms", "s"].contains(&metric.unit.as_str()) && many(metric)
}

/// Every target of a benchmark, in their order: it has the same colour in all its pictures.
struct Targets(Vec<String>);

impl Targets {
    fn of(bench: &Bench) -> Self {
        let mut names: Vec<String> = Vec::new();
        let metrics = bench.metrics.iter().flat_map(|metric| &metric.series);
        let curves = bench.curves.iter().flat_map(|curve| &curve.series);
        let all = metrics.map(|series| &series.target).chain(curves.map(|series| &series.target));
        for name in all {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        Self(names)
    }

    fn index(&self, name: &str) -> usize {
        self.0.iter().position(|target| target == name).unwrap_or_default()
    }
}

/// An entry of a legend: which series, and its name.
type Entry = (usize, String);

/// Writes title, subtitle and legend; returns where they end. A single series needs no
/// legend: the subtitle names it.
fn head(svg: &mut Svg, title: &str, subtitle: &str, legend: &[Entry]) -> f64 {
    svg.text((MARGIN, 30.0), Anchor::Start, "ink title", title);
    let mut y = 50.0;
    for line in wrapped(subtitle, WIDTH - 2.0 * MARGIN) {
        svg.text((MARGIN, y), Anchor::Start, "quiet", &line);
        y += 16.0;
    }
    if legend.is_empty() {
        return y;
    }
    let mut x = MARGIN;
    y += 8.0;
    for (index, name) in legend {
        let wide = 34.0 + scale::width(name);
        if x + wide > WIDTH - MARGIN && x > MARGIN {
            (x, y) = (MARGIN, y + 18.0);
        }
        svg.marker((x + 6.0, y - 4.0), *index, name);
        svg.text((x + 18.0, y), Anchor::Start, "ink", name);
        x += wide;
    }
    y + 12.0
}

/// `text` in lines that are not wider than `room`; a no-break space breaks none.
fn wrapped(text: &str, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        match lines.last_mut() {
            Some(line) if scale::width(line) + scale::width(word) + 5.0 <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A count as a coordinate.
#[allow(clippy::cast_precision_loss, reason = "what is counted here is far below 2^52")]
fn real(count: usize) -> f64 {
    count as f64
}

/// `what` with a capital and a full stop.
fn sentence(what: &str) -> String {
    let mut letters = what.chars();
    let first: String =
        letters.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

/// Name and unit.
fn captioned(metric: &Metric) -> String {
    match metric.unit.as_str() {
        "" => metric.name.clone(),
        unit => format!("{}, {unit}", metric.name),
    }
}

/// What is better, in words.
fn better(metric: &Metric) -> &'static str {
    match metric.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
    }
}

#[cfg(test)]
mod tests;
