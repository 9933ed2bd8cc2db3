//! What the end of a container's first process leads to.

use std::time::Duration;

use berth_failpoint::Point;
use berth_model::container::ContainerEvent;
use berth_model::sandbox::NamespaceMode;
use berth_model::task::TaskEnd;
use berth_model::{ContainerId, ContainerState, ErrorKind};
use berth_shim_client::{Exited, Shim, TaskStatus};
use tokio::time::timeout;
use tracing::{Instrument as _, debug_span};

use super::decide;
use super::driver::{Driver, Ending};
use crate::core::{cgroup_error, step, warn_failure};
use crate::sandbox::remove_cgroup;
use crate::{Error, clock, files};

/// Pause before the shim, or the store, is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a shim may take to forget a task.
const DELETE: Duration = Duration::from_secs(5);

/// Waits for the end of `id` with `shim`; `None` when the shim is gone, or has forgotten
/// the container.
pub(super) fn watch(shim: Shim, id: ContainerId) -> Ending {
    Box::pin(async move {
        loop {
            match shim.wait(&id).await {
                Ok(exited) => return Some(exited),
                Err(error) if error.kind() == ErrorKind::NotFound => return None,
                Err(_) => {}
            }
            // The connection broke, or the shim is confused: what does it say now?
            match shim.state(&id).await.map(|state| state.status) {
                Ok(TaskStatus::Stopped(exited)) => return Some(exited),
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable) =>
                {
                    return None;
                }
                Ok(_) | Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    })
}

impl Driver {
    /// Records the end, then answers who waited for it. Says whether the container is gone.
    pub(super) async fn ended(&mut self, exited: Option<Exited>) -> bool {
        if matches!(self.record.state, ContainerState::Running { .. })
            && let Err(error) = self.record_end(exited).await
        {
            // Nothing is published that is not stored.
            warn_failure("store the end of a container", &error);
            self.ending = Some(Box::pin(async move {
                tokio::time::sleep(AGAIN).await;
                exited
            }));
            return false;
        }
        berth_failpoint::reached(Point::STOP_END_PUBLISHED).await;
        self.settle(Vec::new()).await
    }

    async fn record_end(&mut self, exited: Option<Exited>) -> Result<(), Error> {
        let exit = match exited {
            Some(exited) => {
                let kills = self.oom_kills().await;
                if !self.owns_pid_namespace() {
                    // What the first process left behind ends with it. Should it not, the
                    // end is recorded all the same.
                    if let Err(error) = self.kill_by_cgroup().await {
                        warn_failure("kill what a container left behind", &error);
                    }
                }
                decide::exit(exited.code, exited.at, kills)
            }
            None => {
                tracing::warn!("shim is gone: killing container by its cgroup");
                self.task = false;
                let left = self.left_by_shim().await;
                let kills = self.oom_kills().await;
                let removed = remove_cgroup(&self.core, self.container.cgroup.clone()).await;
                if let Err(error) = removed {
                    warn_failure("remove cgroup of lost container", &error);
                }
                left.map_or_else(
                    || decide::lost(clock::now()),
                    |end| decide::exit(end.code, end.at, end.oom_kills.max(kills)),
                )
            }
        };
        step(Point::STOP_ENDED).await?;
        tracing::info!(code = exit.code, reason = exit.reason.as_str(), "container ended");
        self.enter(ContainerEvent::Exited(exit)).await
    }

    /// What a shim that is gone has left in the bundle, if the container had ended before.
    async fn left_by_shim(&mut self) -> Option<TaskEnd> {
        let path = self.container.bundle.join(TaskEnd::FILE);
        let read = move || files::read_bounded(&path, TaskEnd::MAX_BYTES);
        let json = self.core.disk.run(read).await.ok()?.ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// How many of its processes the kernel killed for the memory limit; none if the
    /// cgroup does not say.
    pub(super) async fn oom_kills(&mut self) -> u64 {
        let (core, path) = (self.core.clone(), self.container.cgroup.clone());
        let read = move || match core.cgroup(&path)? {
            Some(cgroup) => cgroup.oom_kills().map_err(cgroup_error("read", &path)),
            None => Ok(0),
        };
        match self.core.disk.run(read).await {
            Ok(Ok(kills)) => kills,
            Ok(Err(error)) | Err(error) => {
                warn_failure("read memory kills of container", &error);
                0
            }
        }
    }

    /// Has the shim forget the task, and with it mounts and cgroup. Only what has ended,
    /// or must end now.
    pub(super) async fn release_task(&mut self) {
        if !std::mem::take(&mut self.task) {
            return;
        }
        if let Some(shim) = self.container.sandbox.shim.get() {
            let id = &self.container.id;
            let delete = shim.delete(id).instrument(debug_span!("task_delete"));
            let failure = match timeout(DELETE, delete).await {
                Ok(Ok(_)) => match step(Point::STOP_TASK_DELETED).await {
                    Ok(()) => return,
                    Err(error) => Some(error),
                },
                Ok(Err(error)) if error.kind() == ErrorKind::NotFound => None,
                Ok(Err(source)) => {
                    Some(Error::Shim { action: "delete task of", id: id.to_string(), source })
                }
                Err(_) => {
                    Some(Error::Deadline { what: format!("delete task of {id}"), limit: DELETE })
                }
            };
            if let Some(error) = failure {
                warn_failure("delete task", &error);
            }
        }
        if let Err(error) = remove_cgroup(&self.core, self.container.cgroup.clone()).await {
            warn_failure("remove cgroup of container", &error);
        }
    }

    pub(super) fn owns_pid_namespace(&self) -> bool {
        self.record.spec.security.namespaces.pid == NamespaceMode::Container
    }
}
