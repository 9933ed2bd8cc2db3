//! Writing limits, in whichever version each controller is.

mod memory;
mod v2;

pub(crate) use self::v2::shares;

use crate::devices::{self, Devices};
use crate::files::Directory;
use crate::hierarchy::{Controller, Mounts, Place, Version};
use crate::limits::CpuLimits;
use crate::{CgroupPath, Error, Limits, create};

/// Weights the kernel takes on v1 (`MIN_SHARES`, `MAX_SHARES`).
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// Sets every limit that is given, on the cgroup at `path`.
pub(crate) fn apply(mounts: &Mounts, path: &CgroupPath, limits: &Limits) -> Result<(), Error> {
    let needed =
        |controller| mounts.place(controller, path).ok_or(Error::MissingController(controller));
    if let Some(rules) = &limits.devices {
        match needed(Controller::Devices)? {
            Place::V1(directory) => devices::apply_v1(&directory, &Devices::fold(rules)?)?,
            Place::V2(directory) => devices::apply_v2(&directory, path, &Devices::fold(rules)?)?,
        }
    }
    let cpu = limits.cpu.set_only()?;
    if cpu != CpuLimits::default() {
        match needed(Controller::Cpu)? {
            Place::V1(directory) => cpu_v1(&directory, &cpu)?,
            Place::V2(directory) => v2::cpu(&directory, &cpu)?,
        }
    }
    for (file, list) in [("cpuset.cpus", &limits.cpus), ("cpuset.mems", &limits.mems)] {
        // An empty list, which the CRI sends for "not set", would be refused with tasks inside.
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            let (Place::V1(directory) | Place::V2(directory)) = needed(Controller::Cpuset)?;
            directory.write(file, list)?;
        }
    }
    let memory = limits.memory.set_only()?;
    if memory != crate::MemoryLimits::default() {
        match needed(Controller::Memory)? {
            Place::V1(directory) => memory::apply_v1(&directory, &memory)?,
            Place::V2(directory) => memory::apply_v2(&directory, &memory)?,
        }
    }
    if let Some(limit) = limits.pids {
        let (Place::V1(directory) | Place::V2(directory)) = needed(Controller::Pids)?;
        directory.write("pids.max", &tasks(limit))?;
    }
    for (size, limit) in &limits.hugepages {
        hugepages(mounts, path, size, *limit)?;
    }
    if !limits.unified.is_empty() {
        v2::unified(mounts, path, &limits.unified)?;
    }
    Ok(())
}

impl CpuLimits {
    /// Without the zeros that mean "not set".
    fn set_only(&self) -> Result<Self, Error> {
        let shares = self.shares.filter(|shares| *shares != 0);
        if shares.is_some_and(|shares| !SHARES.contains(&shares)) {
            let reason = "must be between 2 and 262144";
            return Err(Error::InvalidLimit { name: "cpu.shares".into(), reason });
        }
        Ok(Self {
            shares,
            quota: self.quota.filter(|quota| *quota != 0),
            period: self.period.filter(|period| *period != 0),
            burst: self.burst,
            idle: self.idle,
        })
    }
}

/// Zero is one: the first process is there anyway, and systemd knows no zero (as in runc).
fn tasks(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        0 => "1".to_owned(),
        limit => limit.to_string(),
    }
}

fn cpu_v1(directory: &Directory, cpu: &CpuLimits) -> Result<(), Error> {
    if let Some(shares) = cpu.shares {
        directory.write("cpu.shares", &shares.to_string())?;
    }
    let quota = cpu.quota.map(|quota| quota.max(-1).to_string());
    let burst = cpu.burst.map(|burst| burst.to_string());
    let period = cpu.period.map(|period| period.to_string());
    // Each is checked against what the others are now, so a valid set may need another order.
    let mut writes: Vec<(&str, String)> =
        [("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota), ("cpu.cfs_burst_us", burst)]
            .into_iter()
            .filter_map(|(file, value)| Some((file, value?)))
            .collect();
    write_in_some_order(directory, &mut writes)?;
    if let Some(idle) = cpu.idle {
        directory.write("cpu.idle", if idle { "1" } else { "0" })?;
    }
    Ok(())
}

/// Writes all; what is refused as invalid is tried again after the others.
pub(crate) fn write_in_some_order(
    directory: &Directory,
    writes: &mut Vec<(&str, String)>,
) -> Result<(), Error> {
    use nix::errno::Errno;
    loop {
        let before = writes.len();
        let mut refused = None;
        let mut failed = None;
        writes.retain(|(file, value)| match directory.write(file, value) {
            Ok(()) => false,
            Err(error @ Error::Write { source: Errno::EINVAL, .. }) => {
                refused.get_or_insert(error);
                true
            }
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
        match (failed, refused) {
            (Some(error), _) => return Err(error),
            (None, Some(error)) if writes.len() == before => return Err(error),
            (None, Some(_)) => {}
            (None, None) => return Ok(()),
        }
    }
}

/// Limits one size of huge pages, reservations too where the kernel counts them (5.7+). kubelet
/// says zero for every size: where nothing counts them, that is no limit to be missed.
fn hugepages(mounts: &Mounts, path: &CgroupPath, size: &str, limit: u64) -> Result<(), Error> {
    let number = size.trim_end_matches(|unit: char| unit.is_ascii_uppercase());
    let unit = &size[number.len()..];
    let digits = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    if !digits || !["KB", "MB", "GB"].contains(&unit) {
        let reason = "a page size is a number and KB, MB or GB";
        return Err(Error::InvalidLimit { name: format!("hugepageLimits {size}"), reason });
    }
    let place = mounts.place(Controller::Hugetlb, path);
    let Some(place) = place else {
        return if limit == 0 {
            Ok(())
        } else {
            Err(Error::MissingController(Controller::Hugetlb))
        };
    };
    let limit = limit.to_string();
    match place {
        Place::V1(directory) => {
            directory.write(&format!("hugetlb.{size}.limit_in_bytes"), &limit)?;
            directory.write_if_there(&format!("hugetlb.{size}.rsvd.limit_in_bytes"), &limit)
        }
        Place::V2(directory) => {
            if let (Version::Hybrid, Some(unified)) = (mounts.version(), &mounts.unified) {
                // Not enabled when it was made: on such a host nearly nobody asks for it.
                create::enable(&path.lineage(), &unified.mount, &[Controller::Hugetlb])?;
            }
            directory.write(&format!("hugetlb.{size}.max"), &limit)?;
            directory.write_if_there(&format!("hugetlb.{size}.rsvd.max"), &limit)
        }
    }
}

#[cfg(test)]
mod tests;
