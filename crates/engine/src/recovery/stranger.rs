//! A shim that no record names: found by its socket, and ended with all that it runs.
//!
//! Nothing is known of it but what it says itself. Who listens on a socket of ours and is
//! not a shim is somebody else, and left alone.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_model::{ContainerId, SandboxId};
use berth_shim_client::{ApiVersion, Bootstrap, ProcessId, Shim};
use nix::sys::signal::Signal;

use super::sweep::remove_file;
use crate::core::{Core, cgroup_error, cgroup_path, warn_failure};
use crate::pending::Object;
use crate::sandbox::end_shim;
use crate::undo::Step;
use crate::{Error, files};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Longest command line and list of children that is read, bytes.
const MAX_PROC: u64 = 1 << 20;

/// Ends the shim that listens on the socket called `name`, if there is one; says whether
/// its socket may be swept with the others. One that cannot be reached or ended now is
/// tried again, and its socket, the one way to it, stays until then.
pub(super) async fn end(core: &Arc<Core>, name: String) -> bool {
    let Err(error) = end_once(core, name.clone()).await else { return true };
    let object = Object::new("socket", core.config.sockets().join(&name).display());
    let shared = Arc::clone(core);
    let step = Step::new("sweep shim", move || {
        let (core, name) = (Arc::clone(&shared), name.clone());
        async move { end_once(&core, name).await }
    });
    core.pending.take_step(object, step, error);
    false
}

async fn end_once(core: &Arc<Core>, name: String) -> Result<(), Error> {
    let socket = core.config.sockets().join(&name);
    let is_socket = std::fs::symlink_metadata(&socket).map(|found| found.file_type().is_socket());
    if !is_socket.unwrap_or(false) {
        return Ok(());
    }
    let address = format!("unix://{}", socket.display());
    let bootstrap = Bootstrap { version: ApiVersion::V3, address };
    let shim = match Shim::connect(&bootstrap, CONNECT, false).await {
        Ok(shim) => shim,
        Err(error) if error.is_gone() => {
            tracing::warn!(path = %socket.display(), "sweep: socket of no shim");
            return remove_file(&socket);
        }
        Err(source) => return Err(Error::Shim { action: "end shim at", id: name, source }),
    };
    let Some(process) = shim.peer() else { return Ok(()) };
    drop(shim);
    let Some(id) = sandbox_of(process, &name) else {
        tracing::warn!(
            path = %socket.display(),
            pid = process.pid,
            "a process that is no shim of ours listens here; it is left alone"
        );
        return Ok(());
    };
    tracing::error!(sandbox.id = %id, pid = process.pid, "sweep: a shim of no record is ended");
    // A shim that must be killed leaves its containers behind.
    let cgroups = core.disk.run(move || children(process)).await.unwrap_or_default();
    let ended = end_shim(core, id.clone(), None).await;
    let shared = Arc::clone(core);
    let left = core.disk.run(move || cgroups.into_iter().for_each(|child| kill(&shared, child)));
    if let Err(error) = left.await {
        warn_failure("sweep what a shim left", &error);
    }
    ended
}

/// The sandbox that the process says it is the shim of; the socket has the start of its
/// id.
fn sandbox_of(process: ProcessId, name: &str) -> Option<SandboxId> {
    let line = files::read_bounded(&proc_file(process, "cmdline"), MAX_PROC).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let id = words.windows(2).find(|pair| pair[0] == b"-id")?[1];
    let id = std::str::from_utf8(id).ok().filter(|id| id.starts_with(name))?;
    // After the words were read, so that they are those of this process.
    process.exists().then(|| SandboxId::new(id).ok())?
}

fn proc_file(process: ProcessId, name: &str) -> PathBuf {
    Path::new("/proc").join(process.pid.to_string()).join(name)
}

/// What a shim runs: each child and the cgroup that is a container's.
#[derive(Debug)]
struct Child {
    process: ProcessId,
    cgroup: Option<String>,
}

/// The children of the shim, which is also the parent of whoever lost his in there.
fn children(shim: ProcessId) -> Vec<Child> {
    let path = proc_file(shim, &format!("task/{}/children", shim.pid));
    let list = files::read_bounded(&path, MAX_PROC).unwrap_or_default();
    let pids = String::from_utf8_lossy(&list);
    let pids = pids.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
    let children = pids.filter_map(|pid| ProcessId::of(pid).ok());
    children.map(|process| Child { process, cgroup: container_cgroup(process) }).collect()
}

/// The process's cgroup, if its name is a container's id (cgroups(7), `/proc/PID/cgroup`).
fn container_cgroup(process: ProcessId) -> Option<String> {
    let lines = files::read_bounded(&proc_file(process, "cgroup"), MAX_PROC).ok()?;
    let lines = String::from_utf8_lossy(&lines);
    let mut paths = lines.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let container = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.len() == 64 && ContainerId::new(name).is_ok()
    };
    paths.find(container).map(str::to_owned)
}

fn kill(core: &Core, child: Child) {
    let killed = child.process.kill(Signal::SIGKILL).map_err(|source| Error::Shim {
        action: "kill a process of",
        id: child.process.pid.to_string(),
        source,
    });
    let emptied = child.cgroup.map_or(Ok(()), |path| {
        let path = cgroup_path(&path)?;
        let Some(cgroup) = core.cgroup(&path)? else { return Ok(()) };
        cgroup.kill_all().map_err(cgroup_error("kill processes of", &path))?;
        crate::sandbox::clear_cgroup(core, &path)
    });
    for failure in [killed, emptied].into_iter().filter_map(Result::err) {
        warn_failure("sweep what a shim left", &failure);
    }
}
