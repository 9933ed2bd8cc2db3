//! Containers: the handle that everybody shares, and the driver that is its only writer.
//!
//! ```text
//! (none) --create--> Created --start--> Running --exit, or shim lost--> Exited --remove--> (none)
//!                       └── program cannot be executed: StartError ──────▲
//! ```

mod create;
mod decide;
mod driver;
mod exit;
mod finish;
mod limits;
mod mounts;
mod plan;
mod release;
mod remove;
mod start;
mod stop;
mod update;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_cgroup::CgroupPath;
use berth_metadata::ContainerRecord;
use berth_model::container::Resources;
use berth_model::{ContainerId, ContainerSpec};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

pub(crate) use self::create::{create, remove_snapshot};
pub(crate) use self::driver::{Adoption, spawn};
pub(crate) use self::exit::task_end;
pub(crate) use self::start::unless_silent;
use crate::board::Published;
use crate::core::{Core, cgroup_path};
use crate::sandbox::{QUEUE, Reply, Sandbox};
use crate::status::ListItem;
use crate::{ContainerStatus, Error};

/// A command, and the span of the request that it is for.
pub(crate) type Asked = (Span, Command);

/// What a container driver is asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Execute the program.
    Start(Reply),
    /// Ask it to stop, and kill it after a grace period.
    Stop(Duration, Reply),
    /// Kill it, and answer once the shim has forgotten it.
    Halt(Reply),
    /// Kill it if it runs, then forget it.
    Remove(Reply),
    /// Change its limits to what is set here.
    Update(Box<Resources>, Reply),
    /// Answer once all that is known to have happened is recorded.
    Sync(Reply),
}

/// A container as everybody but its driver sees it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: Arc<Sandbox>,
    /// Directory of `config.json`.
    pub(crate) bundle: PathBuf,
    pub(crate) cgroup: CgroupPath,
    pub(crate) status: Published<Arc<ContainerStatus>>,
    /// Set by its driver once nothing is left of it.
    pub(crate) removed: AtomicBool,
    queue: mpsc::Sender<Asked>,
}

impl Container {
    /// The handle, and where its driver hears what it is asked.
    pub(crate) fn new(
        core: &Core,
        sandbox: Arc<Sandbox>,
        record: &ContainerRecord,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Asked>), Error> {
        let (queue, commands) = mpsc::channel(QUEUE);
        let status = status_of(record, Arc::new(record.spec.clone()));
        let container = Self {
            id: record.id.clone(),
            sandbox,
            bundle: core.config.containers().join(&record.id),
            cgroup: cgroup_path(&record.cgroup)?,
            status: Published::new(Arc::new(status)),
            removed: AtomicBool::new(false),
            queue,
        };
        Ok((Arc::new(container), commands))
    }

    /// Asks the driver. One that has ended has removed the container, `Ok` for what wants
    /// it gone, which is every command but [`Command::Start`] and [`Command::Update`]; or it ended with the daemon.
    pub(crate) async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let start = matches!(command, Command::Start(_) | Command::Update(..));
        // What the driver does for a request lies in the request's span.
        if self.queue.send((Span::current(), command)).await.is_err() {
            return match (self.removed.load(Ordering::Acquire), start) {
                (false, _) => Err(Error::ShuttingDown),
                (true, true) => Err(Error::ContainerNotFound(self.id.clone())),
                (true, false) => Ok(()),
            };
        }
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }
}

/// What is published of a record.
pub(crate) fn status_of(record: &ContainerRecord, spec: Arc<ContainerSpec>) -> ContainerStatus {
    ContainerStatus {
        id: record.id.clone(),
        sandbox: record.sandbox.clone(),
        spec,
        state: record.state.clone(),
        created_at: record.created_at,
        image_id: record.image,
        image_ref: record.image_ref.as_str().into(),
        log_path: record.log_path.clone(),
        stop_signal: record.stop_signal.as_str().into(),
        uid: record.user.0,
        gid: record.user.1,
        groups: record.groups.as_slice().into(),
        volumes: Arc::new(volumes::ids(&record.volumes)),
        limits: update::limits_of(record).clone().into(),
        list_item: ListItem::default(),
    }
}
