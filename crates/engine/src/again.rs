//! When what a driver failed to do is tried again: soon at first, then less and less often.
//! Until it is done, [`Pending`] shows it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::Error;
use crate::pending::{Object, Pending};

/// Pause before the first further try.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const LAST: Duration = Duration::from_secs(5);

/// The next try of something, if one is due.
#[derive(Debug)]
pub(crate) struct Again {
    pending: Arc<Pending>,
    /// Whose driver tries.
    object: Object,
    shown: bool,
    next: Option<Instant>,
    pause: Duration,
}

impl Again {
    pub(crate) fn new(pending: &Arc<Pending>, object: Object) -> Self {
        let pending = Arc::clone(pending);
        Self { pending, object, shown: false, next: None, pause: Duration::ZERO }
    }

    /// `step` failed: another try comes later.
    pub(crate) fn later(&mut self, step: &'static str, error: &Error) {
        self.show(step, error);
        self.pause = (self.pause * 2).clamp(FIRST, LAST);
        self.next = Some(Instant::now() + self.pause);
    }

    /// `step` failed, and its next try is at another's time.
    pub(crate) fn show(&mut self, step: &'static str, error: &Error) {
        self.shown = true;
        self.pending.show(&self.object, step, error);
    }

    /// Nothing is left to try.
    pub(crate) fn never(&mut self) {
        (self.next, self.pause) = (None, Duration::ZERO);
        if std::mem::take(&mut self.shown) {
            self.pending.clear(&self.object);
        }
    }

    /// Resolves when it is time; never without [`Again::later`].
    pub(crate) async fn due(&mut self) {
        match self.next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again() -> Again {
        Again::new(&Arc::default(), Object::new("sandbox", "a"))
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_a_limit_and_start_anew() {
        let mut again = again();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            again.later("stop", &Error::ShuttingDown);
            let began = Instant::now();
            again.due().await;
            pauses.push(began.elapsed().as_millis() / 100);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 50, 50]);
        again.never();
        again.later("stop", &Error::ShuttingDown);
        assert_eq!(again.pause, FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_unless_something_failed() {
        let mut again = again();
        let waited = tokio::time::timeout(LAST * 10, again.due()).await;
        assert!(waited.is_err());
    }
}
