//! Opening: stores, network, hierarchy; everything an engine needs before it recovers.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use berth_cgroup::Hierarchy;
use berth_image::Images;
use berth_metadata::{Copies, PodStore, Pods};
use berth_network::Network;
use berth_nri::Nri;
use berth_stats::{Budget, Readings, Sampler};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::{Board, Published};
use crate::core::{Core, cgroup_path};
use crate::events::Feed;
use crate::leases::StoredLeases;
use crate::names::Names;
use crate::pending::Pending;
use crate::spawner::Spawner;
use crate::stats;
use crate::worker::{Pool, Worker};
use crate::{Config, Error, clock, files};

/// Jobs that wait for the thread of `pods.db`.
const STORE_QUEUE: usize = 256;
/// Blocking threads for files, cgroups and snapshots.
const DISK_THREADS: usize = 4;
/// Blocking threads for paths that requests name. Many: each path below a mount that hangs
/// takes one for as long.
const PATH_THREADS: usize = 64;
/// Blocking threads for limits that a kernel may have to make room for.
const RECLAIM_THREADS: usize = 4;
/// Blocking threads for the network; the kernel does one change at a time anyway.
const LINK_THREADS: usize = 2;
/// Longest state directory, bytes: a socket's path has 107 (unix(7)).
const MAX_STATE: usize = 80;

/// How many descriptors statistics may keep open: a quarter of what the daemon may have, the
/// rest is for requests, shims and images.
fn budget() -> Budget {
    const SHARE: u64 = 4;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    Budget::new(usize::try_from(limit.unwrap_or(u64::MAX) / SHARE).unwrap_or(usize::MAX))
}

/// Makes what all drivers share, and reads what is stored. Blocks.
pub(crate) fn open(config: Config, images: Images) -> Result<(Core, Pods), Error> {
    check(&config)?;
    files::make_dir(&config.root, 0o700)?;
    files::make_dir(&config.state, 0o711)?;
    for dir in [config.sandboxes(), config.containers(), config.execs(), config.sockets()] {
        files::make_dir(&dir, 0o700)?;
        own(&dir)?;
    }
    let copies = Copies { sandboxes: config.sandboxes(), containers: config.containers() };
    let recovered = PodStore::recover(&config.root.join("pods.db"), &copies);
    let (pods, stored) = recovered.map_err(|source| Error::Metadata {
        action: "open store of sandboxes",
        source: Box::new(source),
    })?;
    let pods = Arc::new(pods);
    let hierarchy = hierarchy()?;
    let network = network(&config, &pods)?;
    let network_fault = crate::network::open(&network);
    let (tasks, shutdown, budget) = (TaskTracker::new(), CancellationToken::new(), budget());
    let core = Core {
        snapshots: images.snapshots().clone(),
        parents: crate::stats::Parents::default(),
        sampler: Arc::new(Sampler::new(config.stats_age, budget.clone())),
        budget,
        store: Worker::start("berth-store", STORE_QUEUE)?,
        network: Arc::new(network),
        network_fault: Published::new(network_fault),
        network_care: crate::network::Care::new(),
        defaults: Published::new(Arc::new(defaults(&config, &hierarchy)?)),
        spawner: Spawner::default(),
        users: crate::users::Users::default(),
        disk: Pool::new("the disk pool", DISK_THREADS),
        paths: Pool::new("the pool of paths", PATH_THREADS),
        reclaim: Pool::new("the pool of limits", RECLAIM_THREADS),
        links: Pool::new("the network pool", LINK_THREADS),
        readers: Pool::new("the statistics pool", stats::THREADS),
        cleaner: Pool::new("the cleaning pool", 1),
        sandboxes: Board::new(),
        containers: Board::new(),
        names: Names::new(),
        feed: Arc::new(Feed::open(&config.state.join("events"))),
        modules: crate::lsm::Modules::find(vec![config.root.clone(), config.state.clone()]),
        cdi: berth_cdi::Catalogue::new(config.cdi_dirs.clone()),
        layers: stats::Layers::new(),
        interfaces: Readings::dear(config.stats_age),
        filesystem: std::sync::OnceLock::new(),
        pending: Arc::new(Pending::new(tasks.clone(), shutdown.clone())),
        tasks,
        shutdown,
        boot_id: clock::boot_id()?,
        shm_bytes: Published::new(config.shm_bytes),
        nri: config.nri.clone().map(Nri::new),
        config,
        pods,
        images,
        hierarchy,
    };
    Ok((core, stored))
}

fn hierarchy() -> Result<Hierarchy, Error> {
    let (action, path) = ("find cgroups of", "this host".to_owned());
    Hierarchy::detect().map_err(|source| Error::Cgroup { action, path, source })
}

fn network(config: &Config, pods: &Arc<PodStore>) -> Result<Network, Error> {
    let leases = Arc::new(StoredLeases(Arc::clone(pods)));
    let network = Network::new(config.network.clone(), leases);
    network.map_err(|source| Error::NetworkBase { source })
}

/// What no record names is removed from our directories, so they must be ours: a link
/// would lead to what is somebody else's.
fn own(dir: &std::path::Path) -> Result<(), Error> {
    let found = std::fs::symlink_metadata(dir).map_err(Error::io("inspect", dir))?;
    let problem = match (found.is_dir(), found.uid() == nix::unistd::geteuid().as_raw()) {
        (true, true) => return Ok(()),
        (true, false) => "belongs to another user",
        (false, _) => "is a link",
    };
    Err(Error::invalid("state directory", format!("{} {problem}: move it away", dir.display())))
}

fn check(config: &Config) -> Result<(), Error> {
    cgroup_path(&config.cgroup_base)?;
    if config.runtime("").is_none() {
        return Err(Error::UnknownRuntime(config.default_runtime.clone()));
    }
    for (field, dir) in [("root directory", &config.root), ("state directory", &config.state)] {
        if !dir.is_absolute() {
            return Err(Error::invalid(field, format!("{} is not absolute", dir.display())));
        }
    }
    if config.state.as_os_str().len() > MAX_STATE {
        let problem = format!("{} is longer than {MAX_STATE} bytes", config.state.display());
        return Err(Error::invalid("state directory", problem));
    }
    Ok(())
}

fn defaults(config: &Config, hierarchy: &Hierarchy) -> Result<berth_spec::Defaults, Error> {
    Ok(berth_spec::Defaults {
        capabilities: berth_spec::capabilities::from_mask(bounding_set()?),
        pids_limit: config.pids_limit,
        swap_accounting: hierarchy.has_swap_limit(),
        ..berth_spec::Defaults::default()
    })
}

/// The capabilities that this process can hand on (proc_pid_status(5), `CapBnd`).
fn bounding_set() -> Result<u64, Error> {
    let path = "/proc/self/status";
    let status = files::read_bounded(path.as_ref(), 64 << 10)?;
    let status = String::from_utf8_lossy(&status);
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.ok_or_else(|| Error::io("read CapBnd of", path)(std::io::ErrorKind::InvalidData.into()))
}
