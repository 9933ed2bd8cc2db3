//! When to try again, and after how long.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

use crate::{Config, Error};

/// A failed attempt, and what it says about the next one.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    retry: Retry,
}

#[derive(Debug)]
enum Retry {
    Never,
    Backoff,
    After(Duration),
}

impl Failure {
    /// Another attempt would end the same way.
    pub(crate) fn last(error: Error) -> Self {
        Self { error, retry: Retry::Never }
    }

    /// Another attempt may do better.
    pub(crate) fn passing(error: Error) -> Self {
        Self { error, retry: Retry::Backoff }
    }

    /// As [`Failure::passing`], but not before the time that the headers name, if any.
    pub(crate) fn deferred(error: Error, headers: &HeaderMap) -> Self {
        let retry = retry_after(headers).map_or(Retry::Backoff, Retry::After);
        Self { error, retry }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::last(error)
    }
}

/// Counts the attempts at one request, and makes the pauses between them.
#[derive(Debug)]
pub(crate) struct Attempts {
    limit: u32,
    backoff: Duration,
    max_backoff: Duration,
    failed: u32,
}

impl Attempts {
    /// Only one if another host is there to be asked instead: nobody waits for a mirror.
    pub(crate) fn new(config: &Config, is_last: bool) -> Self {
        let Config { attempts, backoff, max_backoff, .. } = *config;
        let limit = if is_last { attempts.max(1) } else { 1 };
        Self { limit, backoff, max_backoff, failed: 0 }
    }

    /// Forgets the failures so far.
    pub(crate) fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits until the next attempt is due.
    ///
    /// # Errors
    /// The failure's own error, if there is to be no other attempt: it would fail again,
    /// there were enough, or the registry wants a longer pause than is granted.
    pub(crate) async fn pause(&mut self, failure: Failure) -> Result<(), Error> {
        self.failed = self.failed.saturating_add(1);
        let Some(pause) = self.next_pause(&failure.retry) else { return Err(failure.error) };
        tracing::info!(
            error = &failure.error as &dyn std::error::Error,
            failed = self.failed,
            pause_ms = pause.as_millis(),
            "registry request is tried again"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn next_pause(&self, retry: &Retry) -> Option<Duration> {
        if self.failed >= self.limit {
            return None;
        }
        let doubled = self.backoff.saturating_mul(1 << (self.failed - 1).min(16));
        let backoff = jitter(doubled.min(self.max_backoff));
        match retry {
            Retry::Never => None,
            Retry::Backoff => Some(backoff),
            // Coming back early would only prolong the refusal.
            Retry::After(wanted) if *wanted > self.max_backoff => None,
            Retry::After(wanted) => Some(backoff.max(*wanted)),
        }
    }
}

/// Between half of `pause` and all of it, so that failed layers do not return in step.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) >> 44;
    let part = u32::try_from(random).expect("20 bits fit") + (1 << 20);
    pause.mul_f64(f64::from(part) / f64::from(1 << 21))
}

/// RFC 9110, section 10.2.3: seconds, or a date, which is of the registry's clock. What that
/// says now is in the same headers; what ours says may be wrong.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let now = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?.trim()).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(failed: u32) -> Attempts {
        let config = Config {
            backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            ..Config::default()
        };
        Attempts { failed, ..Attempts::new(&config, true) }
    }

    #[test]
    fn pauses_double_up_to_the_limit_and_end_with_the_attempts() {
        let pause = |failed| attempts(failed).next_pause(&Retry::Backoff);
        for (failed, longest) in [(1, 200), (2, 400), (3, 800), (4, 1600)] {
            let pause = pause(failed).unwrap();
            let longest = Duration::from_millis(longest);
            assert!(pause >= longest / 2 && pause <= longest, "{failed}: {pause:?}");
        }
        assert_eq!(pause(5), None);
    }

    #[test]
    fn a_wanted_pause_is_granted_up_to_the_limit() {
        let pause = |seconds| attempts(1).next_pause(&Retry::After(Duration::from_secs(seconds)));
        assert_eq!(pause(7), Some(Duration::from_secs(7)));
        assert!(pause(0).unwrap() >= Duration::from_millis(100));
        assert_eq!(pause(11), None);
        assert_eq!(attempts(1).next_pause(&Retry::Never), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (value, expected) in [
            ("3", Some(3)),
            (" 3 ", Some(3)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            headers.insert(DATE, now.parse().unwrap());
            let found = retry_after(&headers);
            assert_eq!(found, expected.map(Duration::from_secs), "{value}");
        }
        // A date of an unknown clock says nothing.
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, now.parse().unwrap());
        assert_eq!(retry_after(&headers), None);
    }
}
