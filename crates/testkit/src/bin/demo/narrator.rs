//! Says what happens, how long it took, and sums up.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Tells one line for each step, with its duration.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    times: Vec<(&'static str, Duration)>,
}

impl Narrator {
    pub(crate) fn say(&self, text: &str) {
        println!("{text}");
    }

    /// Runs one step; `work` returns what to tell of it beside its value.
    pub(crate) async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(T, String)>>,
    ) -> Result<T> {
        let started = Instant::now();
        let (value, told) = work.await.with_context(|| format!("step {name}"))?;
        let took = started.elapsed();
        self.times.push((name, took));
        println!("  {name:<18} {:>9.1} ms   {told}", milliseconds(took));
        Ok(value)
    }

    /// What the steps called `names` took together.
    pub(crate) fn sum(&self, names: &[&str]) -> f64 {
        let taken = self.times.iter().filter(|(name, _)| names.contains(name));
        milliseconds(taken.map(|(_, took)| *took).sum())
    }
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Shows progress on a terminal, in a line that is wiped afterwards.
pub(crate) fn progress(text: &str) {
    if stdout().is_terminal() {
        print!("\r\x1b[K  {text}");
        // Progress that cannot be shown is not worth an error.
        stdout().flush().ok();
    }
}

/// Wipes the progress line.
pub(crate) fn end_progress() {
    if stdout().is_terminal() {
        print!("\r\x1b[K");
    }
}
