//! What every driver and verb shares.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use berth_cgroup::{Cgroup, CgroupPath, Hierarchy};
use berth_failpoint::Point;
use berth_image::Images;
use berth_metadata::{ContainerRecord, PodStore, SandboxRecord};
use berth_model::sandbox::SandboxName;
use berth_model::{ContainerId, SandboxId, SandboxSpec};
use berth_network::Network;
use berth_nri::Nri;
use berth_shim_client::Runtime;
use berth_snapshot::Snapshots;
use berth_stats::{Budget, Readings, Sampler};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::{Board, Published};
use crate::config::RuntimeConfig;
use crate::container::Container;
use crate::events::Feed;
use crate::names::Names;
use crate::pending::Pending;
use crate::sandbox::Sandbox;
use crate::spawner::Spawner;
use crate::stats::{Filesystem, Layers};
use crate::worker::{Pool, Worker};
use crate::{Config, Error, NetworkUsage};

/// The containerd namespace that shims are told.
const NAMESPACE: &str = "k8s.io";

/// What every driver and verb shares.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) pods: Arc<PodStore>,
    pub(crate) store: Worker,
    pub(crate) images: Images,
    pub(crate) snapshots: Snapshots,
    pub(crate) network: Arc<Network>,
    /// Why the network cannot be used, if it cannot; hostNetwork sandboxes still run.
    pub(crate) network_fault: Published<Option<String>>,
    pub(crate) network_care: crate::network::Care,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) sampler: Arc<Sampler>,
    pub(crate) parents: crate::stats::Parents,
    /// Descriptors that statistics may keep.
    pub(crate) budget: Budget,
    /// What containers get that name nothing else; may change while the daemon runs.
    pub(crate) defaults: Published<Arc<berth_spec::Defaults>>,
    /// Size of a sandbox's /dev/shm; may change while the daemon runs.
    pub(crate) shm_bytes: Published<u64>,
    pub(crate) spawner: Spawner,
    /// Whether pods can have users of their own.
    pub(crate) users: crate::users::Users,
    pub(crate) disk: Pool,
    /// For paths that requests name: whoever waits there for a file system that hangs keeps
    /// nobody else waiting.
    pub(crate) paths: Pool,
    /// For limits below which a kernel first has to make room, which may take it long.
    pub(crate) reclaim: Pool,
    pub(crate) links: Pool,
    /// For statistics: they wait for nobody's disk, and nobody waits for them.
    pub(crate) readers: Pool,
    /// For what nobody waits for.
    pub(crate) cleaner: Pool,
    pub(crate) sandboxes: Board<SandboxId, Sandbox>,
    pub(crate) containers: Board<ContainerId, Container>,
    pub(crate) names: Names<SandboxName, SandboxSpec, SandboxId>,
    /// What happens, for who listens.
    pub(crate) feed: Arc<Feed>,
    /// The security modules of the kernel.
    pub(crate) modules: crate::lsm::Modules,
    /// Devices by the names of their vendors.
    pub(crate) cdi: berth_cdi::Catalogue,
    /// Writable layers as last measured.
    pub(crate) layers: Layers,
    /// Interfaces of sandboxes as last read.
    pub(crate) interfaces: Readings<SandboxId, NetworkUsage>,
    /// What of files, images and writable layers does not move.
    pub(crate) filesystem: std::sync::OnceLock<Filesystem>,
    /// What could not be taken back yet.
    pub(crate) pending: Arc<Pending>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    pub(crate) boot_id: String,
    /// Plugins; `None` if there can be none.
    pub(crate) nri: Option<Nri>,
}

impl Core {
    pub(crate) async fn save_sandbox(&self, record: &SandboxRecord) -> Result<(), Error> {
        let record = record.clone();
        self.stored("store sandbox", move |pods| pods.put_sandbox(&record)).await
    }

