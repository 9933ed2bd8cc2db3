//! Which hierarchies this host has.

use std::fmt;

use crate::{Cgroup, CgroupPath, Error};

/// How this host's controllers are arranged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// Every controller in its own hierarchy.
    V1,
    /// One hierarchy with every controller.
    V2,
    /// Controllers in v1 hierarchies, and a v2 hierarchy beside them.
    Hybrid,
}

/// A controller that Berth sets limits with or reads.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// CPU accounting; on v2 part of every cgroup.
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory.
    Memory,
    /// Tasks.
    Pids,
    /// Huge pages.
    Hugetlb,
    /// Device access; on v2 a program attached to the cgroup.
    Devices,
    /// Freezing; on v2 part of every cgroup.
    Freezer,
    /// Block I/O (`blkio` on v1).
    Io,
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Hugetlb => "hugetlb",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Io => "io",
        })
    }
}

/// The cgroup hierarchies of this host; found once, shared by all.
#[derive(Clone, Debug)]
pub struct Hierarchy {}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`], [`Error::Read`].
    pub fn detect() -> Result<Self, Error> {
        todo!()
    }

    /// How the controllers are arranged.
    pub fn version(&self) -> Version {
        todo!()
    }

    /// The controllers that limits can be set with.
    pub fn controllers(&self) -> Vec<Controller> {
        todo!()
    }

    /// Whether `controller` is there.
    pub fn has(&self, _controller: Controller) -> bool {
        todo!()
    }

    /// Whether swap can be limited (`swapaccount`).
    pub fn has_swap_limit(&self) -> bool {
        todo!()
    }

    /// Makes the cgroup in every hierarchy, its ancestors too where they are missing; cpusets
    /// are filled from their parents. Existing directories are taken as they are. What was
    /// made is removed again when a step fails.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Write`], [`Error::Read`].
    pub fn create(&self, _path: &CgroupPath) -> Result<Cgroup, Error> {
        todo!()
    }

    /// The cgroup, if it exists in any hierarchy.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn open(&self, _path: &CgroupPath) -> Result<Cgroup, Error> {
        todo!()
    }
}
