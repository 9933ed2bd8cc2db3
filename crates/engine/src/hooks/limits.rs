//! Limits as the CRI has them, and as plugins do.

use berth_model::container::Resources;
use berth_nri::api::{
    HugepageLimit, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, OptionalInt, OptionalUInt64,
};

use super::adjust::refuse_limits;
use crate::Error;

/// What a client wants; a plugin is told of nothing that it did not set.
pub(super) fn told(limits: &Resources) -> LinuxResources {
    let signed = |value: i64| (value != 0).then_some(OptionalInt { value });
    let unsigned = |value: i64| {
        u64::try_from(value).ok().filter(|value| *value != 0).map(|value| OptionalUInt64 { value })
    };
    let hugepages =
        |(size, limit): (&String, &u64)| HugepageLimit { page_size: size.clone(), limit: *limit };
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(limits.memory_limit),
            swap: signed(limits.memory_swap_limit),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(limits.cpu_shares),
            quota: signed(limits.cpu_quota),
            period: unsigned(limits.cpu_period),
            cpus: limits.cpuset_cpus.clone(),
            mems: limits.cpuset_mems.clone(),
            ..LinuxCpu::default()
        }),
        hugepage_limits: limits.hugepage_limits.iter().map(hugepages).collect(),
        unified: limits.unified.clone(),
        pids: limits.pids_limit.map(|limit| LinuxPids { limit }),
        ..LinuxResources::default()
    }
}

/// What a plugin wants of a container that exists; what cannot be changed is refused by its
/// name.
pub(super) fn wanted(resources: LinuxResources) -> Result<Resources, Error> {
    refuse_limits(&resources)?;
    let refuse = |what: &str| Err(Error::Unsupported(format!("a change of {what} by a plugin")));
    let (memory, cpu) = (resources.memory.unwrap_or_default(), resources.cpu.unwrap_or_default());
    if memory.reservation.is_some() {
        return refuse("the memory reservation");
    }
    if !resources.devices.is_empty() {
        return refuse("device rules");
    }
    let signed = |value: Option<OptionalInt>| value.map_or(0, |value| value.value);
    let unsigned = |value: Option<OptionalUInt64>, what: &'static str| match value {
        None => Ok(0),
        Some(value) => i64::try_from(value.value)
            .map_err(|_| Error::invalid("adjustment by plugins", format!("{what} is too large"))),
    };
    let hugepages = resources.hugepage_limits.into_iter();
    Ok(Resources {
        cpu_period: unsigned(cpu.period, "the CPU period")?,
        cpu_quota: signed(cpu.quota),
        cpu_shares: unsigned(cpu.shares, "the CPU shares")?,
        memory_limit: signed(memory.limit),
        memory_swap_limit: signed(memory.swap),
        oom_score_adj: 0,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: hugepages.map(|limit| (limit.page_size, limit.limit)).collect(),
        unified: resources.unified,
        pids_limit: resources.pids.map(|pids| pids.limit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_was_told_and_gives_back_is_what_was_asked() {
        let asked = Resources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit: 64 << 20,
            memory_swap_limit: 64 << 20,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: [("2MB".into(), 4)].into(),
            unified: [("memory.high".into(), "1".into())].into(),
            pids_limit: Some(7),
            ..Resources::default()
        };
        assert_eq!(wanted(told(&asked)).unwrap(), asked);
        assert_eq!(wanted(told(&Resources::default())).unwrap(), Resources::default());
    }

    #[test]
    fn what_cannot_be_changed_is_refused_by_its_name() {
        let reservation = Some(OptionalInt { value: 1 });
        let memory = Some(LinuxMemory { reservation, ..LinuxMemory::default() });
        let refused = wanted(LinuxResources { memory, ..LinuxResources::default() }).unwrap_err();
        assert!(refused.to_string().contains("reservation"), "{refused}");
        let shares = Some(OptionalUInt64 { value: u64::MAX });
        let cpu = Some(LinuxCpu { shares, ..LinuxCpu::default() });
        wanted(LinuxResources { cpu, ..LinuxResources::default() }).unwrap_err();
    }
}
