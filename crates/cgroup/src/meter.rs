//! One cgroup, read again and again.

use berth_model::stats::CgroupUsage;

use crate::files::Kept;
use crate::{Cgroup, Error};

/// Reads what a cgroup uses, and keeps its directories open for the next time, one in each
/// hierarchy: to find them is a third of what a reading costs. That keeps nobody from
/// removing the cgroup (kernfs), but some of the kernel's memory until this is dropped.
#[derive(Debug)]
pub struct Meter {
    cgroup: Cgroup,
    kept: Kept,
}

impl Meter {
    /// Most descriptors that one keeps: those of memory, CPU time, processes and pressure.
    pub const DESCRIPTORS: usize = 4;

    /// Of `cgroup`, of which nothing is open yet.
    pub fn new(cgroup: Cgroup) -> Self {
        Self { cgroup, kept: Kept::default() }
    }

    /// As [`Cgroup::usage`].
    ///
    /// # Errors
    /// Those of [`Cgroup::usage`]; nothing is kept then.
    pub fn usage(&mut self) -> Result<CgroupUsage, Error> {
        let first = self.kept.directories.is_empty();
        match self.cgroup.usage_again(&mut self.kept) {
            // Removed, and perhaps made again under the same name.
            Err(_) if !first => self.cgroup.usage_again(&mut self.kept),
            read => read,
        }
    }
}
