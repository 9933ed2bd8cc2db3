//! The shim's own log: lines on standard error, which never make it wait.
//!
//! Standard error is a file of berthd's, or containerd's `log` FIFO, opened so that a
//! reader that is away costs lines and not time.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether [`debug`] says anything.
static DEBUG: AtomicBool = AtomicBool::new(false);

/// From now on, in children too, [`debug`] says something or nothing.
pub(crate) fn set_debug(wanted: bool) {
    DEBUG.store(wanted, Ordering::Relaxed);
}

/// Something that only who looks for lost time wants to know.
pub(crate) fn debug(message: fmt::Arguments<'_>) {
    if DEBUG.load(Ordering::Relaxed) {
        say("DEBUG", message);
    }
}

/// Something went wrong that no caller is told of.
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    say("WARN", message);
}

fn say(level: &str, message: fmt::Arguments<'_>) {
    let time = crate::io::frame::rfc3339(berth_failpoint::now());
    let line =
        format!("{time} {level} containerd-shim-berth-v1[{}]: {message}\n", std::process::id());
    // A log that cannot be written has nobody to be told of it.
    nix::unistd::write(std::io::stderr(), line.as_bytes()).ok();
}
