//! Verbs that failed: counted and shown, never hidden.

use std::collections::BTreeMap;

use anyhow::Error;

use super::samples::counted;
use crate::plan::Turn;
use crate::report::{Bench, Better, Sheet};

/// So many that fail one after another end a turn of one at a time: with a runtime that hangs
/// it would take hours.
pub(crate) const GIVE_UP: usize = 3;

/// What failed on one target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures(BTreeMap<String, (usize, String)>);

impl Failures {
    /// Counts `error` among those with the same outermost context, and keeps the first one's
    /// whole chain.
    pub(crate) fn note(&mut self, error: &Error) {
        let told = || (0, format!("{error:#}"));
        self.0.entry(error.to_string()).or_insert_with(told).0 += 1;
    }

    /// Takes over what others counted.
    pub(crate) fn add(&mut self, others: Self) {
        for (what, (count, first)) in others.0 {
            self.0.entry(what).or_insert((0, first)).0 += count;
        }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// A sentence for each kind.
    pub(crate) fn notes(&self) -> Vec<String> {
        let note = |(count, first): &(usize, String)| match count {
            1 => format!("failed once: {first}"),
            count => format!("failed {count} times: {first}"),
        };
        self.0.values().map(note).collect()
    }
}

/// Says how many verbs of each target failed, which may be none, and which they were.
pub(crate) fn tell(failures: &[Failures], sheet: &mut Sheet, bench: &mut Bench) {
    for (target, failures) in failures.iter().enumerate() {
        let count = counted(failures.count());
        sheet.add(Turn { round: 0, target }, ("failed verbs", "", Better::Lower), [count]);
        for note in failures.notes() {
            bench.note(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_what_failed_and_the_first_one_is_told_in_full() {
        let mut failures = Failures::default();
        for cause in ["no space", "no memory"] {
            failures.note(&anyhow::anyhow!(cause).context("theirs: StartContainer"));
        }
        failures.note(&anyhow::anyhow!("gone").context("theirs: StopContainer"));
        assert_eq!(failures.count(), 3);
        assert_eq!(
            failures.notes(),
            [
                "failed 2 times: theirs: StartContainer: no space",
                "failed once: theirs: StopContainer: gone"
            ]
        );
    }

    #[test]
    fn what_others_counted_is_added_to_the_same_failure() {
        let of = |times| {
            let mut failures = Failures::default();
            (0..times).for_each(|_| failures.note(&anyhow::anyhow!("remove a pod")));
            failures
        };
        let mut failures = of(1);
        failures.add(of(2));
        assert_eq!(failures.notes(), ["failed 3 times: remove a pod"]);
    }
}
