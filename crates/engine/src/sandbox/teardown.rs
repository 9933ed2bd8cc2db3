//! How each thing a sandbox is made of goes away. Every function succeeds when the thing
//! is not there, and may be repeated.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_cgroup::CgroupPath;
use berth_failpoint::Point;
use berth_metadata::{AttachmentRecord, SandboxRecord, ShimRecord};
use berth_model::{ErrorKind, SandboxId};
use berth_network::Attachment;
use berth_shim_client::{ApiVersion, Bootstrap, ProcessId, Shim};
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::Instrument as _;

use crate::core::{Core, cgroup_error, cgroup_path, step};
use crate::pending::Object;
use crate::undo::{Step, Undo};
use crate::{Error, files};

/// How long a shim may take to accept a connection when it is to end.
const CONNECT: Duration = Duration::from_secs(1);
/// How long it may take to give a sign of life.
const ALIVE: Duration = Duration::from_secs(1);
/// How long a shim may take to end by itself before it is killed.
const END: Duration = Duration::from_secs(5);
/// How long processes may take to leave a cgroup after they were killed.
const LEAVE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// Forgets the record of a sandbox.
pub(super) fn forget(
    core: &Arc<Core>,
    id: SandboxId,
) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let core = Arc::clone(core);
    async move { core.forget_sandbox(&id).await }
}

/// Removes a directory of ours and all in it.
pub(crate) fn remove_dir(
    core: &Arc<Core>,
    dir: PathBuf,
) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let disk = core.disk.clone();
    async move { disk.run(move || files::remove_dir(&dir)).await? }
}

/// Kills what is in the cgroup and removes it with all below it, within [`LEAVE`]. Between
/// two tries no thread is held: processes that do not die must not keep others waiting.
pub(crate) fn remove_cgroup(
    core: &Arc<Core>,
    path: CgroupPath,
) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let core = Arc::clone(core);
    async move {
        let until = Instant::now() + LEAVE;
        loop {
            let (shared, path) = (Arc::clone(&core), path.clone());
            if core.disk.run(move || clear_once(&shared, &path, until)).await?? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// As [`remove_cgroup`], blocking.
pub(crate) fn clear_cgroup(core: &Core, path: &CgroupPath) -> Result<(), Error> {
    let until = Instant::now() + LEAVE;
    while !clear_once(core, path, until)? {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Says whether the cgroup is gone; otherwise what is in it was killed. An error once it is
/// too late.
fn clear_once(core: &Core, path: &CgroupPath, until: Instant) -> Result<bool, Error> {
    let Some(cgroup) = core.cgroup(path)? else { return Ok(true) };
    match cgroup.remove() {
        Ok(()) => return Ok(true),
        Err(berth_cgroup::Error::Busy { .. }) if Instant::now() < until => {}
        Err(berth_cgroup::Error::Busy { .. }) => {
            let what = format!("end of the processes of cgroup {path}");
            return Err(Error::Deadline { what, limit: LEAVE });
        }
        Err(source) => return Err(cgroup_error("remove cgroup", path)(source)),
    }
    cgroup.kill_all().map_err(cgroup_error("kill processes of cgroup", path))?;
    Ok(false)
}

/// Takes the sandbox off the network; its address is free once its link is gone.
pub(crate) fn detach(
    core: &Arc<Core>,
    id: SandboxId,
    record: AttachmentRecord,
) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let core = Arc::clone(core);
    async move {
        let network = Arc::clone(&core.network);
        let sandbox = id.clone();
        let detached = core.links.run(move || network.detach(&id, &attachment(&record)));
        detached.await?.map_err(|source| Error::Network {
            action: "detach network",
            sandbox,
            source,
        })
    }
}

/// Puts the sandbox back on a network that was made again.
pub(crate) async fn reattach(
    core: &Core,
    id: SandboxId,
    record: AttachmentRecord,
) -> Result<(), Error> {
    let network = Arc::clone(&core.network);
    let sandbox = id.clone();
    let reattached = core.links.run(move || network.reattach(&id, &attachment(&record)));
    reattached.await?.map_err(|source| Error::Network {
        action: "reattach network",
        sandbox,
        source,
    })
}

fn attachment(record: &AttachmentRecord) -> Attachment {
    Attachment {
        address: record.address,
        prefix: record.prefix,
        gateway: record.gateway,
        mac: record.mac.parse().unwrap_or(berth_network::MacAddr::of(record.address)),
        host_interface: record.host_interface.clone(),
        host_index: record.host_index,
        ports: record.ports.clone(),
    }
}

/// Asks the shim to end, and kills it if it does not. Without a record it is looked for
/// where it was told to listen, and unless nobody listens there, its end is certain only
/// once it was reached: until then its socket, the one way to it, stays.
///
/// A shim that says it let go of everything is awaited in the background: nobody needs
/// its last moments.
pub(crate) fn end_shim(
    core: &Arc<Core>,
    id: SandboxId,
    record: Option<ShimRecord>,
) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let core = Arc::clone(core);
    async move {
        let bootstrap = match &record {
            Some(record) => bootstrap(record),
            None => Bootstrap {
                version: ApiVersion::V3,
                address: format!("unix://{}", core.config.socket(&id).display()),
            },
        };
        let mut process = record.as_ref().and_then(process);
        let mut ending = false;
        match Shim::connect(&bootstrap, CONNECT, false).await {
            Ok(shim) => {
                process = process.or_else(|| shim.peer());
                match release(&shim, &id).await {
                    Ok(()) => ending = step(Point::STOP_SHIM_RELEASED).await.is_ok(),
                    Err(error) if process.is_none() => return Err(error),
                    Err(_) => {}
                }
            }
            Err(source) if process.is_none() && !source.is_gone() => {
                return Err(unended(&id, source));
            }
            Err(_) => {}
        }
        let socket = core.config.socket(&id);
        if !ending {
            return bury(process, true, &id, socket).await;
        }
        let span = tracing::debug_span!(parent: None, "shim_end", sandbox.id = %id);
        let shared = Arc::clone(&core);
        let burial = async move {
            if let Err(error) = bury(process, false, &id, socket.clone()).await {
                let object = Object::new("sandbox", &id);
                let step = Step::new("bury shim", move || {
                    let (id, socket) = (id.clone(), socket.clone());
                    async move { bury(process, true, &id, socket).await }
                });
                shared.pending.take_step(object, step, error);
            }
        };
        core.tasks.spawn(burial.instrument(span));
        Ok(())
    }
}

/// Has the shim let go of everything.
async fn release(shim: &Shim, id: &SandboxId) -> Result<(), Error> {
    // One that gives no sign of life need not be asked for more.
    if let Err(error @ berth_shim_client::Error::Deadline { .. }) =
        shim.sandbox_ping(id, ALIVE).await
    {
        return Err(unended(id, error));
    }
    let late = |_| Error::Deadline { what: format!("end of shim {id}"), limit: END };
    let answer = tokio::time::timeout(END, shim.sandbox_shutdown(id)).await;
    answer.map_err(late)?.map_err(|source| unended(id, source))
}

fn unended(id: &SandboxId, source: berth_shim_client::Error) -> Error {
    Error::Shim { action: "end shim of", id: id.to_string(), source }
}

/// Waits until the process is gone, having killed it first or when it takes too long;
/// then removes its socket.
async fn bury(
    process: Option<ProcessId>,
    kill: bool,
    id: &SandboxId,
    socket: PathBuf,
) -> Result<(), Error> {
    let failed = |source| unended(id, source);
    if let Some(process) = process {
        let gone = !kill && ended(process, END).await.map_err(failed)?;
        if !gone {
            process.kill(Signal::SIGKILL).map_err(failed)?;
            if !ended(process, END).await.map_err(failed)? {
                return Err(Error::Deadline { what: format!("end of shim {id}"), limit: END });
            }
        }
    }
    step(Point::STOP_SHIM_DEAD).await?;
    match std::fs::remove_file(&socket) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove socket", path: socket, source })
        }
        _ => Ok(()),
    }
}

