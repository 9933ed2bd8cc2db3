//! The wall clock, which a test may set wrong.

use std::time::SystemTime;

/// What time people would say it is: for records and messages only. Durations and
/// deadlines are of the monotonic clock.
#[must_use]
pub fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks")]
    let now = SystemTime::now();
    #[cfg(feature = "enabled")]
    let now = crate::armed::shift(now);
    now
}
