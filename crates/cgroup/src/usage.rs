//! What a cgroup uses.

use berth_model::stats::CgroupUsage;

use crate::files::{Directory, keyed};
use crate::hierarchy::{Controller, Mounts, Place};
use crate::{CgroupPath, Error};

/// v1 says "no limit" with a number of this size (`PAGE_COUNTER_MAX` pages).
const UNLIMITED: u64 = 1 << 62;

/// Reads everything.
pub(crate) fn usage(mounts: &Mounts, path: &CgroupPath) -> Result<CgroupUsage, Error> {
    let mut usage = CgroupUsage { at: berth_failpoint::now().into(), ..CgroupUsage::default() };
    match mounts.place(Controller::Memory, path) {
        Some(Place::V1(directory)) => memory_v1(&directory, &mut usage)?,
        Some(Place::V2(directory)) => memory_v2(&directory, &mut usage)?,
        None => {}
    }
    match mounts.place(Controller::Cpuacct, path) {
        Some(Place::V1(directory)) => {
            usage.cpu_ns = directory.number("cpuacct.usage")?.unwrap_or(0);
        }
        Some(Place::V2(directory)) => {
            let micros = keyed(&directory.read("cpu.stat")?, "usage_usec");
            usage.cpu_ns = micros.saturating_mul(1000);
        }
        None => {}
    }
    if let Some(Place::V1(directory) | Place::V2(directory)) = mounts.place(Controller::Pids, path)
    {
        usage.pids = directory.number("pids.current")?.unwrap_or(0);
    }
    usage.oom_kills = oom_kills(mounts, path)?;
    Ok(usage)
}

/// Reads how many processes the kernel killed for the memory limit.
pub(crate) fn oom_kills(mounts: &Mounts, path: &CgroupPath) -> Result<u64, Error> {
    let text = match mounts.place(Controller::Memory, path) {
        Some(Place::V1(directory)) => directory.read("memory.oom_control")?,
        Some(Place::V2(directory)) => directory.read("memory.events")?,
        None => return Ok(0),
    };
    Ok(keyed(&text, "oom_kill"))
}

fn memory_v1(directory: &Directory, usage: &mut CgroupUsage) -> Result<(), Error> {
    let stat = directory.read("memory.stat")?;
    usage.memory_bytes = directory.number("memory.usage_in_bytes")?.unwrap_or(0);
    let inactive = keyed(&stat, "total_inactive_file");
    usage.working_set_bytes = usage.memory_bytes.saturating_sub(inactive);
    usage.rss_bytes = keyed(&stat, "total_rss");
    usage.page_faults = keyed(&stat, "total_pgfault");
    usage.major_page_faults = keyed(&stat, "total_pgmajfault");
    usage.swap_bytes = keyed(&stat, "total_swap");
    let limit = directory.number("memory.limit_in_bytes")?;
    usage.memory_limit_bytes = limit.filter(|limit| *limit < UNLIMITED);
    Ok(())
}

fn memory_v2(directory: &Directory, usage: &mut CgroupUsage) -> Result<(), Error> {
    let stat = directory.read("memory.stat")?;
    usage.memory_bytes = directory.number("memory.current")?.unwrap_or(0);
    let inactive = keyed(&stat, "inactive_file");
    usage.working_set_bytes = usage.memory_bytes.saturating_sub(inactive);
    usage.rss_bytes = keyed(&stat, "anon");
    usage.page_faults = keyed(&stat, "pgfault");
    usage.major_page_faults = keyed(&stat, "pgmajfault");
    let swap = directory.read_if_there("memory.swap.current")?;
    usage.swap_bytes = swap.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    usage.memory_limit_bytes = directory.number("memory.max")?;
    Ok(())
}
