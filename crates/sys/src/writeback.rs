//! Asking the kernel to begin writing a file's dirty pages, without waiting for them.
//!
//! Invariants: nothing here makes data durable. sync_file_range(2) flushes no metadata and
//! no disk cache; whoever needs durability calls syncfs(2) or fsync(2) afterwards and only
//! finds less left to do.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Begins write-back of `length` bytes of `file` from byte `offset` on.
///
/// Returns once the requests are queued (it may wait for a congested queue). A kernel or
/// filesystem without the call is not an error: the bytes then wait for the next sync.
///
/// # Errors
/// `EOVERFLOW` if a number does not fit a file offset; `EIO` or `ENOSPC` if an earlier
/// write-back failed; `ESPIPE` if `file` is neither a regular file nor a block device.
pub fn start_writeback(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<(), Errno> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    let length = libc::off64_t::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: sync_file_range(2) takes a descriptor, which `file` keeps open for the call,
    // and three integers; it touches no memory of this process.
    let ret = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE)
    };
    match Errno::result(ret) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_regular_file_is_accepted_and_a_pipe_is_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        assert_eq!(start_writeback(file.as_fd(), 0, 8192), Ok(()));
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        assert_eq!(start_writeback(pipe.as_fd(), 0, 1), Err(Errno::ESPIPE));
    }

    #[test]
    fn an_offset_beyond_the_kernels_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(start_writeback(file.as_fd(), u64::MAX, 1), Err(Errno::EOVERFLOW));
    }
}
