//! What cgroups say.

use std::collections::BTreeMap;

use berth_model::stats::{CgroupDetails, CpuUsage, MemoryUsage, Pressure};

use super::names::*;
use super::values::Values;

/// Names of block devices by number.
type Devices = BTreeMap<(u32, u32), String>;

pub(super) fn tell(values: &mut Values<'_>, details: &CgroupDetails, devices: &Devices) {
    let usage = &details.usage;
    if let Some(cpu) = &usage.cpu {
        tell_cpu(values, cpu);
    }
    if let Some(memory) = &usage.memory {
        tell_memory(values, memory, details);
    }
    tell_pressure(values, details);
    tell_io(values, details, devices);
    for pages in &details.huge_pages {
        values.add(&HUGETLB_USAGE, [&pages.size], pages.bytes);
        values.add_known(&HUGETLB_MAX_USAGE, [&pages.size], pages.peak_bytes);
    }
    if let Some(threads) = usage.pids {
        values.add(&THREADS, [], threads);
        values.add(&THREADS_MAX, [], details.limits.pids.unwrap_or(0));
    }
    values.add_known(&SPEC_CPU_PERIOD, [], details.limits.cpu_period);
    values.add_known(&SPEC_CPU_QUOTA, [], details.limits.cpu_quota);
    values.add_known(&SPEC_CPU_SHARES, [], details.limits.cpu_shares);
}

fn tell_cpu(values: &mut Values<'_>, cpu: &CpuUsage) {
    let seconds = |nanoseconds: u64| nanoseconds / 1_000_000_000;
    values.add(&CPU_USAGE, ["total"], seconds(cpu.total_ns));
    values.add_known(&CPU_USER, [], cpu.user_ns.map(seconds));
    values.add_known(&CPU_SYSTEM, [], cpu.system_ns.map(seconds));
    if let Some(throttling) = &cpu.throttling {
        values.add(&CPU_PERIODS, [], throttling.periods);
        values.add(&CPU_THROTTLED_PERIODS, [], throttling.throttled);
        values.add(&CPU_THROTTLED, [], seconds(throttling.throttled_ns));
    }
}

fn tell_memory(values: &mut Values<'_>, memory: &MemoryUsage, details: &CgroupDetails) {
    values.add(&MEMORY_USAGE, [], memory.bytes);
    values.add(&MEMORY_WORKING_SET, [], memory.working_set_bytes);
    values.add(&MEMORY_RSS, [], memory.rss_bytes);
    values.add(&MEMORY_CACHE, [], memory.cache_bytes);
    values.add(&MEMORY_MAPPED_FILE, [], memory.mapped_bytes);
    values.add_known(&MEMORY_SWAP, [], memory.swap.map(|swap| swap.bytes));
    values.add_known(&MEMORY_KERNEL, [], details.kernel_bytes);
    values.add_known(&MEMORY_MAX_USAGE, [], details.peak_bytes);
    values.add_known(&MEMORY_FAILCNT, [], details.limit_hits);
    values.add_known(&OOM_EVENTS, [], details.oom_kills);
    // cgroup v2 does not tell a cgroup from those below it.
    for (kind, all, own) in [
        ("pgfault", memory.page_faults, memory.own_page_faults),
        ("pgmajfault", memory.major_page_faults, memory.own_major_page_faults),
    ] {
        values.add(&MEMORY_FAILURES, [kind, "container"], own.unwrap_or(all));
        values.add(&MEMORY_FAILURES, [kind, "hierarchy"], all);
    }
    values.add(&SPEC_MEMORY_LIMIT, [], memory.limit_bytes.unwrap_or(0));
    values.add(&SPEC_MEMORY_RESERVATION, [], details.limits.memory_reservation.unwrap_or(0));
    if memory.swap.is_some() {
        values.add(&SPEC_MEMORY_SWAP, [], details.limits.swap.unwrap_or(0));
    }
}

fn tell_pressure(values: &mut Values<'_>, details: &CgroupDetails) {
    let usage = &details.usage;
    let resources = [
        (usage.cpu.and_then(|cpu| cpu.pressure), PRESSURE_CPU_WAITING, PRESSURE_CPU_STALLED),
        (
            usage.memory.and_then(|memory| memory.pressure),
            PRESSURE_MEMORY_WAITING,
            PRESSURE_MEMORY_STALLED,
        ),
        (usage.io_pressure, PRESSURE_IO_WAITING, PRESSURE_IO_STALLED),
    ];
    for (pressure, waiting, stalled) in resources {
        if let Some(Pressure { some, full }) = pressure {
            values.add(&waiting, [], some.total_us / 1_000_000);
            values.add(&stalled, [], full.total_us / 1_000_000);
        }
    }
}

fn tell_io(values: &mut Values<'_>, details: &CgroupDetails, devices: &Devices) {
    for io in &details.io {
        // A device that is gone is known by its number still.
        let number = || format!("{}:{}", io.major, io.minor);
        let device = devices.get(&(io.major, io.minor)).cloned().unwrap_or_else(number);
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        values.add(&BLKIO_USAGE, [&device, &major, &minor, "Read"], io.read_bytes);
        values.add(&BLKIO_USAGE, [&device, &major, &minor, "Write"], io.written_bytes);
        values.add(&FS_READS, [&device], io.reads);
        values.add(&FS_READ_BYTES, [&device], io.read_bytes);
        values.add(&FS_WRITES, [&device], io.writes);
        values.add(&FS_WRITTEN_BYTES, [&device], io.written_bytes);
    }
}
