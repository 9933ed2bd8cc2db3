//! One cgroup.

use std::path::PathBuf;
use std::sync::Arc;

use berth_model::stats::{CgroupDetails, CgroupUsage};

use crate::files::Kept;
use crate::hierarchy::Mounts;
use crate::{
    Before, CgroupPath, Error, JoinHandles, Limits, apply, change, create, processes, usage,
};

/// One cgroup, in every hierarchy of the host. A name, not an owner: dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {
    mounts: Arc<Mounts>,
    path: CgroupPath,
}

impl Cgroup {
    pub(crate) fn new(mounts: Arc<Mounts>, path: CgroupPath) -> Self {
        Self { mounts, path }
    }

    /// Its name.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Its directory in each hierarchy.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.mounts.roots().map(|root| self.path.below(root)).collect()
    }

    /// Its v2 directory, where there is one (`cgroup.events`, pressure files).
    pub fn unified(&self) -> Option<PathBuf> {
        Some(self.mounts.unified(&self.path)?.path().to_owned())
    }

    /// Whether it is there in any hierarchy.
    pub fn exists(&self) -> bool {
        self.mounts.roots().any(|root| self.path.below(root).is_dir())
    }

    /// Sets every limit that is given.
    ///
    /// # Errors
    /// [`Error::MissingController`], [`Error::MissingFile`], [`Error::InvalidLimit`],
    /// [`Error::MemoryInUse`], [`Error::DeviceRule`], [`Error::DeviceProgram`], [`Error::Write`].
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        apply::apply(&self.mounts, &self.path, limits)
    }

    /// As [`Cgroup::apply`], on a cgroup in use: on failure every limit is as it was, and a
    /// memory limit below what is in use is refused in either version. What was before can be
    /// put back later.
    ///
    /// # Errors
    /// As [`Cgroup::apply`], and [`Error::Read`].
    pub fn change(&self, limits: &Limits) -> Result<Before, Error> {
        change::change(&self.mounts, &self.path, limits)
    }

    /// Opens what a child needs to join.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn join_handles(&self) -> Result<JoinHandles, Error> {
        JoinHandles::open(&self.mounts, &self.path)
    }

    /// Its processes and those of cgroups below it, ascending, as this pid namespace numbers them.
    ///
    /// # Errors
    /// [`Error::Read`]; a cgroup that is gone has none.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        Ok(processes::pids(&self.mounts, &self.path)?.into_iter().collect())
    }

    /// Sends SIGKILL to every process in it and below; returns without waiting for their end.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Kill`], [`Error::Read`]; a cgroup that is gone is success.
    pub fn kill_all(&self) -> Result<(), Error> {
        if self.exists() { processes::kill_all(&self.mounts, &self.path) } else { Ok(()) }
    }

    /// Sends a signal, by its number, to every process that is in it or below now.
    ///
    /// # Errors
    /// [`Error::Kill`] (an unknown number), [`Error::Read`].
    pub fn signal_all(&self, signal: i32) -> Result<(), Error> {
        processes::signal_all(&self.mounts, &self.path, signal)
    }

    /// Asks for every process in it and below to be stopped, or to run again; whether that is
    /// so. Does not wait: until it is, the caller asks again, as a v1 freezer needs when a
    /// process forked meanwhile. A cgroup thaws at once.
    ///
    /// # Errors
    /// [`Error::NoFreezer`], [`Error::Write`], [`Error::Read`].
    pub fn set_frozen(&self, frozen: bool) -> Result<bool, Error> {
        processes::set_frozen(&self.mounts, &self.path, frozen)
    }

    /// What it uses now. What this host's kernel does not count is not there.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Read`], [`Error::Malformed`].
    pub fn usage(&self) -> Result<CgroupUsage, Error> {
        self.found(usage::usage(&self.mounts, &self.path))
    }

    /// As [`Cgroup::usage`], with what is kept of it; nothing is, after a failure.
    pub(crate) fn usage_again(&self, kept: &mut Kept) -> Result<CgroupUsage, Error> {
        self.found(usage::again(kept, &self.mounts, &self.path))
    }

    /// What it uses now, and what else metrics tell of it; reads three times as many files.
    ///
    /// # Errors
    /// As [`Cgroup::usage`].
    pub fn details(&self) -> Result<CgroupDetails, Error> {
        self.found(usage::details(&self.mounts, &self.path))
    }

    /// Processes that the kernel killed for its memory limit.
    ///
    /// # Errors
    /// As [`Cgroup::usage`].
    pub fn oom_kills(&self) -> Result<u64, Error> {
        self.found(usage::oom_kills(&self.mounts, &self.path))
    }

    /// Removes it and the cgroups below it from every hierarchy, deepest first. What is not
    /// there is success; every hierarchy is tried. Does not wait: right after a kill it may
    /// be busy for some milliseconds, and the caller tries again.
    ///
    /// # Errors
    /// [`Error::Busy`] while it has processes, [`Error::Remove`].
    pub fn remove(&self) -> Result<(), Error> {
        create::remove(&self.mounts, &self.path)
    }

    /// A failure to read a cgroup that is gone is said so.
    fn found<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        match result {
            Err(Error::Read { .. }) if !self.exists() => {
                Err(Error::NotFound(self.path.to_string()))
            }
            other => other,
        }
    }
}
