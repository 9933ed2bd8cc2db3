//! Verbs that failed: counted and shown, never hidden.

use std::collections::BTreeMap;

use anyhow::Error;

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
}
