//! One cached sampler of cgroups.

use std::time::Duration;

use berth_cgroup::{Cgroup, CgroupPath, Error};
use berth_model::stats::CgroupUsage;

/// Usage of one cgroup, and its CPU rate against the sample before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sample {
    /// What was read.
    pub usage: CgroupUsage,
    /// CPU use between the two last readings, billionths of one core; `None` until there are two.
    pub nano_cores: Option<u64>,
}

/// Reads cgroups, each at most once per `max_age`.
#[derive(Debug)]
pub struct Sampler {}

impl Sampler {
    /// A sampler whose answers are at most `max_age` old.
    pub fn new(_max_age: Duration) -> Self {
        todo!()
    }

    /// Usage of `cgroup`; read now unless the last reading is young enough. Blocks for the
    /// reading of a few kernel files (tens of microseconds).
    ///
    /// # Errors
    /// Those of [`Cgroup::usage`]; a failure is not cached.
    pub fn sample(&self, _cgroup: &Cgroup) -> Result<Sample, Error> {
        todo!()
    }

    /// The last reading of the cgroup at `path`, however old.
    pub fn last(&self, _path: &CgroupPath) -> Option<Sample> {
        todo!()
    }

    /// Drops what is kept of the cgroup at `path`; called when its owner is removed.
    pub fn forget(&self, _path: &CgroupPath) {
        todo!()
    }
}
