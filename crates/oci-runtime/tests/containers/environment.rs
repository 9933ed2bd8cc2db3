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

/// Moves this process into a mount namespace of its own, from which nothing travels back.
pub(crate) fn leave_machine_mounts() {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
}
