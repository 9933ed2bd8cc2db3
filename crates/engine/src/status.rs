//! What the engine tells of its objects.
//!
//! Statuses are snapshots: a driver publishes a new one after it stored a change, and
//! whoever asks gets the last one without waiting for the driver.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use berth_model::container::{Resources, Timestamp};
use berth_model::sandbox::PodLimits;
use berth_model::stats::DiskUsage;
use berth_model::{ContainerId, ContainerSpec, ContainerState, Digest};
use berth_model::{SandboxId, SandboxSpec, SandboxState};
use berth_network::InterfaceCounters;
use berth_stats::{Details, Sample};

/// A runtime handler, as it is configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Handler {
    /// What a sandbox calls it.
    pub name: String,
    /// Whether its program is the one that comes with the daemon, which can all that the
    /// daemon can.
    pub in_tree: bool,
}

/// A snapshot as the CRI has it in a list, encoded; kept with the snapshot and gone with it.
///
/// Lists are asked for every second. The parts of a snapshot lie on several pages, which
/// after a second are in no cache any more; this is one piece. It is made once the snapshot is
/// published, which then never changes; a changed copy has none.
#[derive(Default)]
pub struct ListItem(OnceLock<Box<[u8]>>);

impl ListItem {
    /// The item; encoded with `encode` at the first question.
    pub fn or_encode(&self, encode: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.0.get_or_init(|| encode().into_boxed_slice())
    }
}

/// A copy is made to be changed.
impl Clone for ListItem {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// It is made of the rest.
impl PartialEq for ListItem {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ListItem {}

impl fmt::Debug for ListItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListItem").field(&self.0.get().map(|bytes| bytes.len())).finish()
    }
}

/// A sandbox as its driver last published it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// What the client asked for.
    pub spec: Arc<SandboxSpec>,
    /// Where it is in its life.
    pub state: SandboxState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Its address; `None` with the node's network, and once stopped.
    pub ip: Option<IpAddr>,
    /// The runtime handler that serves it; never empty.
    pub runtime: Arc<str>,
    /// Process id of its shim; zero when there is none.
    pub shim_pid: u32,
    /// Path under `/proc` of its network namespace; `None` with the node's.
    pub netns: Option<PathBuf>,
    /// What the whole pod may use, as its client says.
    pub limits: Arc<PodLimits>,
    /// What lists say of it.
    pub list_item: ListItem,
}

/// A container as its driver last published it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox it belongs to.
    pub sandbox: SandboxId,
    /// What the client asked for.
    pub spec: Arc<ContainerSpec>,
    /// Where it is in its life; holds process id, times, exit code and reason.
    pub state: ContainerState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// Digest of the image's config blob (CRI `image_id`).
    pub image_id: Digest,
    /// How the image is called: a normalised reference, or its id.
    pub image_ref: Arc<str>,
    /// Log file, absolute; `None` means no log.
    pub log_path: Option<PathBuf>,
    /// The signal that asks it to stop, by name.
    pub stop_signal: Arc<str>,
    /// User id of the first process.
    pub uid: u32,
    /// Group id of the first process.
    pub gid: u32,
    /// Groups of the first process beside the primary one.
    pub groups: Arc<[u32]>,
    /// Ids of the images it has as volumes, by the names its mounts call them.
    pub volumes: Arc<BTreeMap<String, Digest>>,
    /// Its limits now.
    pub limits: Arc<Resources>,
    /// What lists say of it.
    pub list_item: ListItem,
}

impl ContainerStatus {
    /// Process id of the first process on the node, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(pid),
            ContainerState::Created | ContainerState::Exited { .. } => None,
        }
    }
}

/// What a finished command wrote and how it ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ExecOutput {
    /// Standard output, at most [`crate::MAX_EXEC_OUTPUT`] bytes; the rest was discarded.
    pub stdout: Vec<u8>,
    /// Standard error, with the same limit.
    pub stderr: Vec<u8>,
    /// Exit code; 128 and the signal's number for a killed one.
    pub code: i32,
}

