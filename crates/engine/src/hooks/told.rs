//! Sandboxes as plugins are told of them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_metadata::SandboxRecord;
use berth_model::SandboxSpec;
use berth_model::sandbox::{NamespaceMode, PodLimits};
use berth_nri::api::{LinuxNamespace, LinuxPodSandbox, PodSandbox};

use super::limits;
use crate::sandbox::Sandbox;
use crate::spawner::NET_FD;

/// One that is published.
pub(super) fn pod(sandbox: &Sandbox) -> PodSandbox {
    let status = sandbox.status.get();
    let told = Told {
        id: sandbox.id.as_str(),
        spec: &sandbox.spec,
        runtime: &status.runtime,
        cgroup: sandbox.cgroup.as_str(),
        ip: status.ip,
        netns: status.netns.as_deref(),
        limits: &status.limits,
    };
    told.message()
}

/// One that was made, and is not published.
pub(super) fn made(record: &SandboxRecord) -> PodSandbox {
    let shim = record.shim.as_ref().map_or(0, |shim| shim.pid);
    let own = record.spec.namespaces.network != NamespaceMode::Node && shim != 0;
    let netns = own.then(|| PathBuf::from(format!("/proc/{shim}/fd/{NET_FD}")));
    let told = Told {
        id: record.id.as_str(),
        spec: &record.spec,
        runtime: &record.runtime,
        cgroup: &record.cgroup,
        ip: record.network.as_ref().map(|network| network.address.into()),
        netns: netns.as_deref(),
        limits: record.limits.as_ref().unwrap_or(&record.spec.limits),
    };
    told.message()
}

struct Told<'a> {
    id: &'a str,
    spec: &'a SandboxSpec,
    runtime: &'a str,
    cgroup: &'a str,
    ip: Option<IpAddr>,
    netns: Option<&'a Path>,
    limits: &'a PodLimits,
}

impl Told<'_> {
    /// There is no pause process, so `pid` is zero.
    fn message(&self) -> PodSandbox {
        let name = &self.spec.name;
        let netns = self.netns.map(|path| LinuxNamespace {
            r#type: "network".to_owned(),
            path: path.to_string_lossy().into_owned(),
        });
        PodSandbox {
            id: self.id.to_owned(),
            name: name.name.clone(),
            uid: name.uid.clone(),
            namespace: name.namespace.clone(),
            labels: self.spec.labels.clone(),
            annotations: self.spec.annotations.clone(),
            runtime_handler: self.runtime.to_owned(),
            linux: Some(LinuxPodSandbox {
                pod_overhead: Some(limits::told(&self.limits.overhead)),
                pod_resources: Some(limits::told(&self.limits.resources)),
                cgroup_parent: self.spec.cgroup_parent.clone().unwrap_or_default(),
                cgroups_path: self.cgroup.to_owned(),
                namespaces: netns.into_iter().collect(),
                ..LinuxPodSandbox::default()
            }),
            pid: 0,
            ips: self.ip.iter().map(IpAddr::to_string).collect(),
        }
    }
}
