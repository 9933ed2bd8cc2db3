//! Signal dispositions for a program about to be executed.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Gives every signal its default disposition and unblocks all.
///
/// execve(2) resets handlers but keeps ignored signals ignored (Rust ignores SIGPIPE) and the
/// mask as it is; a container must inherit neither.
///
/// # Errors
/// None that the kernel documents for these arguments.
pub fn reset_to_default() -> Result<(), Errno> {
    for signal in 1..=libc::SIGRTMAX() {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL is a valid disposition for any signal, and installs no code of ours.
        // glibc refuses its two internal signals with EINVAL, which is harmless: it never
        // leaves those ignored.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}
