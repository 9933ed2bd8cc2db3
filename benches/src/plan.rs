//! How much is measured, and the rounds in which targets take turns.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::options::Common;
use crate::quiet::{Before, Noise, Watch};
use crate::report::Bench;

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

/// Whose turn it is, and in which round: what is compared is of the same round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Turn {
    pub(crate) round: usize,
    /// The index of the target.
    pub(crate) target: usize,
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

    /// The order of `targets` targets in a round: rotated, so that none is always first, and
    /// every other round backwards, so that none always follows the same one.
    pub(crate) fn order(targets: usize, round: usize) -> impl Iterator<Item = usize> {
        let place = move |turn| if round.is_multiple_of(2) { turn } else { targets - 1 - turn };
        (0..targets).map(move |turn| (place(turn) + round / 2) % targets)
    }

    /// Every turn of every round.
    pub(crate) fn turns(&self, targets: usize) -> impl Iterator<Item = Turn> + use<> {
        (0..self.rounds).flat_map(move |round| {
            Self::order(targets, round).map(move |target| Turn { round, target })
        })
    }

    /// Learns how many processors are busy before the first pod.
    pub(crate) fn rests_at(&self, busy: f64) {
        self.watch.rests_at(busy);
    }

    /// Writes down what changes the numbers of every benchmark.
    pub(crate) fn settings(&self, bench: &mut Bench) {
        bench.setting("patience, s", self.watch.patience.as_secs());
        if self.warm_up > 0 {
            bench.setting("warm-up", self.warm_up);
        }
    }

    /// Waits for a quiet machine; to be called before each turn.
    pub(crate) async fn quiet(&self) -> Result<Before> {
        let before = self.watch.begin().await?;
        if let Some(told) = &self.told {
            let (turn, busy) = (told.fetch_add(1, Ordering::Relaxed) + 1, before.busy * 100.0);
            eprintln!("  turn {turn}; others use {busy:.0} % of a processor");
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
    fn every_target_is_first_in_its_turn_and_follows_every_other() {
        let order = |targets, rounds| {
            (0..rounds).flat_map(|round| Plan::order(targets, round)).collect::<Vec<_>>()
        };
        assert_eq!(order(3, 6), [0, 1, 2, 2, 1, 0, 1, 2, 0, 0, 2, 1, 2, 0, 1, 1, 0, 2]);
        assert_eq!(order(2, 4), [0, 1, 1, 0, 1, 0, 0, 1]);
        assert_eq!(order(1, 2), [0, 0]);
    }
}
