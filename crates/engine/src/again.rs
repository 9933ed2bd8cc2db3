//! When what failed is tried again: soon at first, then less and less often.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Pause before the first further try.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const LAST: Duration = Duration::from_secs(5);

/// The next try of something, if one is due.
#[derive(Debug, Default)]
pub(crate) struct Again {
    next: Option<Instant>,
    pause: Duration,
}

impl Again {
    /// It failed: another try comes later.
    pub(crate) fn later(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST, LAST);
        self.next = Some(Instant::now() + self.pause);
    }

    /// Nothing is left to try.
    pub(crate) fn never(&mut self) {
        *self = Self::default();
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

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_a_limit_and_start_anew() {
        let mut again = Again::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            again.later();
            let began = Instant::now();
            again.due().await;
            pauses.push(began.elapsed().as_millis() / 100);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 50, 50]);
        again.never();
        again.later();
        assert_eq!(again.pause, FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_unless_something_failed() {
        let mut again = Again::default();
        let waited = tokio::time::timeout(LAST * 10, again.due()).await;
        assert!(waited.is_err());
    }
}