/// Waits for the end of a process; whether it came within `limit`. A process that only
/// waits to be reaped has ended.
pub(crate) async fn ended(
    process: ProcessId,
    limit: Duration,
) -> Result<bool, berth_shim_client::Error> {
    let pidfd = match process.open() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    // pidfd_open(2): readable once the process has terminated.
    let Ok(pidfd) = watch(pidfd) else { return Ok(false) };
    Ok(matches!(tokio::time::timeout(limit, pidfd.readable()).await, Ok(Ok(_))))
}

#[expect(deprecated, reason = "sound for a descriptor that is owned, and never replaced")]
fn watch(pidfd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

pub(crate) fn bootstrap(record: &ShimRecord) -> Bootstrap {
    let version = if record.version >= 3 { ApiVersion::V3 } else { ApiVersion::V2 };
    Bootstrap { version, address: record.address.clone() }
}

pub(crate) fn process(record: &ShimRecord) -> Option<ProcessId> {
    (record.pid != 0).then_some(ProcessId { pid: record.pid, started: record.started_ticks })
}

/// Takes back what a daemon that died was making. Its network is swept with all others
/// that no record names.
pub(crate) async fn undo_interrupted(core: &Arc<Core>, record: &SandboxRecord) {
    let id = &record.id;
    let undo = Undo::new(&core.pending, Object::of_pod(id, &record.spec.name));
    undo.push("forget sandbox", {
        let (core, id) = (Arc::clone(core), id.clone());
        move || and_step(forget(&core, id.clone()), Point::RECOVER_UNDONE)
    });
    let dir = core.config.sandboxes().join(id);
    undo.push("remove sandbox directory", {
        let core = Arc::clone(core);
        move || and_step(remove_dir(&core, dir.clone()), Point::RECOVER_UNDO_DIRECTORY)
    });
    if record.owns_cgroup {
        let (core, path) = (Arc::clone(core), record.cgroup.clone());
        undo.push("remove cgroup", move || {
            let removed = cgroup_path(&path).map(|path| remove_cgroup(&core, path));
            and_step(async { removed?.await }, Point::RECOVER_UNDO_CGROUP)
        });
    }
    undo.push("end shim", {
        let (core, id, shim) = (Arc::clone(core), id.clone(), record.shim.clone());
        move || and_step(end_shim(&core, id.clone(), shim.clone()), Point::RECOVER_UNDO_SHIM)
    });
    undo.run().await;
}

/// Passes `point` if what comes before it succeeded.
async fn and_step(
    done: impl Future<Output = Result<(), Error>>,
    point: Point,
) -> Result<(), Error> {
    done.await?;
    step(point).await
}
