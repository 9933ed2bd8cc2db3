//! Cgroups: make, limit, join, freeze, kill, read, remove.
//!
//! [`Hierarchy`] is what the host has; [`Cgroup`] is one cgroup under one name in all of it.
//! Each controller is used where it is bound, in a v1 hierarchy or in the v2 one, so the same
//! calls serve v1, v2 and hybrid hosts. A hybrid host's v2 hierarchy has every cgroup too:
//! `cgroup.kill` and `cgroup.freeze` work there without controllers (design decision 13).
//!
//! A process joins by itself ([`JoinHandles`], design decision 14).
//!
//! Invariants: the kernel's files are the state, and nothing of them is cached, but for
//! what a [`Meter`] keeps; removing is safe to
//! repeat; a limit that cannot be set is an error, never skipped. Not here: the `systemd`
//! driver (a later issue: this is the `cgroupfs` one), block I/O limits, watching for events.

mod apply;
mod cgroup;
mod change;
mod create;
mod devices;
mod error;
mod files;
mod hierarchy;
mod join;
mod limits;
mod meter;
mod mountinfo;
mod path;
mod processes;
mod usage;

pub use cgroup::Cgroup;
pub use change::Before;
pub use error::Error;
pub use hierarchy::{Controller, Hierarchy, Version};
pub use join::JoinHandles;
pub use limits::{CpuLimits, DeviceAccess, DeviceKind, DeviceRule, Limits, MemoryLimits};
pub use meter::Meter;
pub use path::CgroupPath;
