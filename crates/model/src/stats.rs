//! Usage of resources, as read at one moment.

use serde::{Deserialize, Serialize};

use crate::container::Timestamp;

/// What the processes of one cgroup use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct CgroupUsage {
    /// When it was read.
    pub at: Timestamp,
    /// CPU time since the cgroup was made, nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged to the cgroup, page cache included, bytes.
    pub memory_bytes: u64,
    /// `memory_bytes` without inactive file pages: what kubelet calls the working set.
    pub working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub rss_bytes: u64,
    /// Memory limit, bytes; `None` when there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Page faults since the cgroup was made.
    pub page_faults: u64,
    /// Major page faults since the cgroup was made.
    pub major_page_faults: u64,
    /// Swap in use, bytes.
    pub swap_bytes: u64,
    /// Tasks in the cgroup.
    pub pids: u64,
    /// Tasks the kernel killed for the memory limit since the cgroup was made.
    pub oom_kills: u64,
}

/// What a directory tree uses on its file system.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// When it was read.
    pub at: Timestamp,
    /// Allocated bytes (512 times `st_blocks`), hard links counted once.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}
