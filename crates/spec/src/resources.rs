//! cgroup limits and device rules.

use std::collections::HashMap;

use berth_model::container::Resources;
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxHugepageLimit, LinuxHugepageLimitBuilder,
    LinuxMemory, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};

use crate::process::oom_score_adj;
use crate::{Error, HostDevice, Wanted, mounts};

const MAJOR_PTS: i64 = 136;

/// Rules every container has after "deny all": making any node (opening it is another
/// matter), and using those that the runtime puts into `/dev`.
const ALLOWED: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 11] = [
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(1), Some(3), "rwm"), // null
    (LinuxDeviceType::C, Some(1), Some(5), "rwm"), // zero
    (LinuxDeviceType::C, Some(1), Some(7), "rwm"), // full
    (LinuxDeviceType::C, Some(1), Some(8), "rwm"), // random
    (LinuxDeviceType::C, Some(1), Some(9), "rwm"), // urandom
    (LinuxDeviceType::C, Some(5), Some(0), "rwm"), // tty
    (LinuxDeviceType::C, Some(5), Some(1), "rwm"), // console
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"), // ptmx
    (LinuxDeviceType::C, Some(MAJOR_PTS), None, "rwm"),
];

/// The limits and device rules of a container's cgroup.
pub(crate) fn resources(
    wanted: &Wanted<'_>,
    devices: &[HostDevice],
) -> Result<LinuxResources, Error> {
    let asked = &wanted.spec.resources;
    let mut all = LinuxResourcesBuilder::default()
        .devices(device_rules(wanted, devices))
        .build()
        .expect("every field has a default");
    all.set_cpu(cpu(asked)?)
        .set_memory(memory(asked, wanted.defaults.swap_accounting)?)
        .set_hugepage_limits(hugepages(asked)?)
        .set_unified(unified(asked)?);
    if let Some(limit) = asked.pids_limit.or(wanted.defaults.pids_limit) {
        limit_pids(&mut all, limit);
    }
    Ok(all)
}

fn limit_pids(all: &mut LinuxResources, limit: i64) {
    let pids = LinuxPidsBuilder::default().limit(limit).build();
    all.set_pids(Some(pids.expect("every field has a default")));
}

/// Limits that a container is to have from now on; its devices stay as they are.
#[derive(Clone, Debug)]
pub struct ChangedLimits {
    /// Its cgroup's.
    pub resources: LinuxResources,
    /// Of its processes.
    pub oom_score_adj: i32,
}

/// Checks limits, and translates them as for a new container.
///
/// # Errors
/// [`Error::Limit`], [`Error::LimitForm`], [`Error::Unified`].
pub fn changed_limits(asked: &Resources, swap_accounting: bool) -> Result<ChangedLimits, Error> {
    let mut resources = LinuxResources::default();
    resources
        .set_devices(None)
        .set_cpu(cpu(asked)?)
        .set_memory(memory(asked, swap_accounting)?)
        .set_hugepage_limits(hugepages(asked)?)
        .set_unified(unified(asked)?);
    if let Some(limit) = asked.pids_limit {
        limit_pids(&mut resources, limit);
    }
    Ok(ChangedLimits { resources, oom_score_adj: oom_score_adj(asked.oom_score_adj)? })
}

fn positive(field: &'static str, value: i64) -> Result<Option<u64>, Error> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(Error::Limit { field, value: value.into() }),
    }
}

fn cpu(asked: &Resources) -> Result<Option<LinuxCpu>, Error> {
    let mut cpu = LinuxCpuBuilder::default().build().expect("every field has a default");
    let empty = cpu.clone();
    cpu.set_shares(positive("cpu_shares", asked.cpu_shares)?)
        .set_period(positive("cpu_period", asked.cpu_period)?)
        .set_quota((asked.cpu_quota != 0).then_some(asked.cpu_quota.max(-1)))
        .set_cpus(list("cpuset_cpus", &asked.cpuset_cpus)?)
        .set_mems(list("cpuset_mems", &asked.cpuset_mems)?);
    Ok((cpu != empty).then_some(cpu))
}

fn wrong_form(field: &'static str, value: &str, form: &'static str) -> Error {
    Error::LimitForm { field, value: value.chars().take(128).collect(), form }
}

