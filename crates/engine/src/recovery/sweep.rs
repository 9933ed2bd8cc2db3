//! Removes what no record names: directories, shims, snapshots, cgroups, links, leases.
//!
//! Everything swept is below a root that is ours alone. A failure is logged and the rest
//! goes on: a node with a leftover is better than no node.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use berth_model::{ContainerId, SandboxId};
use berth_snapshot::SnapshotKey;

use crate::core::{Core, cgroup_path, warn_failure};
use crate::sandbox::{clear_cgroup, end_shim};
use crate::{Error, files};

/// Most entries of one directory that are looked at.
const MAX_ENTRIES: usize = 100_000;

pub(super) async fn sweep(
    core: &Arc<Core>,
    sandboxes: HashSet<SandboxId>,
    containers: HashSet<ContainerId>,
    attached: HashSet<SandboxId>,
) {
    shims(core, &sandboxes).await;
    let network = links(core, attached).await;
    let shared = Arc::clone(core);
    let rest = move || {
        let dirs = directories(&shared, &sandboxes, &containers);
        let snapshots = snapshots(&shared, &containers);
        let cgroups = cgroups(&shared, &sandboxes, &containers);
        [dirs, snapshots, cgroups]
    };
    let rest = match core.disk.run(rest).await {
        Ok(rest) => rest.into_iter().collect(),
        Err(error) => vec![Err(error)],
    };
    for failure in rest.into_iter().chain([network]).filter_map(Result::err) {
        warn_failure("sweep", &failure);
    }
}

/// Shims of sandboxes that no record names.
async fn shims(core: &Arc<Core>, live: &HashSet<SandboxId>) {
    let names = core
        .disk
        .run({
            let dir = core.config.sandboxes();
            move || names(&dir)
        })
        .await;
    let Ok(Ok(names)) = names else { return };
    for id in names.into_iter().filter_map(|name| SandboxId::new(name).ok()) {
        if live.contains(&id) {
            continue;
        }
        tracing::warn!(sandbox.id = %id, "sweep: shim of no record");
        if let Err(error) = end_shim(core, id, None).await {
            warn_failure("sweep shim", &error);
        }
    }
}

async fn links(core: &Arc<Core>, live: HashSet<SandboxId>) -> Result<(), Error> {
    let network = Arc::clone(&core.network);
    let swept = core.links.run(move || network.sweep(&live)).await?;
    let swept = swept.map_err(|source| Error::NetworkBase { source })?;
    if swept != berth_network::Swept::default() {
        tracing::warn!(swept.links, swept.ports, swept.leases, "sweep: network of no record");
    }
    Ok(())
}

fn directories(
    core: &Core,
    sandboxes: &HashSet<SandboxId>,
    containers: &HashSet<ContainerId>,
) -> Result<(), Error> {
    let config = &core.config;
    let sockets: HashSet<String> = sandboxes
        .iter()
        .filter_map(|id| Some(config.socket(id).file_name()?.to_str()?.to_owned()))
        .collect();
    let in_sandboxes = |name: &str| is_sandbox(sandboxes, name);
    let in_containers = |name: &str| is_container(containers, name);
    for (dir, keep) in [
        (config.sandboxes(), &in_sandboxes as &dyn Fn(&str) -> bool),
        (config.containers(), &in_containers),
        (config.execs(), &|_: &str| false),
        (config.sockets(), &|name: &str| sockets.contains(name)),
    ] {
        for name in names(&dir)?.iter().filter(|name| !keep(name)) {
            let path = dir.join(name);
            tracing::warn!(path = %path.display(), "sweep: directory of no record");
            if path.is_dir() {
                files::remove_dir(&path)?;
            } else {
                std::fs::remove_file(&path).map_err(Error::io("remove", path))?;
            }
        }
    }
    Ok(())
}

fn is_sandbox(live: &HashSet<SandboxId>, name: &str) -> bool {
    SandboxId::new(name).is_ok_and(|id| live.contains(&id))
}

fn is_container(live: &HashSet<ContainerId>, name: &str) -> bool {
    ContainerId::new(name).is_ok_and(|id| live.contains(&id))
}

fn snapshots(core: &Core, live: &HashSet<ContainerId>) -> Result<(), Error> {
    let live = live.iter().map(SnapshotKey::from).collect();
    let swept = core.snapshots.sweep_active(&live).map_err(|source| Error::Snapshot {
        action: "sweep",
        key: "active snapshots".to_owned(),
        source,
    })?;
    for key in swept {
        tracing::warn!(snapshot.key = %key, "sweep: snapshot of no record");
    }
    Ok(())
}

/// Below our base every cgroup is a sandbox's, and below that a container's.
fn cgroups(
    core: &Core,
    sandboxes: &HashSet<SandboxId>,
    containers: &HashSet<ContainerId>,
) -> Result<(), Error> {
    let base = cgroup_path(&core.config.cgroup_base)?;
    let shims = core.config.shim_cgroup.as_deref();
    for name in children(core, &base)? {
        let Ok(path) = base.child(&name) else { continue };
        if shims.is_some_and(|shims| shims.trim_end_matches('/').starts_with(path.as_str())) {
            continue;
        }
        if !is_sandbox(sandboxes, &name) {
            tracing::warn!(cgroup = %path, "sweep: cgroup of no record");
            clear_cgroup(core, &path)?;
            continue;
        }
        for name in children(core, &path)? {
            let Ok(path) = path.child(&name) else { continue };
            if !is_container(containers, &name) {
                tracing::warn!(cgroup = %path, "sweep: cgroup of no record");
                clear_cgroup(core, &path)?;
            }
        }
    }
    Ok(())
}

/// Names of the cgroups directly below `path`, in any hierarchy.
fn children(core: &Core, path: &berth_cgroup::CgroupPath) -> Result<HashSet<String>, Error> {
    let Some(cgroup) = core.cgroup(path)? else { return Ok(HashSet::new()) };
    let mut children = HashSet::new();
    for directory in cgroup.paths() {
        for name in names(&directory)? {
            if directory.join(&name).is_dir() {
                children.insert(name);
            }
        }
    }
    Ok(children)
}

/// Names in a directory; none if it is not there.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry.map_err(Error::io("list", dir))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}
