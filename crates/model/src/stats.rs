//! Usage of resources, as read at one moment.
//!
//! What a kernel does not count is `None`: it is not zero.

use serde::{Deserialize, Serialize};

use crate::container::Timestamp;

/// What the processes of one cgroup use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupUsage {
    /// When it was read.
    pub at: Timestamp,
    /// CPU time; `None` without that accounting.
    pub cpu: Option<CpuUsage>,
    /// Memory; `None` without its controller.
    pub memory: Option<MemoryUsage>,
    /// Tasks in the cgroup and below; `None` without their controller.
    pub pids: Option<u64>,
    /// How long its tasks waited for block I/O.
    pub io_pressure: Option<Pressure>,
}

/// CPU time since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUsage {
    /// All of it, nanoseconds.
    pub total_ns: u64,
    /// What of it was in user mode, nanoseconds; not in every reading.
    pub user_ns: Option<u64>,
    /// What of it was in the kernel, nanoseconds; not in every reading.
    pub system_ns: Option<u64>,
    /// What its quota held back; not in every reading.
    pub throttling: Option<Throttling>,
    /// How long its tasks waited for a CPU.
    pub pressure: Option<Pressure>,
}

/// What a CPU quota held back since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Throttling {
    /// Periods in which it had something to run.
    pub periods: u64,
    /// Periods in which its quota was used up.
    pub throttled: u64,
    /// For how long it was held back, nanoseconds.
    pub throttled_ns: u64,
}

/// Memory charged to a cgroup and those below it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryUsage {
    /// All of it, page cache included, bytes.
    pub bytes: u64,
    /// `bytes` without inactive file pages: what kubelet calls the working set.
    pub working_set_bytes: u64,
    /// Anonymous memory, bytes.
    pub rss_bytes: u64,
    /// Pages of files, shared memory included, bytes.
    pub cache_bytes: u64,
    /// Pages of files that are mapped, bytes.
    pub mapped_bytes: u64,
    /// Limit of `bytes`; `None` when there is none.
    pub limit_bytes: Option<u64>,
    /// Page faults since the cgroup was made.
    pub page_faults: u64,
    /// Major page faults since the cgroup was made.
    pub major_page_faults: u64,
    /// Page faults of the cgroup itself, without those below it, if they are told apart.
    pub own_page_faults: Option<u64>,
    /// Major page faults of the cgroup itself, if they are told apart.
    pub own_major_page_faults: Option<u64>,
    /// What is swapped out; `None` where swap is not accounted.
    pub swap: Option<SwapUsage>,
    /// How long its tasks waited for memory.
    pub pressure: Option<Pressure>,
}

/// What a cgroup has swapped out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SwapUsage {
    /// Bytes in swap.
    pub bytes: u64,
    /// Most bytes it may have there; `None` when there is no limit.
    pub limit_bytes: Option<u64>,
}

/// Pressure stall information of one resource (`Documentation/accounting/psi.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Time in which at least one task waited.
    pub some: Stall,
    /// Time in which all tasks waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Microseconds since the cgroup was made.
    pub total_us: u64,
    /// Share of the last ten seconds, percent.
    pub avg10: f64,
    /// Share of the last minute, percent.
    pub avg60: f64,
    /// Share of the last five minutes, percent.
    pub avg300: f64,
}

/// What metrics tell of a cgroup beside [`CgroupUsage`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupDetails {
    /// What was read with it, all that is not in every reading included.
    pub usage: CgroupUsage,
    /// Memory that the kernel itself uses for it, bytes.
    pub kernel_bytes: Option<u64>,
    /// The most memory it ever had, bytes.
    pub peak_bytes: Option<u64>,
    /// How often its memory limit was reached.
    pub limit_hits: Option<u64>,
    /// Processes that the kernel killed for its memory limit.
    pub oom_kills: Option<u64>,
    /// What went to and from each block device.
    pub io: Vec<DeviceIo>,
    /// Huge pages in use, by size.
    pub huge_pages: Vec<HugePages>,
    /// What it is limited to.
    pub limits: CgroupLimits,
}

/// What went to and from one block device since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DeviceIo {
    /// Device number, major.
    pub major: u32,
    /// Device number, minor.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HugePages {
    /// The kernel's name for the size: `2MB`.
    pub size: String,
    /// Bytes in use.
    pub bytes: u64,
    /// The most bytes there ever were; `None` where that is not kept (cgroup v2).
    pub peak_bytes: Option<u64>,
}

/// What a cgroup is limited to, as the kernel has it; `None` is no limit, or none known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CgroupLimits {
    /// Relative weight in v1's scale, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CFS period, microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota per period, microseconds.
    pub cpu_quota: Option<u64>,
    /// Memory that is kept for it, bytes (`memory.soft_limit_in_bytes`, `memory.min`).
    pub memory_reservation: Option<u64>,
    /// Swap as the kernel's file has it, bytes: with memory on v1 (`memory.memsw`), alone on v2.
    pub swap: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
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
