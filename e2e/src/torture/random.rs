//! Choices that a seed repeats.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The choices of `what` under `seed`: others of the same seed do not disturb them.
    pub(crate) fn new(seed: u64, what: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, what).hash(&mut hasher);
        Self(hasher.finish())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not zero.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number from `first` to `last`, both included.
    pub(crate) fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True in `percent` of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, if there is one.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(choices.len()).ok().filter(|count| *count > 0)?;
        choices.get(usize::try_from(self.below(count)).ok()?)
    }

    /// Any order of `things` is as likely as another (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for (last, end) in (1..things.len()).zip(2..) {
            things.swap(last, usize::try_from(self.below(end)).unwrap_or(last));
        }
    }

    /// A time up to `limit` milliseconds.
    pub(crate) fn millis(&mut self, limit: u64) -> Duration {
        Duration::from_micros(self.below(limit * 1000))
    }

    /// An exit code that nothing else ends with.
    pub(crate) fn code(&mut self) -> i32 {
        i32::try_from(self.between(10, 100)).unwrap_or(10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices() {
        let choices = |seed, what| {
            let mut random = Random::new(seed, what);
            (0..20).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(choices(1, "a"), choices(1, "a"));
        assert_ne!(choices(1, "a"), choices(2, "a"));
        assert_ne!(choices(1, "a"), choices(1, "b"));
    }

    #[test]
    fn every_choice_is_made_sometimes() {
        let mut random = Random::new(7, "picks");
        let mut seen = [0; 5];
        for _ in 0..500 {
            seen[*random.pick(&[0, 1, 2, 3, 4]).unwrap()] += 1;
        }
        assert!(seen.iter().all(|times| *times > 50), "{seen:?}");
        assert!(random.pick::<u8>(&[]).is_none());
    }

    #[test]
    fn every_order_comes_sometimes() {
        let mut random = Random::new(7, "orders");
        let mut seen = std::collections::BTreeMap::<_, u32>::new();
        for _ in 0..600 {
            let mut order = [0, 1, 2];
            random.shuffle(&mut order);
            *seen.entry(order).or_default() += 1;
        }
        assert!(seen.len() == 6 && seen.values().all(|times| *times > 50), "{seen:?}");
    }
}
