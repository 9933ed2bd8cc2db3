//! The cgroup: its path and its limits.

use std::collections::BTreeMap;

use berth_cgroup::{
    CgroupPath, CpuLimits, DeviceAccess, DeviceKind, DeviceRule, Limits, MemoryLimits,
};
use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources,
};

use crate::error::{Error, Reported};

/// Where containers without an absolute `linux.cgroupsPath` go.
const DEFAULT_PARENT: &str = "/berth";

/// The character devices every container may use: null, zero, full, random, urandom, tty,
/// console and ptmx; the pseudo-terminals have a major number of their own.
const DEFAULT_DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// The cgroup of a container; relative paths are below our own default parent.
pub(super) fn cgroup_path(id: &str, linux: &Linux) -> Result<CgroupPath, Error> {
    const FIELD: &str = "linux.cgroupsPath";
    let path = match linux.cgroups_path() {
        None => format!("{DEFAULT_PARENT}/{id}"),
        Some(path) => {
            let path = path.to_str().ok_or_else(|| Error::invalid(FIELD, "is not UTF-8"))?;
            match path {
                "" => format!("{DEFAULT_PARENT}/{id}"),
                absolute if absolute.starts_with('/') => absolute.to_owned(),
                systemd if systemd.contains(':') => {
                    return Err(Error::unsupported(FIELD, "the systemd cgroup driver"));
                }
                relative => format!("{DEFAULT_PARENT}/{relative}"),
            }
        }
    };
    CgroupPath::new(&path)
        .map_err(|error| Error::Cgroup { path, source: Reported::new(error.kind(), &error) })
}

/// Reads `linux.resources`. Devices are always limited: those every container may use, and
/// what the spec allows.
pub(super) fn limits(linux: &Linux) -> Result<Limits, Error> {
    let nothing = LinuxResources::default();
    let resources = linux.resources().as_ref().unwrap_or(&nothing);
    let rules = resources.devices().as_deref().unwrap_or_default();
    Ok(Limits { devices: Some(devices(rules)?), ..but_devices(resources)? })
}

/// Reads what a running container's limits are to be; those of its devices stay.
pub(super) fn update(resources: &LinuxResources) -> Result<Limits, Error> {
    if resources.devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(Error::unsupported("linux.resources.devices", "changing devices"));
    }
    but_devices(resources)
}

fn but_devices(resources: &LinuxResources) -> Result<Limits, Error> {
    refuse_unsupported(resources)?;
    let mut hugepages = BTreeMap::new();
    for limit in resources.hugepage_limits().as_deref().unwrap_or_default() {
        let bytes = u64::try_from(limit.limit())
            .map_err(|_| Error::invalid("linux.resources.hugepageLimits", "a limit is negative"))?;
        hugepages.insert(limit.page_size().clone(), bytes);
    }
    Ok(Limits {
        cpu: resources.cpu().as_ref().map(cpu).unwrap_or_default(),
        cpus: resources.cpu().as_ref().and_then(|cpu| text(cpu.cpus())),
        mems: resources.cpu().as_ref().and_then(|cpu| text(cpu.mems())),
        memory: resources.memory().as_ref().map(memory).unwrap_or_default(),
        pids: resources.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit),
        hugepages,
        unified: resources.unified().clone().unwrap_or_default().into_iter().collect(),
        devices: None,
    })
}

fn refuse_unsupported(resources: &LinuxResources) -> Result<(), Error> {
    let refuse = |field| Err(Error::unsupported(field, "this limit"));
    if resources.network().is_some() {
        return refuse("linux.resources.network");
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return refuse("linux.resources.rdma");
    }
    if resources.block_io().as_ref().is_some_and(|io| *io != Default::default()) {
        return refuse("linux.resources.blockIO");
    }
    if let Some(cpu) = resources.cpu()
        && (cpu.realtime_period().is_some_and(|n| n != 0)
            || cpu.realtime_runtime().is_some_and(|n| n != 0))
    {
        return refuse("linux.resources.cpu.realtimeRuntime");
    }
    if let Some(memory) = resources.memory() {
        if memory.swappiness().is_some() {
            return refuse("linux.resources.memory.swappiness");
        }
        if memory.disable_oom_killer() == Some(true) {
            return refuse("linux.resources.memory.disableOOMKiller");
        }
    }
    Ok(())
}