    pub(crate) async fn save_container(&self, record: &ContainerRecord) -> Result<(), Error> {
        let record = record.clone();
        self.stored("store container", move |pods| pods.put_container(&record)).await
    }

    pub(crate) async fn forget_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let id = id.clone();
        self.stored("forget sandbox", move |pods| pods.remove_sandbox(&id).map(drop)).await
    }

    pub(crate) async fn forget_container(&self, id: &ContainerId) -> Result<(), Error> {
        let id = id.clone();
        self.stored("forget container", move |pods| pods.remove_container(&id).map(drop)).await
    }

    /// Runs `work` on the thread of `pods.db`.
    pub(crate) async fn stored<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&PodStore) -> Result<T, berth_metadata::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let pods = Arc::clone(&self.pods);
        let done = self.store.run(move || work(&pods)).await?;
        done.map_err(|source| Error::Metadata { action, source: Box::new(source) })
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Result<Arc<Sandbox>, Error> {
        self.sandboxes.get(id).ok_or_else(|| Error::SandboxNotFound(id.clone()))
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>, Error> {
        self.containers.get(id).ok_or_else(|| Error::ContainerNotFound(id.clone()))
    }

    /// The cgroup, if it exists.
    pub(crate) fn cgroup(&self, path: &CgroupPath) -> Result<Option<Cgroup>, Error> {
        match self.hierarchy.open(path) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(berth_cgroup::Error::NotFound(_)) => Ok(None),
            Err(source) => Err(cgroup_error("open cgroup", path)(source)),
        }
    }

    pub(crate) fn runtime(&self, config: &RuntimeConfig) -> Runtime {
        Runtime {
            path: config.shim.clone(),
            namespace: NAMESPACE.to_owned(),
            params: !config.in_tree,
        }
    }

    /// The files by which a shim joins its own cgroup: only v1's `tasks` where there is
    /// v1, since the others make a start wait for milliseconds.
    pub(crate) fn shim_cgroup(&self) -> Result<Vec<OwnedFd>, Error> {
        let Some(path) = &self.config.shim_cgroup else { return Ok(Vec::new()) };
        let path = cgroup_path(path)?;
        let cgroup = self.hierarchy.create(&path).map_err(cgroup_error("make", &path))?;
        let (mut tasks, mut procs) = (Vec::new(), Vec::new());
        for directory in cgroup.paths() {
            let (v1, v2) = (directory.join("tasks"), directory.join("cgroup.procs"));
            let (file, all) = if v1.exists() { (v1, &mut tasks) } else { (v2, &mut procs) };
            let opened = std::fs::File::options().write(true).open(&file);
            all.push(opened.map_err(Error::io("open", file))?.into());
        }
        Ok(if tasks.is_empty() { procs } else { tasks })
    }

    /// What nobody needs once the container is gone.
    pub(crate) fn forget_usage(&self, id: &ContainerId, cgroup: &CgroupPath) {
        self.layers.forget(id);
        self.sampler.forget(cgroup);
    }
}

pub(crate) fn cgroup_path(path: &str) -> Result<CgroupPath, Error> {
    CgroupPath::new(path).map_err(|source| Error::Cgroup {
        action: "name cgroup",
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn cgroup_error(
    action: &'static str,
    path: &CgroupPath,
) -> impl FnOnce(berth_cgroup::Error) -> Error {
    let path = path.to_string();
    move |source| Error::Cgroup { action, path, source }
}

/// Passes a point at which a test may stop the work; nothing in what ships.
pub(crate) async fn step(point: Point) -> Result<(), Error> {
    berth_failpoint::reach(point).await.map_err(Error::io("pass failpoint", point.name))
}

/// As [`step`], on a thread that may block.
pub(crate) fn step_blocking(point: Point) -> Result<(), Error> {
    berth_failpoint::pass(point).map_err(Error::io("pass failpoint", point.name))
}

/// Logs what nobody is told otherwise.
pub(crate) fn warn_failure(action: &'static str, error: &Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "{action}");
}
