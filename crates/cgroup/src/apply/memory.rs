//! Memory and swap.

use nix::errno::Errno;

use crate::files::Directory;
use crate::{Error, MemoryLimits};

impl MemoryLimits {
    /// Without the zeros that mean "not set"; refuses what no kernel could obey.
    pub(super) fn set_only(&self) -> Result<Self, Error> {
        let set = |name: &str, value: Option<i64>| match value {
            Some(..-1) => Err(Error::InvalidLimit {
                name: name.to_owned(),
                reason: "must be -1 for no limit, or not negative",
            }),
            value => Ok(value.filter(|value| *value != 0)),
        };
        let limits = Self {
            limit: set("memory.limit", self.limit)?,
            swap: set("memory.swap", self.swap)?,
            reservation: set("memory.reservation", self.reservation)?,
        };
        let invalid = |reason| Err(Error::InvalidLimit { name: "memory.swap".into(), reason });
        match (limits.limit, limits.swap) {
            (None, Some(1..)) => invalid("needs a memory limit"),
            (Some(limit @ 1..), Some(swap @ 1..)) if swap < limit => {
                invalid("memory and swap together are less than memory")
            }
            _ => Ok(limits),
        }
    }
}

/// v1: `memory.limit_in_bytes` may never exceed `memory.memsw.limit_in_bytes`, so a raise
/// starts with the latter.
pub(super) fn apply_v1(directory: &Directory, limits: &MemoryLimits) -> Result<(), Error> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let write = |file, value: Option<i64>| match value {
        Some(value) => in_use(directory, value, directory.write(file, &value.to_string())),
        None => Ok(()),
    };
    match (limits.limit, limits.swap) {
        // No memory limit at all means no swap limit either.
        (Some(-1), None) => {
            directory.write_if_there(BOTH, "-1")?;
            write(MEMORY, Some(-1))?;
        }
        (Some(limit), Some(swap)) => {
            let current = directory.number(MEMORY)?.unwrap_or(u64::MAX);
            if swap == -1 || u64::try_from(swap).is_ok_and(|swap| current < swap) {
                write(BOTH, Some(swap))?;
                write(MEMORY, Some(limit))?;
            } else {
                write(MEMORY, Some(limit))?;
                write(BOTH, Some(swap))?;
            }
        }
        (limit, swap) => {
            write(MEMORY, limit)?;
            write(BOTH, swap)?;
        }
    }
    write("memory.soft_limit_in_bytes", limits.reservation)
}

/// EBUSY is how v1 refuses a limit that it cannot reclaim down to.
fn in_use(directory: &Directory, limit: i64, result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Write { source: Errno::EBUSY, .. }) => {
            let usage = directory.number("memory.usage_in_bytes")?.unwrap_or(0);
            Err(Error::MemoryInUse { limit, usage })
        }
        other => other,
    }
}

/// v2 counts swap alone.
pub(super) fn apply_v2(directory: &Directory, limits: &MemoryLimits) -> Result<(), Error> {
    let bytes = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    let swap = match (limits.limit, limits.swap) {
        (Some(-1), None) => Some(-1),
        (Some(limit @ 1..), Some(swap @ 1..)) => Some(swap - limit),
        (_, swap) => swap,
    };
    match swap {
        // A kernel without swap accounting has no swap to give, or to forbid.
        Some(swap @ (-1 | 0)) => directory.write_if_there("memory.swap.max", &bytes(swap))?,
        Some(swap) => directory.write("memory.swap.max", &bytes(swap))?,
        None => {}
    }
    if let Some(limit) = limits.limit {
        directory.write("memory.max", &bytes(limit))?;
    }
    if let Some(reservation) = limits.reservation {
        directory.write("memory.low", &bytes(reservation))?;
    }
    Ok(())
}
