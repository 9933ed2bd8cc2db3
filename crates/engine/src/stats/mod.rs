//! Usage, read at most as often as it is worth.
//!
//! Everything is read from the kernel and from disk by a few threads of the statistics' own,
//! never asked of a shim: a shim that hangs delays no list.

mod filesystem;
mod layers;
mod metrics;
mod network;
mod parents;
mod total;

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_cgroup::CgroupPath;
use berth_model::ContainerState;
use berth_stats::{Details, Sample};

pub(crate) use self::filesystem::Filesystem;
pub(crate) use self::layers::Layers;
pub(crate) use self::metrics::metrics;
pub(crate) use self::network::Counters;
pub(crate) use self::parents::Parents;
use crate::board::{Board, Part};
use crate::container::Container;
use crate::core::{Core, cgroup_error, warn_failure};
use crate::sandbox::Sandbox;
use crate::{ContainerStats, ContainerStatus, Error, SandboxStats, SandboxStatus};

/// Most threads that read at the same time, for all requests together.
pub(crate) const THREADS: usize = 4;
/// Fewest objects that are worth a further thread.
const SHARE: usize = 32;

/// Usage of one container.
pub(crate) async fn container(
    core: &Arc<Core>,
    container: Arc<Container>,
) -> Result<ContainerStats, Error> {
    read_one(core, move |core| container_now(core, &container)).await
}

/// What `tell` makes of the usage of every container that is `wanted`.
pub(crate) async fn containers<T: Send + 'static>(
    core: &Arc<Core>,
    wanted: impl Fn(&ContainerStatus) -> bool + Send + Sync + 'static,
    tell: impl Fn(ContainerStats) -> T + Send + Sync + 'static,
) -> Result<Vec<T>, Error> {
    let read = move |core: &Core, container: &Arc<Container>| {
        wanted(&container.status.get()).then(|| tell(container_now(core, container)))
    };
    read_each(core, |core| &core.containers, read).await
}

/// Usage of one sandbox.
pub(crate) async fn sandbox(
    core: &Arc<Core>,
    sandbox: Arc<Sandbox>,
) -> Result<SandboxStats, Error> {
    read_one(core, move |core| sandbox_now(core, &sandbox)).await
}

/// What `tell` makes of the usage of every sandbox that is `wanted`.
pub(crate) async fn sandboxes<T: Send + 'static>(
    core: &Arc<Core>,
    wanted: impl Fn(&SandboxStatus) -> bool + Send + Sync + 'static,
    tell: impl Fn(SandboxStats) -> T + Send + Sync + 'static,
) -> Result<Vec<T>, Error> {
    let read = move |core: &Core, sandbox: &Arc<Sandbox>| {
        wanted(&sandbox.status.get()).then(|| tell(sandbox_now(core, sandbox)))
    };
    read_each(core, |core| &core.sandboxes, read).await
}

async fn read_one<S: Send + 'static>(
    core: &Arc<Core>,
    read: impl FnOnce(&Core) -> S + Send + 'static,
) -> Result<S, Error> {
    let shared = Arc::clone(core);
    let answer = core.readers.run(move || read(&shared)).await?;
    layers::walk_stale(core);
    Ok(answer)
}

/// Reads each of many objects. The threads share all of the work: also to find out whether an
/// object is wanted takes its time, when it has not been looked at for seconds.
async fn read_each<K, V, S>(
    core: &Arc<Core>,
    board: fn(&Core) -> &Board<K, V>,
    read: impl Fn(&Core, &Arc<V>) -> Option<S> + Send + Sync + 'static,
) -> Result<Vec<S>, Error>
where
    K: Eq + Hash + 'static,
    V: 'static,
    S: Send + 'static,
{
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let of = threads.min(board(core).len().div_ceil(SHARE)).max(1);
    let read = Arc::new(read);
    let jobs = (0..of).map(|number| {
        let (core, read) = (Arc::clone(core), Arc::clone(&read));
        let pool = core.readers.clone();
        let job = move || -> Vec<S> {
            let objects = board(&core).part(Part { number, of });
            objects.iter().filter_map(|object| read(&core, object)).collect()
        };
        async move { pool.run(job).await }
    });
    let answers = futures_util::future::try_join_all(jobs).await?;
    layers::walk_stale(core);
    Ok(answers.into_iter().flatten().collect())
}

fn container_now(core: &Core, container: &Arc<Container>) -> ContainerStats {
    let status = container.status.get();
    let running = matches!(status.state, ContainerState::Running { .. });
    if !running {
        core.sampler.let_go(&container.cgroup);
    }
    ContainerStats {
        cgroup: running.then(|| sample(core, &container.cgroup, &container.removed)).flatten(),
        writable_layer: layers::now(core, container),
        status,
    }
}

fn sandbox_now(core: &Core, sandbox: &Arc<Sandbox>) -> SandboxStats {
    let containers: Vec<ContainerStats> =
        members(core, sandbox).map(|container| container_now(core, &container)).collect();
    // Asked before whether it is ready, which ends first when it is stopped meanwhile.
    let own = core.parents.is_own(&sandbox.cgroup, &sandbox.id);
    let cgroup = match (sandbox.is_ready(), own) {
        (false, _) => None,
        (true, true) => sample(core, &sandbox.cgroup, &sandbox.removed),
        (true, false) => total::of(containers.iter().filter_map(|container| container.cgroup)),
    };
    SandboxStats {
        cgroup,
        network: network::now(core, sandbox),
        containers,
        status: sandbox.status.get(),
    }
}

fn members(core: &Core, sandbox: &Sandbox) -> impl Iterator<Item = Arc<Container>> {
    sandbox.members.made().into_iter().filter_map(|id| core.containers.get(&id))
}

fn sample(core: &Core, path: &CgroupPath, removed: &AtomicBool) -> Option<Sample> {
    let read = core.sampler.sample(&core.hierarchy.at(path));
    forget_removed(core, path, removed);
    unless_gone(path, read)
}

fn details(
    core: &Core,
    path: &CgroupPath,
    init: Option<u32>,
    removed: &AtomicBool,
) -> Option<Arc<Details>> {
    let read = core.sampler.details(&core.hierarchy.at(path), init);
    forget_removed(core, path, removed);
    unless_gone(path, read)
}

/// Nobody else would forget what was removed during the reading: a pod's cgroup is kubelet's,
/// and is there for longer.
fn forget_removed(core: &Core, path: &CgroupPath, removed: &AtomicBool) {
    if removed.load(Ordering::Acquire) {
        core.sampler.forget(path);
    }
}

/// What was read, unless the cgroup ended a moment ago.
fn unless_gone<T>(path: &CgroupPath, read: Result<T, berth_cgroup::Error>) -> Option<T> {
    match read {
        Ok(read) => Some(read),
        Err(berth_cgroup::Error::NotFound(_)) => None,
        Err(error) => {
            warn_failure("read usage", &cgroup_error("read", path)(error));
            None
        }
    }
}