fn text(value: &Option<String>) -> Option<String> {
    value.clone().filter(|value| !value.is_empty())
}

fn cpu(cpu: &LinuxCpu) -> CpuLimits {
    CpuLimits {
        shares: cpu.shares(),
        quota: cpu.quota(),
        period: cpu.period(),
        burst: cpu.burst(),
        idle: cpu.idle().map(|idle| idle != 0),
    }
}

fn memory(memory: &LinuxMemory) -> MemoryLimits {
    MemoryLimits { limit: memory.limit(), swap: memory.swap(), reservation: memory.reservation() }
}

fn devices(rules: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, Error> {
    let mut all = rules.iter().map(device).collect::<Result<Vec<_>, _>>()?;
    let may_make = DeviceAccess { read: false, write: false, mknod: true };
    for kind in [DeviceKind::Char, DeviceKind::Block] {
        all.push(DeviceRule { allow: true, kind, major: None, minor: None, access: may_make });
    }
    all.extend(DEFAULT_DEVICES.map(|(major, minor)| DeviceRule {
        allow: true,
        kind: DeviceKind::Char,
        major: Some(major),
        minor,
        access: DeviceAccess::ALL,
    }));
    Ok(all)
}

fn device(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    const FIELD: &str = "linux.resources.devices";
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => DeviceKind::All,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
        Some(LinuxDeviceType::B) => DeviceKind::Block,
        Some(LinuxDeviceType::P) => {
            return Err(Error::invalid(FIELD, "a FIFO is not a device"));
        }
    };
    let access = match rule.access().as_deref() {
        None | Some("") => DeviceAccess::ALL,
        Some(letters) => DeviceAccess::parse(letters)
            .ok_or_else(|| Error::invalid(FIELD, format!("access {letters:?}")))?,
    };
    // The specification writes "every" as absence, implementations write −1 as well.
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| Error::invalid(FIELD, format!("device number {number}"))),
    };
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: &str) -> Linux {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_cgroup_path_is_absolute_below_the_default_or_refused() {
        let path = |json| cgroup_path("c1", &linux(json)).map(|path| path.as_str().to_owned());
        assert_eq!(path("{}").unwrap(), "/berth/c1");
        assert_eq!(path(r#"{"cgroupsPath":"/pods/a"}"#).unwrap(), "/pods/a");
        assert_eq!(path(r#"{"cgroupsPath":"pods/a"}"#).unwrap(), "/berth/pods/a");
        assert!(path(r#"{"cgroupsPath":"/pods/../a"}"#).is_err());
        let systemd = path(r#"{"cgroupsPath":"system.slice:cri:c1"}"#);
        assert!(matches!(systemd, Err(Error::Unsupported { .. })));
    }

    #[test]
    fn every_device_is_denied_that_nobody_allows() {
        let rules = limits(&linux("{}")).unwrap().devices.unwrap();
        assert!(rules.iter().all(|rule| rule.kind != DeviceKind::All));
        let null = rules.iter().find(|rule| (rule.major, rule.minor) == (Some(1), Some(3)));
        assert_eq!(null.unwrap().access, DeviceAccess::ALL);
    }

    #[test]
    fn limits_that_would_be_ignored_are_refused() {
        for json in [
            r#"{"resources":{"blockIO":{"weight":10}}}"#,
            r#"{"resources":{"memory":{"swappiness":0}}}"#,
            r#"{"resources":{"memory":{"disableOOMKiller":true}}}"#,
            r#"{"resources":{"cpu":{"realtimeRuntime":5}}}"#,
        ] {
            assert!(matches!(limits(&linux(json)), Err(Error::Unsupported { .. })), "{json}");
        }
    }
}
