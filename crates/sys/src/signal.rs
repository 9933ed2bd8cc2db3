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
    // The C library refuses to touch the two signals it keeps for itself, which a caller may
    // have been started with ignored; so this is the bare system call. All of the kernel's
    // `struct sigaction` being zero means: default action, no flags, empty mask.
    let default = [0u64; 4];
    let mask_bytes: libc::size_t = 8;
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the kernel reads one `struct sigaction` (three words and an 8-byte mask) from
        // a live buffer of that size and writes none, the old one being null. SIG_DFL installs
        // no code of ours.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                mask_bytes,
            )
        };
        Errno::result(ret)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}
