//! Cgroups: make, limit, join, freeze, kill, read, remove.

mod cgroup;
mod error;
mod hierarchy;
mod join;
mod limits;
mod path;

pub use cgroup::Cgroup;
pub use error::Error;
pub use hierarchy::{Controller, Hierarchy, Version};
pub use join::JoinHandles;
pub use limits::{CpuLimits, DeviceAccess, DeviceKind, DeviceRule, Limits, MemoryLimits};
pub use path::CgroupPath;
