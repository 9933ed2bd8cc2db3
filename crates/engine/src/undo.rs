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

/// Steps of one object, in the order in which they were pushed.
///
/// Dropped with its work, as by a panic, it leaves all of them to [`Pending`].
#[derive(Debug)]
pub(crate) struct Undo {
    remaining: Mutex<Remaining>,
    object: Object,
    pending: Arc<Pending>,
}

impl Undo {
    pub(crate) fn new(pending: &Arc<Pending>, object: Object) -> Self {
        Self { remaining: Mutex::default(), object, pending: Arc::clone(pending) }
    }

    /// Adds a step; it does nothing until [`Undo::run`].
    pub(crate) fn push<F>(
        &self,
        what: &'static str,
        attempt: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let mut remaining = self.remaining.lock().unwrap_or_else(PoisonError::into_inner);
        remaining.0.push(Step::new(what, attempt));
    }

    /// Takes everything back that can be, and leaves the rest to [`Pending`].
    pub(crate) async fn run(self) {
        let mut remaining = self.take();
        let failures = remaining.run().await;
        self.pending.take(self.object.clone(), remaining, failures);
    }

    /// The work succeeded: what was made stays.
    pub(crate) fn disarm(self) {
        drop(self.take());
    }

    fn take(&self) -> Remaining {
        std::mem::take(&mut *self.remaining.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let remaining = self.take();
        if !remaining.0.is_empty() {
            let died = Error::TaskDied("the task that did the work");
            self.pending.take(self.object.clone(), remaining, vec![("take everything back", died)]);
        }
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
        let undo = Undo::new(&Arc::default(), Object::new("sandbox", "a"));
        for n in 0..4 {
            undo.push("step", step(n));
        }
        undo
    }

    #[tokio::test]
    async fn every_step_runs_newest_first_and_every_failure_is_reported() {
        let log = Log::default();
        let mut remaining = stack(&log, 2, 2).take();
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
    async fn what_died_with_its_work_is_taken_back_all_the_same() {
        let log = Log::default();
        let undo = stack(&log, 9, 0);
        let pending = Arc::clone(&undo.pending);
        let died = tokio::spawn(async move {
            let _undo = undo;
            panic!("on purpose");
        });
        died.await.unwrap_err();
        assert_eq!(pending.status().unfinished.len(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(*log.lock().unwrap(), [3, 2, 1, 0]);
        assert!(pending.status().unfinished.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_does_not_stop_the_others() {
        let log = Log::default();
        let undo = stack(&log, 8, 0);
        undo.push("hangs", std::future::pending);
        let failures = undo.take().run().await;
        assert!(matches!(failures[..], [("hangs", Error::Deadline { .. })]), "{failures:?}");
        assert_eq!(log.lock().unwrap().len(), 4);
    }
}
