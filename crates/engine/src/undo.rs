//! What must be taken back when later work fails.
//!
//! A step is pushed before the thing it takes back is made, so it must succeed when
//! there is nothing to take back, and it may be repeated. Steps run newest first; each one
//! runs, whatever the others did. What fails is left to [`Pending`], which tries again for
//! as long as the daemon lives; what it leaves then is swept at the next start.
//!
//! The name that failed work had is free at once, whatever is still to be taken back: that
//! is named by an id, and the next try has another. Only the row of a sandbox and ports of
//! the node are named by the request: the next try of a pod first has what is left of the
//! last one tried again ([`Pending::hasten`]).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Error;
use crate::pending::{Object, Pending};

/// Longest that one step may take.
const STEP: Duration = Duration::from_secs(30);

type Attempt = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// One thing to take back, as often as it takes.
pub(crate) struct Step {
    what: &'static str,
    attempt: Box<dyn Fn() -> Attempt + Send + Sync>,
}

impl Step {
    pub(crate) fn new<F>(
        what: &'static str,
        attempt: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        Self { what, attempt: Box::new(move || Box::pin(attempt())) }
    }

    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    pub(crate) async fn run(&self) -> Result<(), Error> {
        let late = |_| Error::Deadline { what: format!("undo: {}", self.what), limit: STEP };
        tokio::time::timeout(STEP, (self.attempt)()).await.map_err(late)?
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// A step that failed, and why.
pub(crate) type Failure = (&'static str, Error);

/// Steps that are still to be done, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Remaining(Vec<Step>);

impl Remaining {
    /// Runs every step, newest first; what succeeded does not remain.
    pub(crate) async fn run(&mut self) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut left = Vec::new();
        while let Some(step) = self.0.pop() {
            if let Err(error) = step.run().await {
                failures.push((step.what, error));
                left.push(step);
            }
        }
        left.reverse();
        self.0 = left;
        failures
    }
}

impl From<Step> for Remaining {
    fn from(step: Step) -> Self {
        Self(vec![step])
    }
}

/// Steps in the order in which they were pushed.
#[derive(Debug, Default)]
pub(crate) struct Undo(Mutex<Remaining>);

impl Undo {
    /// Adds a step; it does nothing until [`Undo::run`].
    pub(crate) fn push<F>(
        &self,
        what: &'static str,
        attempt: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let mut remaining = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remaining.0.push(Step::new(what, attempt));
    }

    /// Takes everything back that can be, and leaves the rest to `pending`.
    pub(crate) async fn run(self, pending: &Arc<Pending>, object: Object) {
        let mut remaining = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failures = remaining.run().await;
        pending.take(object, remaining, failures);
    }

    /// The work succeeded: what was made stays.
    pub(crate) fn disarm(self) {
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    type Log = Arc<Mutex<Vec<u32>>>;

    /// Four steps of which `fails` fails as often as `times` says.
    fn stack(log: &Log, fails: u32, times: u32) -> Undo {
        let left = Arc::new(AtomicU32::new(times));
        let step = |n: u32| {
            let (log, left) = (Arc::clone(log), Arc::clone(&left));
            move || {
                log.lock().unwrap().push(n);
                let refused = n == fails
                    && left
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                        .is_ok();
                std::future::ready(if refused { Err(Error::ShuttingDown) } else { Ok(()) })
            }
        };
        let undo = Undo::default();
        for n in 0..4 {
            undo.push("step", step(n));
        }
        undo
    }

    fn remaining(undo: Undo) -> Remaining {
        undo.0.into_inner().unwrap()
    }

    #[tokio::test]
    async fn every_step_runs_newest_first_and_every_failure_is_reported() {
        let log = Log::default();
        let mut remaining = remaining(stack(&log, 2, 2));
        let failures = remaining.run().await;
        assert_eq!(*log.lock().unwrap(), [3, 2, 1, 0]);
        assert!(matches!(failures[..], [("step", Error::ShuttingDown)]), "{failures:?}");

        log.lock().unwrap().clear();
        assert_eq!(remaining.run().await.len(), 1);
        assert!(remaining.run().await.is_empty());
        assert_eq!(*log.lock().unwrap(), [2, 2], "only what failed is repeated");
        assert!(remaining.0.is_empty());
    }

    #[tokio::test]
    async fn what_succeeded_is_not_taken_back() {
        let log = Log::default();
        stack(&log, 9, 0).disarm();
        assert!(log.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_does_not_stop_the_others() {
        let log = Log::default();
        let undo = stack(&log, 8, 0);
        undo.push("hangs", std::future::pending);
        let failures = remaining(undo).run().await;
        assert!(matches!(failures[..], [("hangs", Error::Deadline { .. })]), "{failures:?}");
        assert_eq!(log.lock().unwrap().len(), 4);
    }
}
