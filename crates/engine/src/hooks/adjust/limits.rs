//! Limits that plugins want.

use berth_model::container::swap_kept;
use berth_nri::api::{LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources};
use serde_json::{Value, json};

use super::{invalid, list};
use crate::Error;

/// What the runtime cannot limit, by its name.
pub(in crate::hooks) fn refuse(wanted: &LinuxResources) -> Result<(), Error> {
    let memory = wanted.memory.unwrap_or_default();
    let cpu = wanted.cpu.clone().unwrap_or_default();
    for (is_wanted, what) in [
        (memory.kernel.is_some(), "the limit of kernel memory"),
        (memory.kernel_tcp.is_some(), "the limit of TCP buffers"),
        (memory.swappiness.is_some(), "the swappiness"),
        (memory.disable_oom_killer.is_some_and(|flag| flag.value), "the OOM killer"),
        (cpu.realtime_runtime.is_some(), "the realtime runtime"),
        (cpu.realtime_period.is_some(), "the realtime period"),
    ] {
        if is_wanted {
            return Err(Error::Unsupported(format!("adjustment of {what} by a plugin")));
        }
    }
    Ok(())
}

/// Sets in `linux.resources` what is wanted.
pub(super) fn adjust(all: &mut Value, wanted: LinuxResources) -> Result<(), Error> {
    if let Some(wanted) = wanted.memory {
        memory(&mut all["memory"], wanted);
    }
    if let Some(wanted) = wanted.cpu {
        cpu(&mut all["cpu"], wanted)?;
    }
    for limit in wanted.hugepage_limits {
        let known = list(&mut all["hugepageLimits"]);
        known.retain(|known| known["pageSize"].as_str() != Some(&limit.page_size));
        known.push(json!({"pageSize": limit.page_size, "limit": limit.limit}));
    }
    for (name, value) in wanted.unified {
        // File names of controllers only, as in a request.
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let file = name
            .split_once('.')
            .is_some_and(|(part, rest)| !part.is_empty() && !rest.is_empty() && part != "cgroup");
        if !file || !name.chars().all(word) || name.contains("..") {
            return Err(invalid("unified", format!("{name:?} is no file of a controller")));
        }
        all["unified"][name] = json!(value);
    }
    for rule in wanted.devices {
        list(&mut all["devices"]).push(device_rule(rule));
    }
    if let Some(pids) = wanted.pids {
        all["pids"] = json!({"limit": pids.limit});
    }
    Ok(())
}

fn memory(all: &mut Value, wanted: LinuxMemory) {
    let former = |name: &str| all[name].as_i64().unwrap_or(0);
    let (limit, swap) = (former("limit"), former("swap"));
    for (name, value) in
        [("limit", wanted.limit), ("reservation", wanted.reservation), ("swap", wanted.swap)]
    {
        if let Some(value) = value {
            all[name] = json!(value.value);
        }
    }
    if let (Some(new), None) = (wanted.limit, wanted.swap)
        && swap != 0
    {
        all["swap"] = json!(swap_kept(limit, swap, new.value));
    }
}

fn cpu(all: &mut Value, wanted: LinuxCpu) -> Result<(), Error> {
    if let Some(quota) = wanted.quota {
        all["quota"] = json!(quota.value);
    }
    for (name, value) in [("shares", wanted.shares), ("period", wanted.period)] {
        if let Some(value) = value {
            all[name] = json!(value.value);
        }
    }
    for (name, value) in [("cpus", wanted.cpus), ("mems", wanted.mems)] {
        let known = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '/');
        if !value.chars().all(known) {
            return Err(invalid("cpusets", format!("{value:?} is no list of numbers")));
        }
        if !value.is_empty() {
            all[name] = json!(value);
        }
    }
    Ok(())
}

fn device_rule(rule: LinuxDeviceCgroup) -> Value {
    let mut added = json!({"allow": rule.allow, "access": rule.access});
    if !rule.r#type.is_empty() {
        added["type"] = json!(rule.r#type);
    }
    for (name, value) in [("major", rule.major), ("minor", rule.minor)] {
        if let Some(value) = value {
            added[name] = json!(value.value);
        }
    }
    added
}
