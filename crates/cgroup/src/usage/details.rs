//! What only metrics tell.

use std::sync::OnceLock;

use berth_model::stats::{CgroupDetails, CgroupLimits, DeviceIo, HugePages};

use super::text::{self, Keys};
use super::{Depth, read, v1, v2};
use crate::files::{Directory, Reader};
use crate::hierarchy::{Controller, Mounts, Place};
use crate::{CgroupPath, Error};

/// A directory for each size of huge pages that this kernel has.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Reads everything.
pub(crate) fn details(mounts: &Mounts, path: &CgroupPath) -> Result<CgroupDetails, Error> {
    let mut reader = Reader::new();
    let reader = &mut reader;
    let usage = read(reader, mounts, path, Depth::Whole)?;
    let mut details = CgroupDetails { usage, ..CgroupDetails::default() };
    match mounts.place(Controller::Memory, path) {
        Some(Place::V1(directory)) => memory_v1(reader, &directory, &mut details)?,
        Some(Place::V2(directory)) if details.usage.memory.is_some() => {
            memory_v2(reader, &directory, &mut details)?;
        }
        _ => {}
    }
    match mounts.place(Controller::Cpu, path) {
        Some(Place::V1(directory)) => cpu_limits_v1(reader, &directory, &mut details.limits)?,
        Some(Place::V2(directory)) => cpu_limits_v2(reader, &directory, &mut details.limits)?,
        None => {}
    }
    if let Some(Place::V1(directory) | Place::V2(directory)) = mounts.place(Controller::Pids, path)
    {
        details.limits.pids = reader.number_if_there(&directory, "pids.max")?;
    }
    details.io = match mounts.place(Controller::Io, path) {
        Some(Place::V1(directory)) => io_v1(reader, &directory)?,
        Some(Place::V2(directory)) => {
            reader.text_if_there(&directory, "io.stat")?.map(text::io).unwrap_or_default()
        }
        None => Vec::new(),
    };
    details.huge_pages = huge_pages(reader, mounts, path)?;
    Ok(details)
}

fn memory_v1(
    reader: &mut Reader,
    directory: &Directory,
    details: &mut CgroupDetails,
) -> Result<(), Error> {
    reader.enter(directory);
    details.kernel_bytes = reader.number_if_there(directory, "memory.kmem.usage_in_bytes")?;
    details.peak_bytes = reader.number(directory, "memory.max_usage_in_bytes")?;
    details.limit_hits = reader.number(directory, "memory.failcnt")?;
    details.oom_kills = Keys::of(reader.text(directory, "memory.oom_control")?).get("oom_kill");
    let limits = &mut details.limits;
    limits.memory_reservation =
        v1::limit_if_there(reader, directory, "memory.soft_limit_in_bytes")?;
    limits.swap = v1::limit_if_there(reader, directory, "memory.memsw.limit_in_bytes")?;
    Ok(())
}

fn memory_v2(
    reader: &mut Reader,
    directory: &Directory,
    details: &mut CgroupDetails,
) -> Result<(), Error> {
    details.kernel_bytes = v2::kernel(&Keys::of(reader.text(directory, "memory.stat")?));
    details.peak_bytes = reader.number_if_there(directory, "memory.peak")?;
    let events = Keys::of(reader.text(directory, "memory.events")?);
    details.limit_hits = events.get("max");
    details.oom_kills = events.get("oom_kill");
    let limits = &mut details.limits;
    limits.memory_reservation =
        reader.number_if_there(directory, "memory.min")?.filter(|bytes| *bytes != 0);
    limits.swap = reader.number_if_there(directory, "memory.swap.max")?;
    Ok(())
}

fn cpu_limits_v1(
    reader: &mut Reader,
    directory: &Directory,
    limits: &mut CgroupLimits,
) -> Result<(), Error> {
    reader.enter(directory);
    limits.cpu_shares = reader.number(directory, "cpu.shares")?;
    // A kernel without CFS_BANDWIDTH has neither file.
    limits.cpu_period = reader.number_if_there(directory, "cpu.cfs_period_us")?;
    let quota = reader.text_if_there(directory, "cpu.cfs_quota_us")?;
    // -1 is no quota, and no number without a sign.
    limits.cpu_quota = quota.and_then(|quota| quota.trim().parse().ok());
    Ok(())
}

fn cpu_limits_v2(
    reader: &mut Reader,
    directory: &Directory,
    limits: &mut CgroupLimits,
) -> Result<(), Error> {
    let weight = reader.number_if_there(directory, "cpu.weight")?;
    limits.cpu_shares = weight.map(crate::apply::shares);
    if let Some(text) = reader.text_if_there(directory, "cpu.max")? {
        (limits.cpu_quota, limits.cpu_period) = text::cpu_max(text);
    }
    Ok(())
}

fn io_v1(reader: &mut Reader, directory: &Directory) -> Result<Vec<DeviceIo>, Error> {
    let bytes = "blkio.throttle.io_service_bytes_recursive";
    let Some(bytes) = reader.text_if_there(directory, bytes)?.map(str::to_owned) else {
        return Ok(Vec::new());
    };
    let operations = reader.text_if_there(directory, "blkio.throttle.io_serviced_recursive")?;
    Ok(text::blkio(&bytes, operations.unwrap_or_default()))
}

fn huge_pages(
    reader: &mut Reader,
    mounts: &Mounts,
    path: &CgroupPath,
) -> Result<Vec<HugePages>, Error> {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    let (directory, usage, peak) = match mounts.place(Controller::Hugetlb, path) {
        Some(Place::V1(directory)) => (directory, "usage_in_bytes", Some("max_usage_in_bytes")),
        Some(Place::V2(directory)) => (directory, "current", None),
        None => return Ok(Vec::new()),
    };
    let mut all = Vec::new();
    for size in SIZES.get_or_init(sizes) {
        let file = |what: &str| format!("hugetlb.{size}.{what}");
        // Without the controller (see `apply`) no size has its file.
        let Some(bytes) = reader.number_if_there(&directory, &file(usage))? else { break };
        let peak_bytes = match peak {
            Some(peak) => reader.number_if_there(&directory, &file(peak))?,
            None => None,
        };
        all.push(HugePages { size: size.clone(), bytes, peak_bytes });
    }
    Ok(all)
}

/// The sizes as the names of the files have them.
fn sizes() -> Vec<String> {
    let entries = std::fs::read_dir(HUGE_PAGES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<u64> = names
        .filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok())
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(size_name).collect()
}

/// As the kernel writes it (`mem_fmt` of `mm/hugetlb_cgroup.c`).
pub(super) fn size_name(kilobytes: u64) -> String {
    match kilobytes {
        1_048_576.. => format!("{}GB", kilobytes >> 20),
        1024.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    }
}
