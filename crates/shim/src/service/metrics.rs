//! What containerd knows of a container's use: `io.containerd.cgroups.v2.Metrics`.
//!
//! The v2 message serves v1 hosts too: it says what was used, not where it was read.

use berth_model::stats::CgroupUsage;
use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryStat, Metrics, PidsStat};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::error::Error;

pub(super) fn encode(usage: &CgroupUsage) -> Result<Any, Error> {
    let mut cpu = CPUStat::new();
    cpu.usage_usec = usage.cpu_ns / 1000;
    let mut memory = MemoryStat::new();
    memory.usage = usage.memory_bytes;
    memory.usage_limit = usage.memory_limit_bytes.unwrap_or(u64::MAX);
    memory.anon = usage.rss_bytes;
    memory.inactive_file = usage.memory_bytes.saturating_sub(usage.working_set_bytes);
    memory.pgfault = usage.page_faults;
    memory.pgmajfault = usage.major_page_faults;
    memory.swap_usage = usage.swap_bytes;
    let mut pids = PidsStat::new();
    pids.current = usage.pids;
    let mut metrics = Metrics::new();
    metrics.cpu = Some(cpu).into();
    metrics.memory = Some(memory).into();
    metrics.pids = Some(pids).into();
    let mut any = Any::new();
    any.type_url = "io.containerd.cgroups.v2.Metrics".to_owned();
    any.value = metrics
        .write_to_bytes()
        .map_err(|error| Error::Io("encode metrics", std::io::Error::other(error)))?;
    Ok(any)
}
