//! Pod sandboxes: what a client wants of one, and where it is in its life.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::IdMappings;
use crate::container::{Resources, SelinuxOptions};

/// The name under which a client knows a sandbox; unique among those that exist.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct SandboxName {
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// Which try this is; a client raises it after a failure.
    pub attempt: u32,
}

/// Whose namespace of a kind a sandbox or container uses (CRI `NamespaceMode`).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for the whole pod.
    #[default]
    Pod,
    /// One for each container.
    Container,
    /// The node's own.
    Node,
    /// That of another container of the pod, named by its id.
    Target(String),
}

/// Whose namespaces a sandbox or container uses.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// Network: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// Processes: `Pod`, `Container`, `Node` or `Target`.
    pub pid: NamespaceMode,
    /// System V IPC and POSIX queues: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Users: the pod's own, in which ids lie so on the node; `None` is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<IdMappings>,
}

/// Name resolution inside a sandbox (resolv.conf(5)).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport protocol of a port mapping.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that leads to a port of the sandbox.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the sandbox.
    pub container_port: u16,
    /// Port on the node.
    pub host_port: u16,
    /// Address on the node, or all of its local addresses.
    pub host_ip: Option<IpAddr>,
}

/// What a client says that a pod may use. It is for information: the pod's cgroup, which the
/// client makes, has these limits, or the containers have them (KEP-1287, KEP-688).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct PodLimits {
    /// What the sandbox needs beside its containers.
    pub overhead: Resources,
    /// The sum over the containers.
    pub resources: Resources,
}

impl PodLimits {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What a client wants of a sandbox (CRI `PodSandboxConfig`).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The client's name for it.
    pub name: SandboxName,
    /// Host name; empty means the node's when the network is the node's, else the id's start.
    pub hostname: String,
    /// Directory of the container logs, absolute.
    pub log_directory: Option<PathBuf>,
    /// Name resolution; `None` copies the node's resolv.conf.
    pub dns: Option<DnsConfig>,
    /// Ports of the node that lead here; those without a host port are left out.
    pub port_mappings: Vec<PortMapping>,
    /// The client's labels, for its filters.
    pub labels: BTreeMap<String, String>,
    /// The client's annotations, returned untouched and never obeyed.
    pub annotations: BTreeMap<String, String>,
    /// Parent of every cgroup of the sandbox, in cgroupfs syntax (`/kubepods/pod1`).
    pub cgroup_parent: Option<String>,
    /// Kernel parameters of the sandbox's own namespaces, by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// Whose namespaces it uses.
    pub namespaces: NamespaceOptions,
    /// Whether privileged containers may be created in it.
    pub privileged: bool,
    /// The configured runtime to use; empty means the default.
    pub runtime_handler: String,
    /// What the whole pod may use.
    #[serde(default, skip_serializing_if = "PodLimits::is_none")]
    pub limits: PodLimits,
    /// The SELinux context of containers that have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxOptions>,
}

/// Where a sandbox is in its life (CRI `PodSandboxState`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Namespaces, network and shim exist.
    Ready,
    /// Stopped, or its shim died; it can only be removed.
    NotReady,
}
