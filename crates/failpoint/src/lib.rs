//! Named points in the daemon's work at which a test has it killed, delayed, or failed.
//!
//! ```text
//! BERTH_FAILPOINTS=FILE       the daemon looks into FILE each time it passes a point
//! FILE:   run.stored kill                      SIGKILL to itself, there and then
//!         pull.row error ENOSPC after=2        fails from the third pass on
//!         stop.entered delay=500 times=1       waits 500 ms, once
//!         start.executed hold                  waits until FILE does not say so any more
//!         clock +31536000                      the wall clock is a year ahead
//! FILE.passed                 the daemon appends the name of each point it passes
//! ```
//!
//! At a point behind which nothing can fail any more ([`Point::fails`]) a daemon can be
//! killed or delayed only.
//!
//! A point lies between two effects of a verb: what is before it has happened, what is
//! after it has not. Without the feature `enabled` a point is nothing, and
//! [`POINTS`] is still the list of what a test build has.
//!
//! Invariants: a release build holds no trace of this; a line that means nothing ends the
//! daemon, since a test that arms nothing proves nothing.

#[cfg(feature = "enabled")]
mod armed;
mod points;
mod wall;

use std::io;

pub use points::{POINTS, Point};
pub use wall::now;

/// Passes `point` where waiting may block the thread.
///
/// # Errors
/// What the test wants to have happened there.
#[inline]
pub fn pass(point: Point) -> io::Result<()> {
    #[cfg(feature = "enabled")]
    if let Some(delay) = armed::pass(point)? {
        std::thread::sleep(delay);
        while armed::is_held(point) {
            std::thread::sleep(delay);
        }
    }
    let _ = point;
    Ok(())
}

/// Passes `point` in a task.
///
/// # Errors
/// As [`pass`].
#[inline]
#[cfg_attr(not(feature = "enabled"), expect(clippy::unused_async, reason = "waits in test builds"))]
pub async fn reach(point: Point) -> io::Result<()> {
    #[cfg(feature = "enabled")]
    if let Some(delay) = armed::pass(point)? {
        tokio::time::sleep(delay).await;
        while armed::is_held(point) {
            tokio::time::sleep(delay).await;
        }
    }
    let _ = point;
    Ok(())
}

/// Passes a point behind which nothing can fail, where waiting may block the thread.
#[inline]
pub fn passed(point: Point) {
    #[cfg(feature = "enabled")]
    if let Some(delay) = armed::passed(point) {
        std::thread::sleep(delay);
        while armed::is_held(point) {
            std::thread::sleep(delay);
        }
    }
    let _ = point;
}

/// Passes a point behind which nothing can fail, in a task.
#[inline]
#[cfg_attr(not(feature = "enabled"), expect(clippy::unused_async, reason = "waits in test builds"))]
pub async fn reached(point: Point) {
    #[cfg(feature = "enabled")]
    if let Some(delay) = armed::passed(point) {
        tokio::time::sleep(delay).await;
        while armed::is_held(point) {
            tokio::time::sleep(delay).await;
        }
    }
    let _ = point;
}
