//! What the end of a container's first process leads to.

use std::path::Path;
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::container::Exit;
use berth_model::sandbox::NamespaceMode;
use berth_model::task::TaskEnd;
use berth_model::{ContainerId, ContainerState, ErrorKind};
use berth_shim_client::{Exited, Shim, TaskStatus, unreaped};
use tokio::time::timeout;

use super::decide::{self, SHIM_ANSWER};
use super::driver::{Driver, Ending};
use crate::core::{Core, cgroup_error, warn_failure};
use crate::{clock, files};

/// Pause before the shim is asked again: short at first, since a shim that was killed looks
/// for a moment like one whose connection broke.
const AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Waits for the end of `id` with `shim`; `None` when the shim is gone, or has forgotten
/// the container.
pub(super) fn watch(shim: Shim, id: ContainerId) -> Ending {
    Box::pin(async move {
        let mut pause = AGAIN.0;
        loop {
            match shim.wait(&id).await {
                Ok(exited) => return Some(exited),
                Err(error) if error.kind() == ErrorKind::NotFound => return None,
                Err(_) => {}
            }
            // The connection broke, or the shim is confused: what does it say now?
            match shim.state(&id).await.map(|state| state.status) {
                Ok(TaskStatus::Stopped(exited)) => return Some(exited),
                Err(error) if error.kind() == ErrorKind::NotFound || error.is_gone() => {
                    return None;
                }
                Ok(_) | Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN.1);
                }
            }
        }
    })
}

/// The end that a shim has left in a bundle, if it saw one.
pub(crate) async fn task_end(core: &Core, bundle: &Path) -> Option<TaskEnd> {
    let path = bundle.join(TaskEnd::FILE);
    let read = move || files::read_bounded(&path, TaskEnd::MAX_BYTES);
    let json = core.disk.run(read).await.ok()?.ok()?;
    serde_json::from_slice(&json).ok()
}

impl Driver {
    /// Records the end, then answers who waited for it. Says whether the container is gone.
    pub(super) async fn ended(&mut self, exited: Option<Exited>) -> bool {
        if matches!(self.record.state, ContainerState::Running { .. }) && !self.is_over() {
            let exit = match exited {
                Some(exited) => self.told(exited).await,
                None => self.lost().await,
            };
            tracing::info!(code = exit.code, reason = exit.reason.as_str(), "container ended");
            self.end(exit).await;
            if !self.unfinished.has_end() {
                berth_failpoint::reached(Point::STOP_END_PUBLISHED).await;
            }
        }
        self.settle(Vec::new()).await
    }

    /// The end that the shim told.
    async fn told(&mut self, exited: Exited) -> Exit {
        let kills = self.oom_kills().await;
        if !self.owns_pid_namespace() {
            // What the first process left behind ends with it. Should it not, the end is
            // recorded all the same.
            if let Err(error) = self.kill_by_cgroup().await {
                warn_failure("kill what a container left behind", &error);
            }
        }
        decide::exit(exited.code, exited.at, kills)
    }

    /// The end of what ran under a shim that is gone. Processes that do not die have a
    /// moment, and are waited for when the container is removed.
    async fn lost(&mut self) -> Exit {
        tracing::warn!("shim is gone: killing container by its cgroup");
        match self.kill_until_empty().await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("processes of a lost container do not die"),
            Err(error) => warn_failure("kill lost container by its cgroup", &error),
        }
        match self.left_by_shim().await {
            Some(end) => {
                let kills = end.oom_kills.max(self.oom_kills().await);
                decide::exit(end.code, end.at, kills)
            }
            None => decide::lost(clock::now()),
        }
    }

    /// The end of a container whose processes are all dead, when its shim does not tell it.
    /// The first process is a zombie until the shim has reaped it, and says how it ended.
    pub(super) async fn unreported(&mut self) -> Exit {
        let kills = self.oom_kills().await;
        let shim = self.container.sandbox.status.get().shim_pid;
        let pid = self.container.status.get().pid();
        if let Some(code) = pid.and_then(|pid| unreaped(pid, shim)) {
            return decide::exit(code, clock::now(), kills);
        }
        // It was reaped: the shim has written it down, and may have come back.
        if let Some(end) = self.left_by_shim().await {
            return decide::exit(end.code, end.at, end.oom_kills.max(kills));
        }
        if let Some(shim) = self.container.sandbox.shim.get() {
            let answer = timeout(SHIM_ANSWER, shim.state(&self.container.id)).await;
            if let Ok(Ok(TaskStatus::Stopped(exited))) =
                answer.map(|state| state.map(|state| state.status))
            {
                return decide::exit(exited.code, exited.at, kills);
            }
        }
        decide::killed_unreported(clock::now(), kills)
    }

    /// What a shim that cannot be asked has left in the bundle, if it saw the end.
    async fn left_by_shim(&mut self) -> Option<TaskEnd> {
        task_end(&self.core, &self.container.bundle).await
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

    pub(super) fn owns_pid_namespace(&self) -> bool {
        self.record.spec.security.namespaces.pid == NamespaceMode::Container
    }
}
