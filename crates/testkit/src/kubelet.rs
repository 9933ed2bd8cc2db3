//! Pods as kubelet asks for them, with all that it adds to what a user wrote.

use std::collections::BTreeMap;
use std::path::Path;

use berth_api::v1;

use crate::cri::{self, resources, sandbox_security, security};

const MEMORY_LIMIT: i64 = 128 << 20;

/// What kubelet hides of `/proc` and `/sys` from a container that is not privileged.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What it makes read-only for such a container.
const READ_ONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A sandbox with the labels, the DNS and the seccomp profile that kubelet gives each.
#[must_use]
pub fn sandbox(name: &str, namespace: &str, uid: &str, logs: &Path) -> v1::PodSandboxConfig {
    let mut config = cri::sandbox_config(name, logs);
    let metadata = config.metadata.get_or_insert_default();
    namespace.clone_into(&mut metadata.namespace);
    uid.clone_into(&mut metadata.uid);
    config.labels = words(&[
        ("io.kubernetes.pod.name", name),
        ("io.kubernetes.pod.namespace", namespace),
        ("io.kubernetes.pod.uid", uid),
    ]);
    config.annotations = words(&[("kubernetes.io/config.source", "api")]);
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.96.0.10".to_owned()],
        searches: vec!["svc.cluster.local".to_owned(), "cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    sandbox_security(&mut config).seccomp = Some(v1::SecurityProfile::default());
    config
}

/// A container with limits, and with the paths hidden that kubelet hides.
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> v1::ContainerConfig {
    let mut config = cri::container_config(name, image, command);
    config.labels = words(&[("io.kubernetes.container.name", name)]);
    let resources = resources(&mut config);
    resources.memory_limit_in_bytes = MEMORY_LIMIT;
    resources.cpu_period = 100_000;
    resources.cpu_shares = 2;
    resources.oom_score_adj = 995;
    let security = security(&mut config);
    security.masked_paths = MASKED.iter().map(|path| (*path).to_owned()).collect();
    security.readonly_paths = READ_ONLY.iter().map(|path| (*path).to_owned()).collect();
    config
}

fn words(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_what_kubelet_adds() {
        let pod = sandbox("a", "space", "uid-1", Path::new("/logs"));
        let metadata = pod.metadata.unwrap();
        assert_eq!((metadata.namespace.as_str(), metadata.uid.as_str()), ("space", "uid-1"));
        assert_eq!(pod.labels["io.kubernetes.pod.uid"], "uid-1");
        assert_eq!(pod.dns_config.unwrap().servers.len(), 1);

        let mut main = container("main", "image", &["true"]);
        assert_eq!(resources(&mut main).memory_limit_in_bytes, 128 << 20);
        let security = security(&mut main);
        assert_eq!((security.masked_paths.len(), security.readonly_paths.len()), (12, 5));
        assert!(security.masked_paths.iter().all(|path| path.starts_with('/')));
    }
}