/// A list of numbers and ranges (cpuset(7), "List format"), as far as its characters go:
/// which of them the node has is the kernel's to say.
fn list(field: &'static str, text: &str) -> Result<Option<String>, Error> {
    if !text.bytes().all(|c| c.is_ascii_digit() || matches!(c, b',' | b'-' | b':' | b'/')) {
        return Err(wrong_form(field, text, "a list of numbers and ranges"));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn memory(asked: &Resources, swap_accounting: bool) -> Result<Option<LinuxMemory>, Error> {
    // −1 is no limit, for memory as for swap.
    let limit = match asked.memory_limit {
        -1 => Some(-1),
        limit => positive("memory_limit_in_bytes", limit)?.map(|_| limit),
    };
    let swap = match asked.memory_swap_limit {
        0 if swap_accounting => limit.filter(|limit| *limit > 0),
        0 => None,
        -1 => Some(-1),
        swap if swap < asked.memory_limit => {
            let field = "memory_swap_limit_in_bytes";
            return Err(Error::Limit { field, value: swap.into() });
        }
        swap => Some(swap),
    };
    if limit.is_none() && swap.is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemoryBuilder::default().build().expect("every field has a default");
    memory.set_limit(limit).set_swap(swap);
    Ok(Some(memory))
}

fn hugepages(asked: &Resources) -> Result<Option<Vec<LinuxHugepageLimit>>, Error> {
    let limit = |(size, bytes): (&String, &u64)| {
        let field = "hugepage_limits";
        let number = size.trim_end_matches(|unit: char| unit.is_ascii_uppercase());
        let digits = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
        if !digits || !matches!(&size[number.len()..], "KB" | "MB" | "GB") {
            return Err(wrong_form(field, size, "a number with KB, MB or GB"));
        }
        let bytes =
            i64::try_from(*bytes).map_err(|_| Error::Limit { field, value: i128::from(*bytes) })?;
        let limit = LinuxHugepageLimitBuilder::default().page_size(size.as_str()).limit(bytes);
        Ok(limit.build().expect("every field has a default"))
    };
    let limits: Vec<_> = asked.hugepage_limits.iter().map(limit).collect::<Result<_, _>>()?;
    Ok((!limits.is_empty()).then_some(limits))
}

/// File names of controllers only: `memory.high`, never a path, never `cgroup.procs`.
fn unified(asked: &Resources) -> Result<Option<HashMap<String, String>>, Error> {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    for name in asked.unified.keys() {
        let file = name.split_once('.').is_some_and(|(controller, rest)| {
            !controller.is_empty() && !rest.is_empty() && controller != "cgroup"
        });
        if !file || !name.chars().all(word) || name.contains("..") {
            return Err(Error::Unified(name.chars().take(128).collect()));
        }
    }
    let all: HashMap<_, _> = asked.unified.clone().into_iter().collect();
    Ok((!all.is_empty()).then_some(all))
}

/// The devices of the request, checked, with clean paths.
pub(crate) fn devices(wanted: &Wanted<'_>) -> Result<Vec<HostDevice>, Error> {
    let check = |device: &HostDevice| {
        let path = mounts::destination("device", &device.path)?;
        if !device.access.bytes().all(|c| matches!(c, b'r' | b'w' | b'm')) {
            return Err(Error::DevicePermissions(device.access.chars().take(64).collect()));
        }
        Ok(HostDevice { path, ..device.clone() })
    };
    wanted.devices.iter().map(check).collect()
}

/// The nodes the runtime makes in `/dev` or elsewhere.
pub(crate) fn nodes(devices: &[HostDevice]) -> Vec<LinuxDevice> {
    let node = |device: &HostDevice| {
        LinuxDeviceBuilder::default()
            .path(device.path.clone())
            .typ(device.kind)
            .major(i64::from(device.major))
            .minor(i64::from(device.minor))
            .file_mode(device.mode & 0o7777)
            .uid(device.uid)
            .gid(device.gid)
            .build()
            .expect("every field has a default")
    };
    devices.iter().map(node).collect()
}

fn device_rules(wanted: &Wanted<'_>, devices: &[HostDevice]) -> Vec<LinuxDeviceCgroup> {
    if wanted.privileged() {
        return vec![rule(true, LinuxDeviceType::A, None, None, "rwm")];
    }
    let deny = rule(false, LinuxDeviceType::A, None, None, "rwm");
    let allowed =
        ALLOWED.map(|(kind, major, minor, access)| rule(true, kind, major, minor, access));
    // A named pipe is no device: rules know only those that are blocks or characters.
    let ruled =
        |device: &&HostDevice| !device.access.is_empty() && device.kind != LinuxDeviceType::P;
    let asked = devices.iter().filter(ruled).map(|device| {
        let (major, minor) = (i64::from(device.major), i64::from(device.minor));
        // mknod(2) knows the same device as unbuffered (`u`); rules do not (device_cgroup).
        let kind = match device.kind {
            LinuxDeviceType::U => LinuxDeviceType::C,
            kind => kind,
        };
        rule(true, kind, Some(major), Some(minor), &device.access)
    });
    std::iter::once(deny).chain(allowed).chain(asked).collect()
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .typ(kind)
        .access(access)
        .build()
        .expect("every field has a default");
    rule.set_major(major).set_minor(minor);
    rule
}

#[cfg(test)]
mod tests;
