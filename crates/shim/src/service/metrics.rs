//! What containerd knows of a container's use: `io.containerd.cgroups.v2.Metrics`.
//!
//! The v2 message serves v1 hosts too: it says what was used, not where it was read.

use berth_model::stats::CgroupUsage;
use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryStat, Metrics, PidsStat};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::error::Error;

pub(super) fn encode(usage: &CgroupUsage) -> Result<Any, Error> {
    let mut metrics = Metrics::new();
    if let Some(cpu) = &usage.cpu {
        metrics.cpu =
            Some(CPUStat { usage_usec: cpu.total_ns / 1000, ..CPUStat::default() }).into();
    }
    if let Some(memory) = &usage.memory {
        metrics.memory = Some(MemoryStat {
            usage: memory.bytes,
            usage_limit: memory.limit_bytes.unwrap_or(u64::MAX),
            anon: memory.rss_bytes,
            inactive_file: memory.bytes.saturating_sub(memory.working_set_bytes),
            pgfault: memory.page_faults,
            pgmajfault: memory.major_page_faults,
            swap_usage: memory.swap.map_or(0, |swap| swap.bytes),
            ..MemoryStat::default()
        })
        .into();
    }
    if let Some(current) = usage.pids {
        metrics.pids = Some(PidsStat { current, ..PidsStat::default() }).into();
    }
    let mut any = Any::new();
    any.type_url = "io.containerd.cgroups.v2.Metrics".to_owned();
    any.value = metrics
        .write_to_bytes()
        .map_err(|error| Error::Io("encode metrics", std::io::Error::other(error)))?;
    Ok(any)
}
