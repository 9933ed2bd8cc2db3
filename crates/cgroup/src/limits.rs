//! What a cgroup may use: a plain mirror of the OCI runtime specification's `linux.resources`.

use std::collections::BTreeMap;
use std::fmt;

/// Limits of one cgroup. `None` (and an empty map) means: leave as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// CPU time.
    pub cpu: CpuLimits,
    /// CPUs it may run on, cpuset(7) list format.
    pub cpus: Option<String>,
    /// Memory nodes it may use, cpuset(7) list format.
    pub mems: Option<String>,
    /// Memory and swap.
    pub memory: MemoryLimits,
    /// Tasks; −1 means no limit.
    pub pids: Option<i64>,
    /// Huge pages, bytes by page size as the kernel spells it (`2MB`).
    pub hugepages: BTreeMap<String, u64>,
    /// cgroup v2 files and what to write there, in the order of their names; refused on a host
    /// without v2 controllers.
    pub unified: BTreeMap<String, String>,
    /// Device rules in the order of the OCI specification, on top of "deny everything".
    /// `None` leaves devices alone; `Some` of an empty list denies every device.
    pub devices: Option<Vec<DeviceRule>>,
}

/// CPU time limits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CpuLimits {
    /// Relative weight as cgroup v1 counts it, 2 to 262144; converted on v2. Zero is unset.
    pub shares: Option<u64>,
    /// Microseconds of CPU per period; negative means no limit. Zero is unset.
    pub quota: Option<i64>,
    /// Length of the period, microseconds. Zero is unset.
    pub period: Option<u64>,
    /// Microseconds that may be saved up over periods.
    pub burst: Option<u64>,
    /// Whether it runs only when nothing else wants to.
    pub idle: Option<bool>,
}

/// Memory limits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MemoryLimits {
    /// Memory, bytes; −1 means no limit. Zero is unset.
    pub limit: Option<i64>,
    /// Memory and swap together, bytes; −1 means no limit. Zero is unset.
    pub swap: Option<i64>,
    /// What it should keep when the node runs short, bytes. Zero is unset.
    pub reservation: Option<i64>,
}

/// One device rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceRule {
    /// Allow, or deny.
    pub allow: bool,
    /// Which kind.
    pub kind: DeviceKind,
    /// Major number; `None` means every.
    pub major: Option<u32>,
    /// Minor number; `None` means every.
    pub minor: Option<u32>,
    /// What it is about.
    pub access: DeviceAccess,
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let (kind, access) = (self.kind.letter(), self.access);
        write!(f, "{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// Kind of device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceKind {
    /// Every device.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

impl DeviceKind {
    /// The letter cgroup v1 and the OCI specification use.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::All => 'a',
            Self::Char => 'c',
            Self::Block => 'b',
        }
    }
}

/// What may be done with a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeviceAccess {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node for it.
    pub mknod: bool,
}

impl DeviceAccess {
    /// Read, write and mknod.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };

    /// Reads `rwm` in any order; `None` for any other letter, and for nothing at all.
    pub fn parse(letters: &str) -> Option<Self> {
        let mut access = Self { read: false, write: false, mknod: false };
        for letter in letters.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                _ => return None,
            }
        }
        (!letters.is_empty()).then_some(access)
    }
}

impl fmt::Display for DeviceAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (set, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            f.write_str(if set { letter } else { "" })?;
        }
        Ok(())
    }
}
