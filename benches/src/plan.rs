//! How much is measured, and the rounds in which targets take turns.

use std::time::Duration;

/// What all benchmarks have in common.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Rounds; in each every target has its turn, and the first to have it changes.
    pub(crate) rounds: usize,
    /// Samples of each target in a round.
    pub(crate) samples: usize,
    /// Samples of each target before the first round that are thrown away.
    pub(crate) warm_up: usize,
    /// Longest wait for a quiet machine before a turn.
    pub(crate) patience: Duration,
}

impl Plan {
    /// The order of `targets` targets in a round: rotated, so that none is always first.
    pub(crate) fn order(targets: usize, round: usize) -> impl Iterator<Item = usize> {
        (0..targets).map(move |turn| (turn + round) % targets)
    }
}
