//! What was done, and what went wrong.

use std::time::{Duration, Instant};

/// Rounds between two words about them.
const PROGRESS: u64 = 100;

/// The result of one kind of torture.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) kind: &'static str,
    pub(crate) rounds: u64,
    pub(crate) failures: Vec<String>,
    /// Counts and measurements, for people.
    pub(crate) facts: Vec<(String, String)>,
    begun: Instant,
    took: Duration,
}

impl Tally {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            rounds: 0,
            failures: Vec::new(),
            facts: Vec::new(),
            begun: Instant::now(),
            took: Duration::ZERO,
        }
    }

    /// Counts a round, and keeps what went wrong in it.
    pub(crate) fn count(&mut self, round: &str, outcome: anyhow::Result<()>) -> bool {
        self.rounds += 1;
        self.took = self.begun.elapsed();
        if self.rounds.is_multiple_of(PROGRESS) {
            eprintln!("{}: {} rounds, {:.0} s", self.kind, self.rounds, self.took.as_secs_f64());
        }
        match outcome {
            Ok(()) => true,
            Err(error) => {
                eprintln!("FAILED {round}: {error:#}");
                self.failures.push(format!("{round}: {error:#}"));
                false
            }
        }
    }

    pub(crate) fn fact(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.facts.push((what.into(), value.into()));
    }

    /// The line that `cargo xtask` counts.
    pub(crate) fn line(&self) -> String {
        let failed = u64::try_from(self.failures.len()).unwrap_or(u64::MAX);
        let word = if failed == 0 { "ok" } else { "FAILED" };
        let passed = self.rounds.saturating_sub(failed);
        let took = self.took.as_secs_f64();
        format!(
            "test result: {word}. {passed} passed; {failed} failed; {} in {took:.1} s",
            self.kind
        )
    }

    /// A section of the summary.
    pub(crate) fn section(&self) -> String {
        let mut text = String::new();
        let per_round =
            self.took.as_secs_f64() / f64::from(u32::try_from(self.rounds.max(1)).unwrap_or(1));
        let rows = [
            ("rounds".to_owned(), self.rounds.to_string()),
            ("failures".to_owned(), self.failures.len().to_string()),
            (
                "time".to_owned(),
                format!("{:.0} s, {per_round:.2} s a round", self.took.as_secs_f64()),
            ),
        ];
        text += &format!("## {}\n\n| | |\n|---|---|\n", self.kind);
        for (what, value) in rows.iter().chain(&self.facts) {
            text += &format!("| {what} | {value} |\n");
        }
        for failure in &self.failures {
            let first = failure.lines().next().unwrap_or_default();
            text += &format!("\nFAILED: {first}\n");
        }
        text
    }
}

/// The middle and the largest of some times.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn merge(&mut self, others: &Self) {
        self.0.extend(&others.0);
    }

    pub(crate) fn shown(&mut self) -> String {
        self.0.sort_unstable();
        let millis = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        let (middle, last) = (millis(self.0.get(self.0.len() / 2)), millis(self.0.last()));
        format!("{middle:.0} ms median, {last:.0} ms longest of {}", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_in_the_line_that_is_counted() {
        let mut tally = Tally::new("kills");
        assert!(tally.count("round 1", Ok(())));
        assert!(!tally.count("round 2", Err(anyhow::anyhow!("lost"))));
        assert!(
            tally.line().starts_with("test result: FAILED. 1 passed; 1 failed; "),
            "{}",
            tally.line()
        );
        assert!(tally.section().contains("FAILED: round 2: lost"));
    }

    #[test]
    fn the_median_is_the_middle() {
        let mut times = Times::default();
        for millis in [9, 1, 5] {
            times.add(Duration::from_millis(millis));
        }
        assert_eq!(times.shown(), "5 ms median, 9 ms longest of 3");
    }
}
