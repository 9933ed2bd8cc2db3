//! How a new process enters its cgroup by itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags};

use crate::create::converted;
use crate::hierarchy::Mounts;
use crate::{CgroupPath, Error};

/// Descriptors through which a forked child joins a cgroup (design decision 14).
///
/// The parent opens them; the child was cloned with `CLONE_INTO_CGROUP` and
/// [`JoinHandles::unified`] where there is a v2 hierarchy, then calls [`JoinHandles::join_self`]
/// for the v1 ones. All are close-on-exec.
#[derive(Debug)]
pub struct JoinHandles {
    tasks: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
    /// `cgroup.procs` of the v2 directory, once it was opened in advance.
    procs: Option<OwnedFd>,
}

impl JoinHandles {
    pub(crate) fn open(mounts: &Mounts, path: &CgroupPath) -> Result<Self, Error> {
        let open = |path: std::path::PathBuf, flags: OFlags| {
            rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| Error::Open { path, source: converted(error) })
        };
        let tasks = mounts
            .legacy
            .iter()
            .map(|legacy| open(path.below(&legacy.mount).join("tasks"), OFlags::WRONLY))
            .collect::<Result<_, _>>()?;
        let unified = mounts
            .unified
            .as_ref()
            .map(|unified| open(path.below(&unified.mount), OFlags::PATH | OFlags::DIRECTORY))
            .transpose()?;
        Ok(Self { tasks, unified, procs: None })
    }

    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling thread into the v1 hierarchies. For a single-threaded process.
    /// Async-signal-safe: it only writes; it neither allocates nor locks.
    ///
    /// # Errors
    /// That of the first write that fails.
    pub fn join_self(&self) -> Result<(), Errno> {
        self.tasks.iter().try_for_each(|tasks| write_self(tasks.as_fd()))
    }

    /// Moves the calling process into the v2 hierarchy, for one that could not be cloned into
    /// it; slower (design decision 14). Async-signal-safe.
    ///
    /// # Errors
    /// That of open or write.
    pub fn join_unified_self(&self) -> Result<(), Errno> {
        let opened = self.open_procs()?;
        match self.procs.as_ref().or(opened.as_ref()) {
            Some(procs) => write_self(procs.as_fd()),
            None => Ok(()),
        }
    }

    /// Opens what [`JoinHandles::join_unified_self`] writes to, for a process that will have
    /// entered a user namespace by then. The kernel asks whether he who opened the file may
    /// write it, as it does for v1 (cgroups(7); since Linux 5.16 and CVE-2021-4197).
    ///
    /// # Errors
    /// That of open.
    pub fn for_user_namespace(&mut self) -> Result<(), Errno> {
        self.procs = self.open_procs()?;
        Ok(())
    }

    fn open_procs(&self) -> Result<Option<OwnedFd>, Errno> {
        let Some(unified) = self.unified.as_ref().filter(|_| self.procs.is_none()) else {
            return Ok(None);
        };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(unified, c"cgroup.procs", flags, Mode::empty())
            .map(Some)
            .map_err(converted)
    }
}

/// Writes `0`, which is "whoever writes this".
fn write_self(file: BorrowedFd<'_>) -> Result<(), Errno> {
    loop {
        match rustix::io::write(file, b"0") {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(converted(error)),
        }
    }
}
