//! Sandboxes: the handle that everybody shares, and the driver that is its only writer.
//!
//! ```text
//! (none) --run--> Creating --made--> Ready --stop, or shim lost--> NotReady --remove--> (none)
//!                     └── failed: undone, newest step first ──────────────────▲
//! ```
//!
//! A sandbox in the making is in the store, so that a restart can undo it, and is not
//! published.

mod driver;
mod lost;
mod plan;
mod remove;
mod run;
mod stop;
mod teardown;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_cgroup::CgroupPath;
use berth_metadata::{SandboxPhase, SandboxRecord};
use berth_model::container::ContainerName;
use berth_model::sandbox::{NamespaceMode, PodLimits};
use berth_model::{ContainerId, ContainerSpec, SandboxId, SandboxSpec, SandboxState};
use berth_shim_client::Shim;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

pub(crate) use self::driver::{answer, spawn};
pub(crate) use self::run::run;
pub(crate) use self::teardown::{
    bootstrap, clear_cgroup, end_shim, ended, process, remove_cgroup, remove_dir, undo_interrupted,
};
use crate::board::Published;
use crate::core::{Core, cgroup_path};
use crate::names::Names;
use crate::spawner::NET_FD;
use crate::stats::Counters;
use crate::status::ListItem;
use crate::{Error, SandboxStatus};

/// Most requests that wait in a driver's queue; further callers wait themselves.
pub(crate) const QUEUE: usize = 16;

/// Answers a request.
pub(crate) type Reply = oneshot::Sender<Result<(), Error>>;

/// A command, and the span of the request that it is for.
pub(crate) type Asked = (Span, Command);

/// What a sandbox driver is asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Kill the containers, and let go of all that is not a record.
    Stop(Reply),
    /// Stop, then forget.
    Remove(Reply),
    /// Take note of what the whole pod may use.
    Update(Box<PodLimits>, Reply),
    /// Come back to a network that was made again.
    Reattach(Reply),
}

/// A sandbox as everybody but its driver sees it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) spec: Arc<SandboxSpec>,
    pub(crate) hostname: String,
    /// Directory of its files and of its shim's socket.
    pub(crate) dir: PathBuf,
    /// Parent of its containers' cgroups.
    pub(crate) cgroup: CgroupPath,
    pub(crate) status: Published<Arc<SandboxStatus>>,
    /// `None` once the shim is gone.
    pub(crate) shim: Published<Option<Shim>>,
    /// Its containers, by the client's name.
    pub(crate) members: Names<ContainerName, ContainerSpec, ContainerId>,
    /// Its network as statistics know it.
    pub(crate) counters: Counters,
    /// Set by its driver once nothing is left of it.
    pub(crate) removed: AtomicBool,
    queue: mpsc::Sender<Asked>,
}

impl Sandbox {
    /// The handle, and where its driver hears what it is asked.
    pub(crate) fn new(
        core: &Core,
        record: &SandboxRecord,
        shim: Option<Shim>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Asked>), Error> {
        let (queue, commands) = mpsc::channel(QUEUE);
        let spec = Arc::new(record.spec.clone());
        let status = status_of(record, Arc::clone(&spec));
        let sandbox = Self {
            id: record.id.clone(),
            hostname: crate::sandbox::plan::hostname(&spec, &record.id)?,
            spec,
            dir: core.config.sandboxes().join(&record.id),
            cgroup: cgroup_path(&record.cgroup)?,
            status: Published::new(Arc::new(status)),
            shim: Published::new(shim),
            members: Names::new(),
            counters: Counters::default(),
            removed: AtomicBool::new(false),
            queue,
        };
        Ok((Arc::new(sandbox), commands))
    }

    /// The shim, unless it is gone.
    pub(crate) fn live_shim(&self, verb: &'static str) -> Result<Shim, Error> {
        self.shim.get().ok_or_else(|| Error::SandboxNotReady { verb, id: self.id.clone() })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.status.get().state == SandboxState::Ready
    }

    /// Asks the driver. One that has ended has removed the sandbox, which is what both
    /// commands want, or ended with the daemon, which is not.
    pub(crate) async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        // What the driver does for a request lies in the request's span.
        if self.queue.send((Span::current(), command(reply))).await.is_err() {
            let removed = self.removed.load(Ordering::Acquire);
            return if removed { Ok(()) } else { Err(Error::ShuttingDown) };
        }
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }
}

/// What is published of a record.
pub(crate) fn status_of(record: &SandboxRecord, spec: Arc<SandboxSpec>) -> SandboxStatus {
    let ready = record.phase == SandboxPhase::Ready;
    let shim_pid = record.shim.as_ref().map_or(0, |shim| shim.pid);
    let own_net = spec.namespaces.network != NamespaceMode::Node;
    SandboxStatus {
        id: record.id.clone(),
        state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
        created_at: record.created_at,
        ip: record.network.as_ref().filter(|_| ready).map(|network| network.address.into()),
        runtime: record.runtime.as_str().into(),
        shim_pid,
        netns: (ready && own_net && shim_pid != 0)
            .then(|| PathBuf::from(format!("/proc/{shim_pid}/fd/{NET_FD}"))),
        limits: record.limits.as_ref().unwrap_or(&spec.limits).clone().into(),
        list_item: ListItem::default(),
        spec,
    }
}
