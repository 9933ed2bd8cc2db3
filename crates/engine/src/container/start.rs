//! Created → Running, or → Exited when the program cannot be executed.

use berth_failpoint::Point;
use berth_model::container::{ContainerEvent, Timestamp};
use berth_model::mount::Mount;
use berth_model::{ContainerId, ErrorKind};
use berth_shim_client::{CreateRequest, Input, Output, Shim};
use berth_snapshot::{Durability, SnapshotKey};
use tracing::{Instrument as _, debug_span};

use super::decide::{self, Verdict};
use super::driver::Driver;
use super::exit;
use crate::core::{step, warn_failure};
use crate::{Error, clock};

impl Driver {
    /// Answers after execve(2).
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        match decide::start(&self.record.state) {
            Verdict::Act => {}
            Verdict::Done => return Ok(()),
            Verdict::Refuse => {
                return Err(Error::ContainerState {
                    verb: "start",
                    id: self.container.id.clone(),
                    state: self.record.state.name(),
                });
            }
        }
        let sandbox = &self.container.sandbox;
        if !sandbox.is_ready() {
            return Err(Error::SandboxNotReady { verb: "start container", id: sandbox.id.clone() });
        }
        let shim = sandbox.live_shim("start container")?;
        // A task that a daemon made and did not live to start.
        self.release_task().await;
        step(Point::START_TASK_RELEASED).await?;
        let rootfs = self.rootfs().await?;
        step(Point::START_MOUNTS_KNOWN).await?;
        self.task = true;
        match self.execute(&shim, rootfs).await {
            Ok((pid, at)) => self.started(shim, pid, at).await,
            Err(failure) => self.not_started(failure).await,
        }
    }

    /// The pid, and a time before which nothing ran: a short program has ended before the
    /// answer is here.
    async fn execute(
        &mut self,
        shim: &Shim,
        rootfs: Vec<Mount>,
    ) -> Result<(u32, Timestamp), Error> {
        let id = &self.container.id;
        let failed = |failure| not_executed(id, failure);
        let request = self.request(rootfs);
        shim.create(&request).instrument(debug_span!("task_create")).await.map_err(failed)?;
        step(Point::START_TASK_CREATED).await?;
        let at = clock::now().max(self.record.created_at);
        let pid = shim.start(id).instrument(debug_span!("task_start")).await.map_err(failed)?;
        step(Point::START_EXECUTED).await?;
        Ok((pid, at))
    }

    async fn started(&mut self, shim: Shim, pid: u32, at: Timestamp) -> Result<(), Error> {
        let stored = self.enter(ContainerEvent::Started { pid, at }).await;
        if let Err(error) = stored {
            // A container that no record says is running must not run.
            self.release_task().await;
            return Err(error);
        }
        self.ending = Some(exit::watch(shim, self.container.id.clone()));
        berth_failpoint::reached(Point::START_PUBLISHED).await;
        Ok(())
    }

    /// The container has ended without having run; why is told to the client and kept.
    async fn not_started(&mut self, error: Error) -> Result<(), Error> {
        self.release_task().await;
        let exit = decide::start_error(clock::now(), error.told());
        let recorded = async {
            step(Point::START_REFUSED).await?;
            self.enter(ContainerEvent::Exited(exit)).await
        };
        if let Err(unstored) = recorded.await {
            warn_failure("store that a container did not start", &unstored);
        }
        Err(error)
    }

    /// How its root file system is mounted.
    async fn rootfs(&mut self) -> Result<Vec<Mount>, Error> {
        let (snapshots, id) = (self.core.snapshots.clone(), self.container.id.clone());
        let chain = self.record.chain.clone();
        let mounts = self.core.disk.run(move || {
            snapshots.mounts_unused(&SnapshotKey::from(&id), &chain, Durability::Volatile)
        });
        mounts.await?.map_err(|source| Error::Snapshot {
            action: "mount snapshot",
            key: self.container.id.to_string(),
            source,
        })
    }

    fn request(&self, rootfs: Vec<Mount>) -> CreateRequest {
        let spec = &self.record.spec;
        let log = self.record.log_path.clone().map_or(Output::Null, Output::CriLog);
        CreateRequest {
            id: self.container.id.clone(),
            bundle: self.container.bundle.clone(),
            rootfs,
            terminal: spec.tty,
            stdin: if spec.stdin { Input::Hold } else { Input::Null },
            stderr: if spec.tty { Output::Null } else { log.clone() },
            stdout: log,
        }
    }
}

/// Why the shim did not execute the program.
fn not_executed(id: &ContainerId, failure: berth_shim_client::Error) -> Error {
    let id = id.clone();
    match failure.exec_failure() {
        Some(message) => Error::Exec {
            id,
            message: message.to_owned(),
            kind: match failure.kind() {
                // To a client "not found" would mean the container.
                ErrorKind::NotFound | ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
                kind => kind,
            },
        },
        None => Error::Shim { action: "start container", id: id.to_string(), source: failure },
    }
}
