//! Quantiles, and ratios of one target to another. Pure functions.

use serde::{Deserialize, Serialize};

/// What is left of many samples for a table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// How many samples there were.
    pub(crate) count: usize,
    /// The smallest.
    pub(crate) min: f64,
    /// 10 % are not larger.
    pub(crate) p10: f64,
    /// The median.
    pub(crate) p50: f64,
    /// 99 % are not larger; of less than 100 samples the largest.
    pub(crate) p99: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// `None` of no samples.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let at = |percent| quantile(&sorted, percent);
        Some(Self {
            count: sorted.len(),
            min,
            p10: at(10)?,
            p50: median(&sorted)?,
            p99: at(99)?,
            max,
        })
    }
}

/// The smallest of `sorted` samples that `percent` of a hundred are not larger than (the
/// nearest rank); `None` of no samples.
pub(crate) fn quantile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).or(sorted.last()).copied()
}

/// The middle of `sorted` samples, or the mean of the two in the middle.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
}

/// Medians of the rounds of `ours` and `theirs`, round by round; a round that either has no
/// samples of is left out.
pub(crate) fn pairs(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> Vec<(f64, f64)> {
    let middle = |round: &Vec<f64>| Summary::of(round.iter().copied()).map(|round| round.p50);
    let pairs = ours.iter().zip(theirs);
    pairs.filter_map(|(our, their)| Some((middle(our)?, middle(their)?))).collect()
}

/// Ratios of [`pairs`]: what disturbed a round disturbed both. The summary is over the rounds;
/// where one of a pair is less than nothing, or theirs is nothing, there is no ratio.
pub(crate) fn ratios(ours: &[Vec<f64>], theirs: &[Vec<f64>]) -> Option<Summary> {
    let pairs = pairs(ours, theirs).into_iter();
    let ratio = |(our, their)| (our >= 0.0 && their > 0.0).then(|| our / their);
    Summary::of(pairs.filter_map(ratio))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_sample_and_the_median_the_middle() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        let summary = Summary::of(samples.into_iter().rev()).unwrap();
        let told = (summary.min, summary.p10, summary.p50, summary.p99, summary.max);
        assert_eq!(told, (1.0, 10.0, 50.5, 99.0, 100.0));
        assert_eq!(Summary::of([3.0, 1.0, 2.0]).unwrap().p99, 3.0);
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn ratios_pair_rounds_and_a_round_without_pair_counts_for_nothing() {
        let ours = [vec![1.0, 2.0, 3.0], vec![10.0], vec![7.0]];
        let theirs = [vec![4.0], vec![10.0]];
        let ratios = ratios(&ours, &theirs).unwrap();
        assert_eq!((ratios.count, ratios.min, ratios.max), (2, 0.5, 1.0));
        assert_eq!(pairs(&ours, &theirs), [(2.0, 4.0), (10.0, 10.0)]);
    }

    #[test]
    fn a_pair_may_have_no_ratio_but_is_a_pair() {
        let (ours, theirs) =
            ([vec![5.0], vec![-1.0], vec![1.0]], [vec![-2.0], vec![3.0], vec![0.0]]);
        assert_eq!(ratios(&ours, &theirs), None);
        assert_eq!(pairs(&ours, &theirs), [(5.0, -2.0), (-1.0, 3.0), (1.0, 0.0)]);
    }
}
