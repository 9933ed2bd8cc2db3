//! Changing the limits of a cgroup that is in use, so that a refusal changes nothing.

use std::collections::BTreeMap;

use crate::apply::{self, write_in_some_order};
use crate::files::{Directory, keyed};
use crate::hierarchy::{Controller, Mounts, Place};
use crate::{CgroupPath, Error, Limits};

/// Longest value of a limit that is kept, bytes.
const LONGEST: usize = 4096;

/// What limits were before they were changed.
#[derive(Debug)]
pub struct Before(Vec<(Directory, BTreeMap<String, String>)>);

/// Sets every limit that is given; on failure those that were set already are as before.
pub(crate) fn change(mounts: &Mounts, path: &CgroupPath, limits: &Limits) -> Result<Before, Error> {
    fits(mounts, path, limits)?;
    let before = Before::of(mounts, path, limits)?;
    match apply::apply(mounts, path, limits) {
        Ok(()) => Ok(before),
        Err(error) => {
            // What the kernel refuses to take back is not worth more than the reason.
            before.restore().ok();
            Err(error)
        }
    }
}

/// v2 takes any limit, and kills until it is met (memory.max of the kernel's cgroup-v2). v1
/// refuses by itself what it cannot reclaim down to.
fn fits(mounts: &Mounts, path: &CgroupPath, limits: &Limits) -> Result<(), Error> {
    let Some(limit @ 0..) = memory_limit(limits) else { return Ok(()) };
    let Some(Place::V2(directory)) = mounts.place(Controller::Memory, path) else { return Ok(()) };
    let used = directory.number("memory.current")?.unwrap_or(0);
    let cache = keyed(&directory.read("memory.stat")?, "inactive_file");
    let usage = used.saturating_sub(cache);
    match u64::try_from(limit).is_ok_and(|limit| usage > limit) {
        true => Err(Error::MemoryInUse { limit, usage }),
        false => Ok(()),
    }
}

/// The least that memory is limited to, if only until the next write.
fn memory_limit(limits: &Limits) -> Option<i64> {
    let named = limits.unified.get("memory.max");
    let named = named.into_iter().flat_map(|value| value.lines().filter_map(bytes));
    named.chain(limits.memory.limit.filter(|limit| *limit > 0)).min()
}

/// A number of bytes as the kernel takes it (`memparse`: decimal, octal or hexadecimal, with
/// one of K to E); `None` for `max`, and for what it takes for no number. Nothing is zero, and
/// so may be what does not fit 64 bits: the kernel lets it run over.
fn bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, unit) = digits.split_at(end);
    let shift = match unit {
        "" if end == 0 => return Some(0),
        "" => 0,
        unit if unit.len() > 1 => return None,
        unit => 10 * (1 + "kmgtpe".find(&unit.to_ascii_lowercase())?),
    };
    // Without a digit, the octal zero stands alone: `0K`.
    let number = if digits.is_empty() { Ok(0) } else { u64::from_str_radix(digits, radix) };
    let number = number.ok().and_then(|number| number.checked_mul(1 << shift));
    Some(number.map_or(0, |number| i64::try_from(number).unwrap_or(i64::MAX)))
}

impl Before {
    fn of(mounts: &Mounts, path: &CgroupPath, limits: &Limits) -> Result<Self, Error> {
        let mut all = Vec::new();
        for (controller, files) in touched(limits) {
            let Some(place) = mounts.place(controller, path) else { continue };
            let (Place::V1(directory) | Place::V2(directory)) = place;
            all.push((directory.clone(), read(&directory, files)?));
        }
        if let Some(directory) = mounts.unified(path).filter(|_| !limits.unified.is_empty()) {
            let plain = |name: &&String| !name.contains('/') && !name.starts_with("cgroup.");
            let files = limits.unified.keys().filter(plain).cloned();
            all.push((directory.clone(), read(&directory, files.collect())?));
        }
        Ok(Self(all))
    }

    /// Puts back what differs. Every file is tried.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Read`]: the first failure.
    pub fn restore(&self) -> Result<(), Error> {
        let mut failed = None;
        for (directory, files) in &self.0 {
            let mut writes = Vec::new();
            for (file, was) in files {
                let now = directory.read_if_there(file)?;
                if now.is_some_and(|now| now.trim() != was) {
                    // Nothing at all is no write(2); a line without anything is an empty list.
                    let was = if was.is_empty() { "\n" } else { was };
                    writes.push((file.as_str(), was.to_owned()));
                }
            }
            if let Err(error) = write_in_some_order(directory, &mut writes) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The files that limits may be written to, by controller, in either version.
fn touched(limits: &Limits) -> Vec<(Controller, Vec<String>)> {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let hugepages = limits.hugepages.keys().filter(|size| !size.contains('/')).flat_map(|size| {
        ["limit_in_bytes", "rsvd.limit_in_bytes", "max", "rsvd.max"]
            .map(|file| format!("hugetlb.{size}.{file}"))
    });
    vec![
        (
            Controller::Cpu,
            named(&[
                "cpu.shares",
                "cpu.cfs_period_us",
                "cpu.cfs_quota_us",
                "cpu.cfs_burst_us",
                "cpu.weight",
                "cpu.max",
                "cpu.max.burst",
                "cpu.idle",
            ]),
        ),
        (Controller::Cpuset, named(&["cpuset.cpus", "cpuset.mems"])),
        (
            Controller::Memory,
            named(&[
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.soft_limit_in_bytes",
                "memory.max",
                "memory.swap.max",
                "memory.low",
            ]),
        ),
        (Controller::Pids, named(&["pids.max"])),
        (Controller::Hugetlb, hugepages.collect()),
    ]
}

fn read(directory: &Directory, files: Vec<String>) -> Result<BTreeMap<String, String>, Error> {
    let mut all = BTreeMap::new();
    for file in files {
        // What cannot be read is for the kernel alone, or for writing only.
        let Ok(Some(text)) = directory.read_if_there(&file) else { continue };
        if text.len() <= LONGEST {
            all.insert(file, text.trim().to_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
