//! One cgroup.

use std::path::PathBuf;

use berth_model::stats::CgroupUsage;

use crate::{CgroupPath, Error, JoinHandles, Limits};

/// One cgroup, in every hierarchy of the host. A name, not an owner: dropping it removes nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {}

impl Cgroup {
    /// Its name.
    pub fn path(&self) -> &CgroupPath {
        todo!()
    }

    /// Its directory in each hierarchy.
    pub fn paths(&self) -> Vec<PathBuf> {
        todo!()
    }

    /// Its v2 directory, where there is one (`cgroup.events`, pressure files).
    pub fn unified(&self) -> Option<PathBuf> {
        todo!()
    }

    /// Whether it is there in any hierarchy.
    pub fn exists(&self) -> bool {
        todo!()
    }

    /// Sets every limit that is given.
    ///
    /// # Errors
    /// [`Error::MissingController`], [`Error::MissingFile`], [`Error::InvalidLimit`],
    /// [`Error::MemoryInUse`], [`Error::DeviceRule`], [`Error::DeviceProgram`], [`Error::Write`].
    pub fn apply(&self, _limits: &Limits) -> Result<(), Error> {
        todo!()
    }

    /// Opens what a child needs to join.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn join_handles(&self) -> Result<JoinHandles, Error> {
        todo!()
    }

    /// Its processes and those of cgroups below it, ascending, as this pid namespace numbers them.
    ///
    /// # Errors
    /// [`Error::Read`]; a cgroup that is gone has none.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        todo!()
    }

    /// Sends SIGKILL to every process in it and below; returns without waiting for their end.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Kill`], [`Error::Read`]; a cgroup that is gone is success.
    pub fn kill_all(&self) -> Result<(), Error> {
        todo!()
    }

    /// Stops every process in it and below, and waits until they are stopped.
    ///
    /// # Errors
    /// [`Error::NoFreezer`], [`Error::FreezeTimeout`] (it is thawed again), [`Error::Write`].
    pub fn freeze(&self) -> Result<(), Error> {
        todo!()
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), Error> {
        todo!()
    }

    /// What it uses now. Values of a controller that the host lacks are zero.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Read`], [`Error::Malformed`].
    pub fn usage(&self) -> Result<CgroupUsage, Error> {
        todo!()
    }

    /// Processes that the kernel killed for its memory limit.
    ///
    /// # Errors
    /// As [`Cgroup::usage`].
    pub fn oom_kills(&self) -> Result<u64, Error> {
        todo!()
    }

    /// Removes it and the cgroups below it from every hierarchy, deepest first. What is not
    /// there is success; every hierarchy is tried.
    ///
    /// # Errors
    /// [`Error::Busy`] while it has processes, [`Error::Remove`].
    pub fn remove(&self) -> Result<(), Error> {
        todo!()
    }
}
