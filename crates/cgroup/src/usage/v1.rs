//! The files of cgroup v1 (`Documentation/admin-guide/cgroup-v1`).

use berth_model::stats::{CpuUsage, MemoryUsage, SwapUsage, Throttling};

use super::Depth;
use super::text::Keys;
use crate::Error;
use crate::files::{Directory, KnownLimits, Reader};

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
    let bound = ["hierarchical_memory_limit", "hierarchical_memsw_limit"].map(|key| keys.get(key));
    // The line is there if swap is accounted.
    let swap = keys.get("total_swap");
    let [limit_bytes, both] = limits(reader, directory, bound, swap.is_some())?;
    memory.limit_bytes = limit_bytes;
    memory.swap = swap.map(|bytes| {
        // What may be swapped is the difference of the two limits.
        let limits = both.zip(limit_bytes);
        let limit_bytes = limits.map(|(both, memory)| both.saturating_sub(memory));
        SwapUsage { bytes, limit_bytes }
    });
    Ok(memory)
}

/// The cgroup's own limits of memory, and of memory and swap together, of which it is `bound`
/// to the least that it and those above have.
///
/// Where none has one, its own need not be read; nor while its own is that to which it was
/// bound the last time and still is: it would be bound to another if it had been changed. Only
/// one above, with a limit that is the same, could hide that its own was raised; what is told
/// is what it may use then, too.
fn limits(
    reader: &mut Reader,
    directory: &Directory,
    bound: [Option<u64>; 2],
    swap: bool,
) -> Result<[Option<u64>; 2], Error> {
    if let Some(known) = reader.kept.limits.filter(|known| known.bound == bound) {
        return Ok(known.own);
    }
    let limited = |bound: Option<u64>| bound.is_none_or(|limit| limit < UNLIMITED);
    let mut own = [None; 2];
    if limited(bound[0]) {
        own[0] = limit(reader, directory, "memory.limit_in_bytes")?;
    }
    if swap && limited(bound[1]) {
        own[1] = limit_if_there(reader, directory, "memory.memsw.limit_in_bytes")?;
    }
    let known = |at: usize| !limited(bound[at]) || (bound[at].is_some() && bound[at] == own[at]);
    let known = known(0) && (!swap || known(1));
    reader.kept.limits = known.then_some(KnownLimits { bound, own });
    Ok(own)
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
