//! What a row holds.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use berth_model::container::{Resources, Timestamp};
use berth_model::mount::ImageVolume;
use berth_model::sandbox::{PodLimits, PortMapping};
use berth_model::{
    ChainId, ContainerId, ContainerSpec, ContainerState, Digest, SandboxId, SandboxSpec,
};
use serde::{Deserialize, Serialize};

/// A blob of the content store that was verified and is on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlobRecord {
    /// Its digest.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
}

/// A committed snapshot: the unpacked files of one layer on top of its parents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotRecord {
    /// What it is called by: the chain of layers that ends with it.
    pub chain: ChainId,
    /// The chain below; `None` for a lowest layer.
    pub parent: Option<ChainId>,
    /// Allocated bytes of this layer alone.
    pub bytes: u64,
    /// Inodes of this layer alone.
    pub inodes: u64,
    /// Its directory, relative to the snapshot root.
    pub dir: String,
}

/// Where a sandbox is, as recovery needs to know it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum SandboxPhase {
    /// Being made; after a restart it is undone.
    Creating,
    /// Namespaces, network and shim exist.
    Ready,
    /// Stopped, or its shim died.
    NotReady,
}

impl SandboxPhase {
    /// The word in the `state` column.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::NotReady => "notready",
        }
    }
}

/// How a shim is found again.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// Its ttrpc address (`unix:///…`).
    pub address: String,
    /// The protocol version its bootstrap answered.
    pub version: u32,
    /// Process id of the shim; zero when it is not known.
    pub pid: u32,
    /// Start time of that process in clock ticks since boot (`/proc/PID/stat` field 22),
    /// so that another process with its number is not taken for it.
    pub started_ticks: u64,
}

/// What the network made for a sandbox.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// Address of the sandbox.
    pub address: Ipv4Addr,
    /// Length of its subnet's prefix, bits.
    pub prefix: u8,
    /// Its default route.
    pub gateway: Ipv4Addr,
    /// Hardware address of its interface.
    pub mac: String,
    /// Name of the link on the node.
    pub host_interface: String,
    /// Index of the link on the node.
    pub host_index: u32,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
}

/// One sandbox.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// What the client asked for.
    pub spec: SandboxSpec,
    /// Where it is.
    pub phase: SandboxPhase,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Boot in which it was made (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The runtime that serves it; never empty.
    pub runtime: String,
    /// cgroup that is the parent of its containers' (cgroupfs syntax).
    pub cgroup: String,
    /// Whether that cgroup is ours to make and to remove.
    pub owns_cgroup: bool,
    /// Its shim, once started.
    pub shim: Option<ShimRecord>,
    /// Its network, once attached; `None` with the node's network.
    pub network: Option<AttachmentRecord>,
    /// What the whole pod may use, if that was changed since it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<PodLimits>,
}

/// One container.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox it belongs to.
    pub sandbox: SandboxId,
    /// What the client asked for.
    pub spec: ContainerSpec,
    /// Where it is.
    pub state: ContainerState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Digest of the image's config blob.
    pub image: Digest,
    /// How the image is called towards clients: a tag or digest reference, or its id.
    pub image_ref: String,
    /// cgroup of the container (cgroupfs syntax).
    pub cgroup: String,
    /// Log file, absolute; `None` means no log.
    pub log_path: Option<PathBuf>,
    /// The signal that asks it to stop.
    pub stop_signal: String,
    /// User id and group id of the first process.
    pub user: (u32, u32),
    /// Groups of the first process beside the primary one.
    pub groups: Vec<u32>,
    /// The chain of each layer of its snapshot, lowest first.
    pub chain: Vec<ChainId>,
    /// The images it has as volumes, by the names its mounts call them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, ImageVolume>,
    /// Its limits, if they were changed since it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// Limits that are being put in force: the kernel may have them, some of them, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changing: Option<Resources>,
}

impl ContainerRecord {
    /// The layers it needs: those of its root and those of its volumes.
    pub fn layers(&self) -> impl Iterator<Item = ChainId> + '_ {
        self.chain.iter().chain(self.volumes.values().flat_map(|volume| &volume.chain)).copied()
    }
}

/// An address that belongs to a sandbox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Whose it is.
    pub sandbox: SandboxId,
}
