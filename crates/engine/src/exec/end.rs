//! How a command ends for which nobody waits any more.
//!
//! Its directory is its record: the name is the id the shim knows it by, and the file
//! [`CONTAINER`] names its container. It goes when the shim has forgotten the command, so
//! that a restart finds what a dead daemon left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::{ContainerId, ErrorKind, ExecId};
use berth_shim_client::{Process, ProcessId, Shim, TaskStatus};
use nix::sys::signal::Signal;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use tokio::time::{sleep, timeout};
use tracing::{Instrument as _, debug_span};

use super::fifos::Directory;
use crate::core::{Core, cgroup_error, step, warn_failure};
use crate::pending::Object;
use crate::undo::Step;
use crate::{Error, files};

/// The file that names the container of a command.
pub(super) const CONTAINER: &str = "container";
/// Longest content of that file that is read, bytes.
const MAX_ID: u64 = 256;
/// Most directories that are looked at after a restart.
const MAX_ENTRIES: usize = 100_000;
/// Most open files of a process that are looked at; its standard streams are the first.
const MAX_FILES: usize = 64;
/// How long the shim has for each step.
const KILL: Duration = Duration::from_secs(2);
/// Pauses between two tries, the first and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));
/// Times a command is seen waiting for its start before that is believed: another request
/// for its start may be under way.
const WAITING: u32 = 5;

/// A command that must go.
pub(super) struct Leftover {
    pub(super) core: Arc<Core>,
    pub(super) shim: Shim,
    pub(super) container: ContainerId,
    pub(super) exec: ExecId,
    /// Its process, once that is known.
    pub(super) process: Option<ProcessId>,
    pub(super) dir: Directory,
}

/// What a look at a command led to.
enum Seen {
    Gone,
    Waiting,
    Alive,
}

impl Leftover {
    /// Kills the process and has the shim forget it, as often as it takes: until that is
    /// done, or the container or the shim is gone. A daemon that ends leaves the rest to
    /// the next.
    pub(super) async fn end(self) {
        let mut pause = PAUSE.0;
        let mut waited = 0;
        loop {
            let seen = self.look().await;
            waited += u32::from(matches!(seen, Ok(Seen::Waiting)));
            match seen {
                Ok(Seen::Gone) => break,
                // Nobody asks for its start: the shim may forget it.
                Ok(Seen::Waiting) if waited >= WAITING && self.forget().await.is_ok() => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "end a command");
                    if let Err(error) = self.kill_itself().await {
                        warn_failure("kill a command without its shim", &error);
                    }
                }
            }
            if self.is_over() {
                break;
            }
            let waiting = self.core.shutdown.run_until_cancelled(sleep(pause));
            if waiting.await.is_none() {
                return;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
        self.remove_dir().await;
    }

    /// As [`Leftover::end`], of a command that has ended: the shim need only forget it.
    pub(super) async fn forgotten(self, limit: Duration) {
        match timeout(limit, self.forget()).await {
            Ok(Ok(())) => self.remove_dir().await,
            Ok(Err(_)) | Err(_) => self.end().await,
        }
    }

    pub(super) async fn remove_dir(self) {
        if let Err(error) = step(Point::EXEC_DELETED).await {
            warn_failure("delete exec process", &error);
        }
        let remove = Step::new("remove FIFOs of a command", {
            let (core, dir) = (Arc::clone(&self.core), self.dir.clone());
            move || {
                let (disk, dir) = (core.disk.clone(), dir.clone());
                async move { disk.run(move || dir.remove()).await? }
            }
        });
        if let Err(error) = remove.run().await {
            self.core.pending.take_step(Object::new("container", &self.container), remove, error);
        }
        berth_failpoint::reached(Point::EXEC_REMOVED).await;
    }

    /// Whether its container does not run any more, and no process of it can.
    fn is_over(&self) -> bool {
        let container = self.core.containers.get(&self.container);
        container.is_none_or(|container| container.status.get().pid().is_none())
    }

