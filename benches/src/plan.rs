//! How much is measured, and the rounds in which targets take turns.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::options::Common;
use crate::quiet::{Before, Noise, Watch};

/// What all benchmarks have in common.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Rounds; in each every target has its turn, and the first to have it changes.
    pub(crate) rounds: usize,
    /// Samples of each target in a round.
    pub(crate) samples: usize,
    /// Samples of each target before the first round that are thrown away.
    pub(crate) warm_up: usize,
    watch: Watch,
    /// Turns that were told to have begun; `None` tells none.
    told: Option<AtomicUsize>,
}

impl Plan {
    /// `samples` in each turn, after `warm_up` that do not count.
    pub(crate) fn new(common: &Common, samples: usize, warm_up: usize) -> Self {
        Self::of(common.rounds, common.patience, samples, warm_up)
    }

    /// The same, for what has no socket; `patience` is in seconds.
    pub(crate) fn of(rounds: usize, patience: u64, samples: usize, warm_up: usize) -> Self {
        let watch = Watch::new(Duration::from_secs(patience));
        Self { rounds, samples, warm_up, watch, told: None }
    }

    /// Tells on standard error when a turn begins: for long runs.
    pub(crate) fn telling(self) -> Self {
        Self { told: Some(AtomicUsize::new(0)), ..self }
    }

    /// The order of `targets` targets in a round: rotated, so that none is always first.
    pub(crate) fn order(targets: usize, round: usize) -> impl Iterator<Item = usize> {
        (0..targets).map(move |turn| (turn + round) % targets)
    }

    /// Every turn of every round: the index of its target.
    pub(crate) fn turns(&self, targets: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.rounds).flat_map(move |round| Self::order(targets, round))
    }

    /// Learns how many processors are busy before the first pod.
    pub(crate) fn rests_at(&self, busy: f64) {
        self.watch.rests_at(busy);
    }

    /// Waits for a quiet machine; to be called before each turn.
    pub(crate) async fn quiet(&self) -> Result<Before> {
        let before = self.watch.begin().await?;
        if let Some(told) = &self.told {
            let (turn, busy) = (told.fetch_add(1, Ordering::Relaxed) + 1, before.busy * 100.0);
            eprintln!("  turn {turn}; others use {busy:.0} % of the machine");
        }
        Ok(before)
    }

    /// How noisy the machine was since the last call.
    pub(crate) fn noise(&self) -> Result<Noise> {
        self.watch.noise()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_first_in_its_turn() {
        let order = |round| Plan::order(3, round).collect::<Vec<_>>();
        assert_eq!(
            [order(0), order(1), order(2), order(3)],
            [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1], vec![0, 1, 2],]
        );
    }
}
