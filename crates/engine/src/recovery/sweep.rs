//! Removes what no record names: directories, shims, snapshots, cgroups, links, leases.
//!
//! Everything swept is below a root that is ours alone. A failure is logged and the rest
//! goes on: a node with a leftover is better than no node. What has a name that nothing
//! else will have is tried again later; links and ports wait for the next start.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_cgroup::CgroupPath;
use berth_failpoint::Point;
use berth_model::{ContainerId, SandboxId};
use berth_snapshot::SnapshotKey;
use futures_util::future::join_all;
use tracing::Instrument as _;

use super::stranger;
use crate::core::{Core, cgroup_path, step, step_blocking, warn_failure};
use crate::pending::Object;
use crate::sandbox::{clear_cgroup, remove_cgroup};
use crate::undo::Step;
use crate::{Error, container, exec, files};

/// Most entries of one directory that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// How long the ending of shims that no record names may hold up the start.
const STRANGERS: Duration = Duration::from_secs(1);

pub(super) async fn sweep(
    core: &Arc<Core>,
    sandboxes: HashSet<SandboxId>,
    containers: HashSet<ContainerId>,
    attached: HashSet<SandboxId>,
) {
    let unused = shims(core, &sandboxes).await;
    let commands = exec::sweep(core).await;
    let network = links(core, attached).await;
    let shared = Arc::clone(core);
    let rest = move || {
        let dirs = directories(&shared, &sandboxes, &containers, &unused)
            .and_then(|()| step_blocking(Point::RECOVER_DIRECTORIES_SWEPT));
        let snapshots = snapshots(&shared, &containers)
            .and_then(|()| step_blocking(Point::RECOVER_SNAPSHOTS_SWEPT));
        let cgroups = cgroups(&shared, &sandboxes, &containers)
            .and_then(|()| step_blocking(Point::RECOVER_CGROUPS_SWEPT));
        [dirs, snapshots, cgroups]
    };
    let rest = match core.disk.run(rest).await {
        Ok(rest) => rest.into_iter().collect(),
        Err(error) => vec![Err(error)],
    };
    for failure in rest.into_iter().chain([network, commands]).filter_map(Result::err) {
        warn_failure("sweep", &failure);
    }
}

