//! What was measured: a model that is kept as JSON, and shown as a table and as charts.

pub(crate) mod chart;
mod file;
mod sheet;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::quiet::Noise;
use crate::stats::{self, Summary};

pub(crate) use file::{Measured, Report};
pub(crate) use sheet::Sheet;
pub(crate) use table::{number, said, table};

/// One benchmark: what was done, to whom, and every sample.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bench {
    /// Its subcommand: `start`, `exec`, ….
    pub(crate) name: String,
    /// What was done, in one sentence.
    pub(crate) what: String,
    /// Settings that change the numbers.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) metrics: Vec<Metric>,
    /// What grows with the number of pods, or with time.
    pub(crate) curves: Vec<Curve>,
    /// What a reader must know to read the numbers rightly.
    pub(crate) notes: Vec<String>,
    /// How noisy the machine was.
    pub(crate) noise: Option<Noise>,
}

impl Bench {
    /// A benchmark that has measured nothing yet.
    pub(crate) fn new(name: &str, what: &str) -> Self {
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            settings: BTreeMap::new(),
            metrics: Vec::new(),
            curves: Vec::new(),
            notes: Vec::new(),
            noise: None,
        }
    }

    /// Notes a setting that changes the numbers.
    pub(crate) fn setting(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// Notes what a reader must know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }
}

/// One quantity of every target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Metric {
    /// `up`, `down`, `RunPodSandbox`, ….
    pub(crate) name: String,
    /// `ms`, `KiB`, `1/s`, ….
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// Samples by target, in the order of the targets.
    pub(crate) series: Vec<Series>,
}

/// Which direction is an improvement.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// Samples of one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) target: String,
    /// Of each round; the rounds of all targets were interleaved.
    pub(crate) rounds: Vec<Vec<f64>>,
}

impl Series {
    /// Of all rounds together.
    pub(crate) fn summary(&self) -> Option<Summary> {
        Summary::of(self.rounds.iter().flatten().copied())
    }
}

impl Metric {
    /// The first target over `other` for a table: the median of the rounds, their range, and
    /// how many have a ratio, if not all that both have.
    pub(crate) fn ratio(&self, other: &Series) -> Option<String> {
        let ours = self.series.first()?;
        let ratio = stats::ratios(&ours.rounds, &other.rounds)?;
        let [middle, min, max] = [ratio.p50, ratio.min, ratio.max].map(number);
        let mut text = middle;
        if ratio.count > 1 {
            text += &format!(" ({min}–{max})");
        }
        let pairs = stats::pairs(&ours.rounds, &other.rounds).len();
        if ratio.count < pairs {
            text += &format!(", {} of {pairs} rounds", ratio.count);
        }
        Some(text)
    }
}

/// A quantity over another one, for every target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// What is on the horizontal axis, with its unit.
    pub(crate) x: String,
    /// What is on the vertical axis, with its unit.
    pub(crate) y: String,
    pub(crate) series: Vec<Points>,
}

/// A curve of one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Points {
    pub(crate) target: String,
    pub(crate) points: Vec<(f64, f64)>,
}
