//! What must be taken back when later work fails.
//!
//! A step is pushed before the thing it takes back is made, so it must succeed when
//! there is nothing to take back. Steps run newest first; each one runs, whatever the
//! others did, and each failure is reported.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Error;

/// Longest that one step may take.
const STEP: Duration = Duration::from_secs(30);

type Step = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Steps in the order in which they were pushed.
#[derive(Default)]
pub(crate) struct Undo(Mutex<Vec<(&'static str, Step)>>);

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(steps.iter().map(|(what, _)| what)).finish()
    }
}

impl Undo {
    /// Adds a step; it does nothing until [`Undo::run`].
    pub(crate) fn push(
        &self,
        what: &'static str,
        step: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((what, Box::pin(step)));
    }

    /// Takes everything back; returns what failed, newest first.
    pub(crate) async fn run(self) -> Vec<(&'static str, Error)> {
        let steps = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut failures = Vec::new();
        for (what, step) in steps.into_iter().rev() {
            let late = || Error::Deadline { what: format!("undo: {what}"), limit: STEP };
            let done = tokio::time::timeout(STEP, step).await.unwrap_or_else(|_| Err(late()));
            if let Err(error) = done {
                failures.push((what, error));
            }
        }
        failures
    }

    /// The work succeeded: what was made stays.
    pub(crate) fn disarm(self) {
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn stack(log: &Arc<Mutex<Vec<u32>>>, fails: u32) -> Undo {
        let undo = Undo::default();
        for n in 0..4 {
            let log = Arc::clone(log);
            undo.push("step", async move {
                log.lock().unwrap().push(n);
                if n == fails { Err(Error::ShuttingDown) } else { Ok(()) }
            });
        }
        undo
    }

    #[tokio::test]
    async fn every_step_runs_newest_first_and_every_failure_is_reported() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let failures = stack(&log, 2).run().await;
        assert_eq!(*log.lock().unwrap(), [3, 2, 1, 0]);
        assert!(matches!(failures[..], [("step", Error::ShuttingDown)]), "{failures:?}");
    }

    #[tokio::test]
    async fn what_succeeded_is_not_taken_back() {
        let log = Arc::new(Mutex::new(Vec::new()));
        stack(&log, 9).disarm();
        assert!(log.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_does_not_stop_the_others() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let undo = stack(&log, 9);
        undo.push("hangs", std::future::pending());
        let failures = undo.run().await;
        assert!(matches!(failures[..], [("hangs", Error::Deadline { .. })]), "{failures:?}");
        assert_eq!(log.lock().unwrap().len(), 4);
    }
}
