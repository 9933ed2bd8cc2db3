//! How a new process enters its cgroup by itself.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// Descriptors through which a forked child joins a cgroup (design decision 14).
///
/// The parent opens them; the child was cloned with `CLONE_INTO_CGROUP` and
/// [`JoinHandles::unified`] where there is a v2 hierarchy, then calls [`JoinHandles::join_self`]
/// for the v1 ones. All are close-on-exec.
#[derive(Debug)]
pub struct JoinHandles {
    pub(crate) tasks: Vec<OwnedFd>,
    pub(crate) unified: Option<OwnedFd>,
}

impl JoinHandles {
    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        todo!()
    }

    /// Moves the calling thread into the v1 hierarchies. For a single-threaded process.
    /// Async-signal-safe: it only writes; it neither allocates nor locks.
    ///
    /// # Errors
    /// That of the first write that fails.
    pub fn join_self(&self) -> Result<(), Errno> {
        todo!()
    }

    /// Moves the calling process into the v2 hierarchy, for one that could not be cloned into
    /// it; slower (design decision 14). Async-signal-safe.
    ///
    /// # Errors
    /// That of open or write.
    pub fn join_unified_self(&self) -> Result<(), Errno> {
        todo!()
    }
}
