//! The files of cgroup v1 (`Documentation/admin-guide/cgroup-v1`).

use berth_model::stats::{CpuUsage, MemoryUsage, SwapUsage, Throttling};

use super::Depth;
use super::text::Keys;
use crate::Error;
use crate::files::{Directory, Reader};

/// v1 says "no limit" with a number of this size (`PAGE_COUNTER_MAX` pages).
const UNLIMITED: u64 = 1 << 62;
/// Nanoseconds of a tick (`USER_HZ`, 100 on every architecture that Linux still has for us).
const TICK_NS: u64 = 10_000_000;

pub(super) fn memory(reader: &mut Reader, directory: &Directory) -> Result<MemoryUsage, Error> {
    reader.enter(directory);
    let bytes = reader.number(directory, "memory.usage_in_bytes")?.unwrap_or(0);
    let keys = Keys::of(reader.text(directory, "memory.stat")?);
    let [inactive, rss_bytes, cache_bytes, mapped_bytes] =
        ["total_inactive_file", "total_rss", "total_cache", "total_mapped_file"]
            .map(|key| keys.number(key));
    let mut memory = MemoryUsage {
        bytes,
        working_set_bytes: bytes.saturating_sub(inactive),
        rss_bytes,
        cache_bytes,
        mapped_bytes,
        page_faults: keys.number("total_pgfault"),
        major_page_faults: keys.number("total_pgmajfault"),
        own_page_faults: keys.get("pgfault"),
        own_major_page_faults: keys.get("pgmajfault"),
        ..MemoryUsage::default()
    };
    // Where neither the cgroup nor one above it has a limit, its own need not be read.
    let limited = |key| keys.get(key).is_none_or(|limit| limit < UNLIMITED);
    let both_limited = limited("hierarchical_memsw_limit");
    // The line is there if swap is accounted.
    let swap = keys.get("total_swap");
    if limited("hierarchical_memory_limit") {
        memory.limit_bytes = limit(reader, directory, "memory.limit_in_bytes")?;
    }
    if let Some(bytes) = swap {
        // What may be swapped is the difference of the two limits.
        let both = match both_limited {
            true => limit_if_there(reader, directory, "memory.memsw.limit_in_bytes")?,
            false => None,
        };
        let limits = both.zip(memory.limit_bytes);
        let limit_bytes = limits.map(|(both, memory)| both.saturating_sub(memory));
        memory.swap = Some(SwapUsage { bytes, limit_bytes });
    }
    Ok(memory)
}

pub(super) fn cpu(
    reader: &mut Reader,
    directory: &Directory,
    depth: Depth,
) -> Result<CpuUsage, Error> {
    let total_ns = reader.number(directory, "cpuacct.usage")?.unwrap_or(0);
    let mut cpu = CpuUsage { total_ns, ..CpuUsage::default() };
    if depth == Depth::Whole {
        let keys = Keys::of(reader.text(directory, "cpuacct.stat")?);
        let nanoseconds = |key| keys.get(key).map(|ticks| ticks.saturating_mul(TICK_NS));
        (cpu.user_ns, cpu.system_ns) = (nanoseconds("user"), nanoseconds("system"));
    }
    Ok(cpu)
}

pub(super) fn throttling(reader: &mut Reader, directory: &Directory) -> Result<Throttling, Error> {
    let keys = Keys::of(reader.text(directory, "cpu.stat")?);
    Ok(Throttling {
        periods: keys.number("nr_periods"),
        throttled: keys.number("nr_throttled"),
        throttled_ns: keys.number("throttled_time"),
    })
}

/// A limit of bytes; `None` when there is none.
pub(super) fn limit(
    reader: &mut Reader,
    directory: &Directory,
    file: &str,
) -> Result<Option<u64>, Error> {
    Ok(reader.number(directory, file)?.filter(|limit| *limit < UNLIMITED))
}

/// As [`limit`], of a file that a kernel may lack.
pub(super) fn limit_if_there(
    reader: &mut Reader,
    directory: &Directory,
    file: &str,
) -> Result<Option<u64>, Error> {
    Ok(reader.number_if_there(directory, file)?.filter(|limit| *limit < UNLIMITED))
}
