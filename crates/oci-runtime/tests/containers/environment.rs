//! What must be the same on the host before and after a test.

use std::collections::BTreeSet;
use std::fs;

/// A look at what a container could leave behind.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Host {
    mounts: BTreeSet<String>,
    descriptors: usize,
    children: String,
    core_pattern: String,
}

impl Host {
    pub(crate) fn look() -> Self {
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .map(ToOwned::to_owned)
                .collect(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            children: fs::read_to_string("/proc/thread-self/children").unwrap(),
            core_pattern: fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        }
    }
}
