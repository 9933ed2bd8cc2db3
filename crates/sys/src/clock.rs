//! The clock that nobody sets, as a number (clock_gettime(2)).

use std::time::Duration;

/// Time on `CLOCK_MONOTONIC`, which other processes of this boot can compare with theirs.
///
/// [`std::time::Instant`] is of the same clock, and cannot be told to anybody.
#[must_use]
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec, which is ours.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(read, 0, "every kernel has this clock");
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_with_time() {
        let (before, start) = (monotonic(), std::time::Instant::now());
        while start.elapsed() < Duration::from_millis(2) {}
        let passed = monotonic() - before;
        assert!(passed >= Duration::from_millis(2), "{passed:?}");
    }
}
