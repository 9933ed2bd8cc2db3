//! Limits, both ways.

use std::collections::BTreeMap;

use berth_api::v1;
use berth_model::container::Resources;

use crate::Error;

/// The limits asked for; their ranges are checked where the specification is built.
pub(crate) fn wanted(asked: Option<&v1::LinuxContainerResources>) -> Resources {
    let Some(asked) = asked else { return Resources::default() };
    let hugepages = asked.hugepage_limits.iter();
    Resources {
        cpu_period: asked.cpu_period,
        cpu_quota: asked.cpu_quota,
        cpu_shares: asked.cpu_shares,
        memory_limit: asked.memory_limit_in_bytes,
        memory_swap_limit: asked.memory_swap_limit_in_bytes,
        oom_score_adj: asked.oom_score_adj,
        cpuset_cpus: asked.cpuset_cpus.clone(),
        cpuset_mems: asked.cpuset_mems.clone(),
        hugepage_limits: hugepages
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect::<BTreeMap<_, _>>(),
        unified: asked.unified.clone(),
        pids_limit: None,
    }
}

/// Limits that are only taken note of; they must make sense all the same.
pub(crate) fn noted(
    field: &str,
    asked: Option<&v1::LinuxContainerResources>,
) -> Result<Resources, Error> {
    let limits = wanted(asked);
    match berth_spec::changed_limits(&limits, false) {
        Ok(_) => Ok(limits),
        Err(problem) => Err(Error::invalid(field, format!("is invalid: {problem}"))),
    }
}

/// The limits in force.
pub(super) fn told(resources: &Resources) -> v1::ContainerResources {
    let hugepages = resources.hugepage_limits.iter();
    let linux = v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: hugepages
            .map(|(size, limit)| v1::HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
    };
    v1::ContainerResources { linux: Some(linux), windows: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_note_of_is_checked() {
        let asked = v1::LinuxContainerResources { memory_limit_in_bytes: -7, ..Default::default() };
        let refused = noted("overhead", Some(&asked)).unwrap_err().to_string();
        assert!(refused.contains("overhead") && refused.contains("memory_limit"), "{refused}");
        assert_eq!(noted("overhead", None).unwrap(), Resources::default());
    }

    #[test]
    fn what_is_asked_for_is_told() {
        let asked = v1::LinuxContainerResources {
            cpu_period: 1,
            cpu_quota: 2,
            cpu_shares: 3,
            memory_limit_in_bytes: 4,
            memory_swap_limit_in_bytes: 5,
            oom_score_adj: -6,
            cpuset_cpus: "0-1".to_owned(),
            cpuset_mems: "0".to_owned(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 7 }],
            unified: [("memory.high".to_owned(), "8".to_owned())].into(),
        };
        assert_eq!(told(&wanted(Some(&asked))).linux, Some(asked));
        assert_eq!(wanted(None), Resources::default());
    }
}
