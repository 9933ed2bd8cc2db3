//! The files of cgroup v2 (`Documentation/admin-guide/cgroup-v2.rst`).

use berth_model::stats::{CpuUsage, MemoryUsage, SwapUsage, Throttling};

use super::text::Keys;
use crate::Error;
use crate::files::{Directory, Reader};

/// `None` where the controller is not enabled for this cgroup.
pub(super) fn memory(
    reader: &mut Reader,
    directory: &Directory,
) -> Result<Option<MemoryUsage>, Error> {
    reader.enter(directory);
    let Some(bytes) = reader.number_if_there(directory, "memory.current")? else {
        return Ok(None);
    };
    let limit_bytes = reader.number(directory, "memory.max")?;
    let swap = match reader.number_if_there(directory, "memory.swap.current")? {
        Some(bytes) => {
            let limit_bytes = reader.number_if_there(directory, "memory.swap.max")?;
            Some(SwapUsage { bytes, limit_bytes })
        }
        None => None,
    };
    let keys = Keys::of(reader.text(directory, "memory.stat")?);
    let (page_faults, major_page_faults) = (keys.number("pgfault"), keys.number("pgmajfault"));
    Ok(Some(MemoryUsage {
        bytes,
        working_set_bytes: bytes.saturating_sub(keys.number("inactive_file")),
        rss_bytes: keys.number("anon"),
        cache_bytes: keys.number("file"),
        mapped_bytes: keys.number("file_mapped"),
        limit_bytes,
        page_faults,
        major_page_faults,
        // v2 tells of a cgroup and those below it only.
        own_page_faults: None,
        own_major_page_faults: None,
        swap,
        pressure: None,
    }))
}

/// `cpu.stat` has the times in every cgroup, what a quota held back only with the controller.
pub(super) fn cpu(reader: &mut Reader, directory: &Directory) -> Result<CpuUsage, Error> {
    let keys = Keys::of(reader.text(directory, "cpu.stat")?);
    let nanoseconds = |key| keys.get(key).map(|micros| micros.saturating_mul(1000));
    let throttling = keys.get("nr_periods").map(|periods| Throttling {
        periods,
        throttled: keys.number("nr_throttled"),
        throttled_ns: nanoseconds("throttled_usec").unwrap_or(0),
    });
    Ok(CpuUsage {
        total_ns: nanoseconds("usage_usec").unwrap_or(0),
        user_ns: nanoseconds("user_usec"),
        system_ns: nanoseconds("system_usec"),
        throttling,
        pressure: None,
    })
}

/// Memory of the kernel, bytes: kernels before 5.18 tell its parts only.
pub(super) fn kernel(keys: &Keys<'_>) -> Option<u64> {
    keys.get("kernel").or_else(|| {
        let parts = ["kernel_stack", "pagetables", "percpu", "slab"];
        let known = parts.iter().filter_map(|part| keys.get(part));
        known.reduce(u64::saturating_add)
    })
}