    fn id(&self) -> Process<'_> {
        Process { container: &self.container, exec: Some(&self.exec) }
    }

    /// One step towards its end, by what the shim says of it.
    async fn look(&self) -> Result<Seen, Error> {
        let state = timeout(KILL, self.shim.state(self.id())).await;
        let state = state.unwrap_or_else(|_| Err(self.late("State")));
        match state.map(|state| state.status) {
            Err(error) if error.kind() == ErrorKind::NotFound || error.is_gone() => Ok(Seen::Gone),
            Err(error) => Err(self.failed(error)),
            Ok(TaskStatus::Stopped(_)) => self.forget().await.map(|()| Seen::Gone),
            Ok(TaskStatus::Created | TaskStatus::Unknown) => Ok(Seen::Waiting),
            Ok(TaskStatus::Running | TaskStatus::Paused) => {
                let killed = self.shim.kill(self.id(), Signal::SIGKILL as i32, false, KILL).await;
                match killed {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(self.failed(error));
                    }
                    _ => {}
                }
                let _ended = timeout(KILL, self.shim.wait(self.id())).await;
                Ok(Seen::Alive)
            }
        }
    }

    async fn forget(&self) -> Result<(), Error> {
        match self.shim.delete(self.id()).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// Kills the process without the shim, which does not answer, and what else writes to
    /// the FIFOs: whether the process was made at all only the shim knows.
    async fn kill_itself(&self) -> Result<(), Error> {
        let Some(container) = self.core.containers.get(&self.container) else { return Ok(()) };
        let (core, known) = (Arc::clone(&self.core), self.process);
        let (dir, id) = (self.dir.path().to_owned(), self.container.to_string());
        let kill = move || {
            let path = &container.cgroup;
            let Some(cgroup) = core.cgroup(path)? else { return Ok(()) };
            let pids = cgroup.pids().map_err(cgroup_error("read processes of", path))?;
            let fifos = ["out", "err"].map(|name| identity(&dir.join(name)));
            // Named before it is looked at: another may get its number afterwards.
            let processes = pids.into_iter().filter_map(|pid| ProcessId::of(pid).ok());
            for process in processes.filter(|process| {
                known == Some(*process) || holds(process.pid, |found| fifos.contains(&Some(found)))
            }) {
                let failed = |source| {
                    let id = id.clone();
                    Error::Shim { action: "kill command in", id, source }
                };
                process.kill(Signal::SIGKILL).map_err(failed)?;
            }
            Ok(())
        };
        self.core.disk.run(kill).await?
    }

    fn late(&self, method: &'static str) -> berth_shim_client::Error {
        let address = self.shim.address().to_owned();
        berth_shim_client::Error::Deadline { address, method, deadline: KILL }
    }

    fn failed(&self, source: berth_shim_client::Error) -> Error {
        Error::Shim { action: "end command in container", id: self.container.to_string(), source }
    }
}

/// Device, by its two numbers, and inode of a file.
type Identity = (u32, u32, u64);

/// As far as the kernel knows: a container's file may be one of a file system that hangs.
fn identity(path: &Path) -> Option<Identity> {
    let (as_known, inode) = (AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
    let file = rustix::fs::statx(CWD, path, as_known, inode).ok()?;
    Some((file.stx_dev_major, file.stx_dev_minor, file.stx_ino))
}

/// Whether a process has a file open that `wanted` knows, among its first [`MAX_FILES`].
fn holds(pid: u32, wanted: impl Fn(Identity) -> bool) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.take(MAX_FILES).filter_map(|file| identity(&file.path())).any(wanted)
}

/// After a restart: ends the commands that a dead daemon left, in the background, and
/// removes the directories of those that are over.
pub(crate) async fn sweep(core: &Arc<Core>) -> Result<(), Error> {
    let dir = core.config.execs();
    let found = core.disk.run(move || left_in(&dir)).await??;
    for (path, command) in found {
        let shim = command.and_then(|(exec, id)| {
            let container = core.containers.get(&id)?;
            Some((exec, id, container.sandbox.shim.get()?))
        });
        let Some((exec, container, shim)) = shim else {
            let removed = core.disk.run(move || remove(path)).await;
            if let Ok(Err(error)) | Err(error) = removed {
                warn_failure("sweep", &error);
            }
            continue;
        };
        tracing::warn!(container.id = %container, "sweep: command of nobody");
        let span = debug_span!(parent: None, "exec_sweep", container.id = %container);
        let (core, dir) = (Arc::clone(core), Directory::at(path, false));
        let tasks = core.tasks.clone();
        let leftover = Leftover { core, shim, container, exec, process: None, dir };
        tasks.spawn(leftover.end().instrument(span));
    }
    Ok(())
}

fn remove(path: PathBuf) -> Result<(), Error> {
    let found = std::fs::symlink_metadata(&path);
    match found.is_ok_and(|found| found.is_dir()) {
        true => files::remove_dir(&path),
        false => std::fs::remove_file(&path).map_err(Error::io("remove", path)),
    }
}

/// Each directory of a command, with what it says: nothing if it was still being made.
type Found = Vec<(PathBuf, Option<(ExecId, ContainerId)>)>;

fn left_in(dir: &Path) -> Result<Found, Error> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry.map_err(Error::io("list", dir))?;
        let path = entry.path();
        let exec = entry.file_name().into_string().ok().and_then(|name| ExecId::new(name).ok());
        let container = files::read_bounded(&path.join(CONTAINER), MAX_ID).ok();
        let container = container.and_then(|id| ContainerId::new(String::from_utf8(id).ok()?).ok());
        found.push((path, exec.zip(container)));
    }
    Ok(found)
}
