//! Descriptors by the range: close_range(2).

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;

use crate::process::InChild;

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// `EINVAL` for a negative number; `ENOMEM` if the table had to be copied.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    let first = libc::c_uint::try_from(first).map_err(|_| Errno::EINVAL)?;
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC takes three integers, touches no memory
    // of this process and closes nothing: it only sets a flag of each descriptor.
    let ret = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    Errno::result(ret).map(drop)
}

/// Closes every descriptor of a forked child but 0, 1, 2 and those in `keep`.
///
/// Values of the parent that own another descriptor stay in the child's memory and are
/// stale from here on. That is sound because such a child never returns to the code that
/// owns them: the [`InChild`] proves it is one, and it ends in `_exit` or `execve`. What the
/// child itself has opened before must be in `keep`.
///
/// # Errors
/// `ENOMEM` if the table had to be copied.
pub fn close_all_but(_child: &InChild, keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut keep: Vec<libc::c_uint> = keep
        .iter()
        .filter_map(|fd| libc::c_uint::try_from(fd.as_raw_fd()).ok())
        .filter(|fd| *fd > 2)
        .collect();
    keep.sort_unstable();
    keep.dedup();

    let mut first = 3;
    for kept in keep {
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    close_range(first, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the only caller runs in a forked child that never returns to the owners of
    // these descriptors (see `close_all_but`); the call touches no memory of this process.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(ret).map(drop)
}