/// Usage of one container.
#[derive(Clone, Debug)]
pub struct ContainerStats {
    /// Whose usage it is.
    pub status: Arc<ContainerStatus>,
    /// Its cgroup; `None` when nothing of it runs.
    pub cgroup: Option<Sample>,
    /// Its writable layer, as last measured.
    pub writable_layer: Option<DiskUsage>,
}

/// Usage of one sandbox.
#[derive(Clone, Debug)]
pub struct SandboxStats {
    /// Whose usage it is.
    pub status: Arc<SandboxStatus>,
    /// The cgroup of the whole sandbox, or its containers' together where that is not its
    /// own; `None` when it is gone.
    pub cgroup: Option<Sample>,
    /// Its interfaces; `None` with the node's network, and once stopped.
    pub network: Option<NetworkUsage>,
    /// Usage of each of its containers.
    pub containers: Vec<ContainerStats>,
}

/// What went through the interfaces of a sandbox.
#[derive(Clone, Debug)]
pub struct NetworkUsage {
    /// When it was read.
    pub at: Timestamp,
    /// Each but `lo`, in the order in which they were made.
    pub interfaces: Arc<[InterfaceCounters]>,
}

/// All that is measured on this node.
#[derive(Clone, Debug)]
pub struct NodeMetrics {
    /// Every ready sandbox.
    pub sandboxes: Vec<SandboxMetrics>,
    /// Where writable layers are; `None` when it does not say.
    pub filesystem: Option<FilesystemUsage>,
    /// Names of the block devices that occur, by number.
    pub devices: BTreeMap<(u32, u32), String>,
}

/// All that is measured of one sandbox.
#[derive(Clone, Debug)]
pub struct SandboxMetrics {
    /// Which it is.
    pub status: Arc<SandboxStatus>,
    /// Name of its cgroup.
    pub cgroup_path: String,
    /// Its cgroup; `None` when that is not its own.
    pub cgroup: Option<Arc<Details>>,
    /// Its interfaces; `None` with the node's network.
    pub network: Option<NetworkUsage>,
    /// Each of its running containers.
    pub containers: Vec<ContainerMetrics>,
}

/// All that is measured of one running container.
#[derive(Clone, Debug)]
pub struct ContainerMetrics {
    /// Which it is.
    pub status: Arc<ContainerStatus>,
    /// Name of its cgroup.
    pub cgroup_path: String,
    /// Its cgroup and processes.
    pub cgroup: Arc<Details>,
    /// Its writable layer, as last measured.
    pub writable_layer: Option<DiskUsage>,
}

/// The file system of images and writable layers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FilesystemUsage {
    /// What is mounted: `/dev/sda1`.
    pub device: String,
    /// Size, bytes.
    pub capacity_bytes: u64,
    /// Inodes it can have.
    pub inodes: u64,
    /// Inodes it has not.
    pub inodes_free: u64,
}

/// Whether one part of the node can serve, and why not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Condition {
    /// Whether it can.
    pub ready: bool,
    /// Why not, in one CamelCase word; empty when ready.
    pub reason: String,
    /// Why not, for people; empty when ready.
    pub message: String,
}

/// Whether the node can run sandboxes (CRI `RuntimeStatus`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeStatus {
    /// Stores, cgroups and shims.
    pub runtime: Condition,
    /// The sandbox network.
    pub network: Condition,
}

/// What could not be taken back after a failure, or not be finished, yet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UndoStatus {
    /// Steps that failed and are tried again, oldest first.
    pub unfinished: Vec<UnfinishedUndo>,
    /// Tries that failed since the start.
    pub failures: u64,
    /// Objects of which something could be taken back or finished only later, since the
    /// start.
    pub recovered: u64,
}

/// A step that failed and is tried again until it succeeds or the daemon ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnfinishedUndo {
    /// What it belongs to, for people: `sandbox 0123…`.
    pub object: String,
    /// What is to be done.
    pub step: &'static str,
    /// How often it was tried.
    pub tries: u32,
    /// How long ago it was first tried.
    pub elapsed: Duration,
    /// Why the last try failed.
    pub error: String,
}
