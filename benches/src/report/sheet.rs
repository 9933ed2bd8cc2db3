//! Samples as they come in, turn by turn.

use super::{Better, Metric, Series};
use crate::plan::Turn;
use crate::target::Target;

/// Collects the samples of all targets; metrics stand in the order of their first sample.
#[derive(Debug)]
pub(crate) struct Sheet {
    targets: Vec<String>,
    metrics: Vec<Metric>,
}

impl Sheet {
    /// An empty sheet for `targets`.
    pub(crate) fn new(targets: &[Target]) -> Self {
        Self::named(targets.iter().map(|target| target.name.clone()).collect())
    }

    /// An empty sheet for what is called so.
    pub(crate) fn named(targets: Vec<String>) -> Self {
        Self { targets, metrics: Vec::new() }
    }

    /// Adds what a turn gave. Rounds of which nothing is told stay empty, so that a round has
    /// the same number with all targets.
    pub(crate) fn add(
        &mut self,
        turn: Turn,
        (name, unit, better): (&str, &str, Better),
        samples: impl IntoIterator<Item = f64>,
    ) {
        let known = self.metrics.iter().position(|metric| metric.name == name);
        let index = known.unwrap_or_else(|| {
            let empty = |target: &String| Series { target: target.clone(), rounds: Vec::new() };
            let series = self.targets.iter().map(empty).collect();
            let (name, unit) = (name.to_owned(), unit.to_owned());
            self.metrics.push(Metric { name, unit, better, series });
            self.metrics.len() - 1
        });
        let rounds = &mut self.metrics[index].series[turn.target].rounds;
        if rounds.len() <= turn.round {
            rounds.resize(turn.round + 1, Vec::new());
        }
        rounds[turn.round].extend(samples);
    }

    /// What was collected.
    pub(crate) fn into_metrics(self) -> Vec<Metric> {
        self.metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_targets_stay_apart_and_metrics_in_order() {
        let mut sheet = Sheet::named(vec!["a".to_owned(), "b".to_owned()]);
        let (up, down) = (("up", "ms", Better::Lower), ("down", "ms", Better::Lower));
        let turn = |round, target| Turn { round, target };
        sheet.add(turn(0, 0), up, [1.0, 2.0]);
        sheet.add(turn(0, 0), down, [3.0]);
        sheet.add(turn(0, 1), up, [4.0]);
        sheet.add(turn(1, 1), up, [5.0]);
        let metrics = sheet.into_metrics();
        assert_eq!(metrics.iter().map(|metric| &*metric.name).collect::<Vec<_>>(), ["up", "down"]);
        assert_eq!(metrics[0].series[0].rounds, [vec![1.0, 2.0]]);
        assert_eq!(metrics[0].series[1].rounds, [vec![4.0], vec![5.0]]);
        assert!(metrics[1].series[1].rounds.is_empty());
    }
    #[test]
    fn a_round_in_which_a_target_failed_moves_no_other_round() {
        let mut sheet = Sheet::named(vec!["a".to_owned(), "b".to_owned()]);
        let up = ("up", "ms", Better::Lower);
        for (round, target, sample) in [(0, 0, 1.0), (1, 1, 4.0), (1, 0, 2.0)] {
            sheet.add(Turn { round, target }, up, [sample]);
        }
        let metric = sheet.into_metrics().remove(0);
        assert_eq!(metric.series[1].rounds, [vec![], vec![4.0]]);
        assert_eq!(metric.ratio(&metric.series[1]).as_deref(), Some("0.500"));
    }
}