/// Shims of sandboxes that no record names. They are found by their sockets: of a sandbox
/// that was being removed, or made, nothing else may be there. Tells which sockets
/// are of no use any more; another may be the only way to a shim.
async fn shims(core: &Arc<Core>, live: &HashSet<SandboxId>) -> HashSet<String> {
    let dir = core.config.sockets();
    let Ok(Ok(names)) = core.disk.run(move || names(&dir)).await else { return HashSet::new() };
    let known = sockets(core, live);
    let ended = Arc::new(Mutex::new(HashSet::new()));
    let ending: Vec<_> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| !known.contains(name))
        .map(|name| {
            let core = Arc::clone(core);
            let tasks = core.tasks.clone();
            let ended = Arc::clone(&ended);
            let work = async move {
                if stranger::end(&core, name.clone()).await {
                    ended.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
                }
            };
            tasks.spawn(work.in_current_span())
        })
        .collect();
    // Those that hang are ended while others are served.
    if tokio::time::timeout(STRANGERS, join_all(ending)).await.is_err() {
        tracing::warn!("sweep: shims of no record do not end by themselves");
    }
    if let Err(error) = step(Point::RECOVER_SHIMS_SWEPT).await {
        warn_failure("sweep shims", &error);
    }
    std::mem::take(&mut *ended.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Names of the sockets of the given sandboxes' shims.
fn sockets(core: &Core, sandboxes: &HashSet<SandboxId>) -> HashSet<String> {
    let name = |id| Some(core.config.socket(id).file_name()?.to_str()?.to_owned());
    sandboxes.iter().filter_map(name).collect()
}

async fn links(core: &Arc<Core>, live: HashSet<SandboxId>) -> Result<(), Error> {
    let network = Arc::clone(&core.network);
    let swept = core.links.run(move || network.sweep(&live)).await?;
    let swept = swept.map_err(|source| Error::NetworkBase { source })?;
    if swept != berth_network::Swept::default() {
        tracing::warn!(swept.links, swept.ports, swept.leases, "sweep: network of no record");
    }
    step(Point::RECOVER_LINKS_SWEPT).await
}

fn directories(
    core: &Core,
    sandboxes: &HashSet<SandboxId>,
    containers: &HashSet<ContainerId>,
    unused: &HashSet<String>,
) -> Result<(), Error> {
    let config = &core.config;
    let in_sandboxes = |name: &str| is_sandbox(sandboxes, name);
    let in_containers = |name: &str| is_container(containers, name);
    for (dir, keep) in [
        (config.sandboxes(), &in_sandboxes as &dyn Fn(&str) -> bool),
        (config.containers(), &in_containers),
        (config.sockets(), &|name: &str| !unused.contains(name)),
    ] {
        for name in names(&dir)? {
            if name.to_str().is_some_and(keep) {
                continue;
            }
            let path = dir.join(name);
            tracing::warn!(path = %path.display(), "sweep: of no record");
            if let Err(error) = remove(&path) {
                let object = Object::new("path", path.display());
                let disk = core.disk.clone();
                let step = Step::new("sweep", move || {
                    let (disk, path) = (disk.clone(), path.clone());
                    async move { disk.run(move || remove(&path)).await? }
                });
                core.pending.take_step(object, step, error);
            }
        }
    }
    Ok(())
}

/// Removes whatever is there; of a link only the link.
fn remove(path: &Path) -> Result<(), Error> {
    let found = std::fs::symlink_metadata(path);
    match found.is_ok_and(|found| found.is_dir()) {
        true => files::remove_dir(path),
        false => remove_file(path),
    }
}

/// A shim that is ending removes its socket itself.
pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn is_sandbox(live: &HashSet<SandboxId>, name: &str) -> bool {
    SandboxId::new(name).is_ok_and(|id| live.contains(&id))
}

fn is_container(live: &HashSet<ContainerId>, name: &str) -> bool {
    ContainerId::new(name).is_ok_and(|id| live.contains(&id))
}

fn snapshots(core: &Arc<Core>, live: &HashSet<ContainerId>) -> Result<(), Error> {
    let live = live.iter().map(SnapshotKey::from).collect();
    let failed =
        |source| Error::Snapshot { action: "sweep", key: "active snapshots".to_owned(), source };
    match core.snapshots.sweep_active(&live).map_err(failed) {
        Ok(swept) => {
            for key in swept {
                tracing::warn!(snapshot.key = %key, "sweep: snapshot of no record");
            }
        }
        Err(error) => {
            // Once this start is over others are made: what goes later goes by its key.
            let error = Arc::new(error);
            let left = core.snapshots.active().map_err(failed)?;
            for key in left.into_iter().filter(|key| !live.contains(key)) {
                let object = Object::new("snapshot", &key);
                let core = Arc::clone(core);
                let pending = Arc::clone(&core.pending);
                let step =
                    Step::new("sweep", move || container::remove_snapshot(&core, key.clone()));
                pending.take_step(object, step, Error::Shared(Arc::clone(&error)));
            }
        }
    }
    Ok(())
}

/// Below our base every cgroup is a sandbox's, and below that a container's.
fn cgroups(
    core: &Arc<Core>,
    sandboxes: &HashSet<SandboxId>,
    containers: &HashSet<ContainerId>,
) -> Result<(), Error> {
    let base = cgroup_path(&core.config.cgroup_base)?;
    let shims = core.config.shim_cgroup.as_deref();
    for name in children(core, &base)? {
        let Ok(path) = base.child(&name) else { continue };
        if shims.is_some_and(|shims| Path::new(shims).starts_with(path.as_str())) {
            continue;
        }
        if !is_sandbox(sandboxes, &name) {
            sweep_cgroup(core, &path);
            continue;
        }
        for name in children(core, &path)? {
            let Ok(path) = path.child(&name) else { continue };
            if !is_container(containers, &name) {
                sweep_cgroup(core, &path);
            }
        }
    }
    Ok(())
}

fn sweep_cgroup(core: &Arc<Core>, path: &CgroupPath) {
    tracing::warn!(cgroup = %path, "sweep: cgroup of no record");
    if let Err(error) = clear_cgroup(core, path) {
        let object = Object::new("cgroup", path);
        let (shared, path) = (Arc::clone(core), path.clone());
        let step = Step::new("sweep", move || remove_cgroup(&shared, path.clone()));
        core.pending.take_step(object, step, error);
    }
}

/// Names of the cgroups directly below `path`, in any hierarchy.
fn children(core: &Core, path: &CgroupPath) -> Result<HashSet<String>, Error> {
    let Some(cgroup) = core.cgroup(path)? else { return Ok(HashSet::new()) };
    let mut children = HashSet::new();
    for directory in cgroup.paths() {
        for name in names(&directory)? {
            if directory.join(&name).is_dir() {
                children.extend(name.into_string());
            }
        }
    }
    Ok(children)
}

/// Names in a directory; none if it is not there.
fn names(dir: &Path) -> Result<Vec<OsString>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_ENTRIES) {
        names.push(entry.map_err(Error::io("list", dir))?.file_name());
    }
    Ok(names)
}
