//! The shim's own log: lines on standard error, which never make it wait.
//!
//! Standard error is a file of berthd's, or containerd's `log` FIFO, opened so that a
//! reader that is away costs lines and not time.

use std::fmt;

/// Something went wrong that no caller is told of.
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    let time = crate::io::frame::rfc3339(berth_failpoint::now());
    let line = format!("{time} WARN containerd-shim-berth-v1[{}]: {message}\n", std::process::id());
    // A log that cannot be written has nobody to be told of it.
    nix::unistd::write(std::io::stderr(), line.as_bytes()).ok();
}
