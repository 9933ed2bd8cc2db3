//! What the engine must be told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use berth_model::SandboxId;
use berth_network::NetworkConfig;

/// One runtime handler: a shim v2 program and how it is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuntimeConfig {
    /// The shim program, absolute.
    pub shim: PathBuf,
    /// Whether it is the in-tree shim, which takes namespaces by descriptor, writes
    /// CRI logs itself and shares `/dev/shm`.
    pub in_tree: bool,
}

/// What the engine must be told; the daemon fills it from its file.
#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a reboot: stores, images, snapshots (`/var/lib/berth`).
    pub root: PathBuf,
    /// What does not: bundles, sockets, sandbox files (`/run/berth`). At most 80 bytes long,
    /// so that a socket fits below it (unix(7)).
    pub state: PathBuf,
    /// Runtime handlers by name.
    pub runtimes: BTreeMap<String, RuntimeConfig>,
    /// The handler of sandboxes that name none.
    pub default_runtime: String,
    /// The sandbox network.
    pub network: NetworkConfig,
    /// Parent of the cgroups of sandboxes that name none (cgroupfs syntax, `/berth`).
    pub cgroup_base: String,
    /// Where shims live (cgroupfs syntax), outside every pod's cgroup; `None` leaves them
    /// where the daemon is.
    pub shim_cgroup: Option<String>,
    /// Size of a sandbox's `/dev/shm`, bytes.
    pub shm_bytes: u64,
    /// Most processes in a container that sets no limit itself; `None` is no limit.
    pub pids_limit: Option<i64>,
    /// Address of our own events service, handed to shims; empty means none.
    pub events_address: String,
    /// Directories of CDI specifications; later ones count more.
    pub cdi_dirs: Vec<PathBuf>,
    /// Directory of seccomp profiles named `localhost/…`.
    pub seccomp_profiles: PathBuf,
    /// How long a reading of a cgroup stays good.
    pub stats_age: Duration,
    /// Plugins of the Node Resource Interface; `None` means none.
    pub nri: Option<berth_nri::Config>,
}

impl Config {
    /// Directory of all that concerns one sandbox until the next reboot.
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// Directory of the bundle of each container.
    pub(crate) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    /// Directory of the FIFOs of commands being run.
    pub(crate) fn execs(&self) -> PathBuf {
        self.state.join("exec")
    }

    /// Directory of the shims' sockets; short, since a socket's path has 107 bytes.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.state.join("s")
    }

    /// Where the shim of a sandbox listens: 80 bits of its id are enough.
    pub(crate) fn socket(&self, id: &SandboxId) -> PathBuf {
        self.sockets().join(id.as_str().chars().take(20).collect::<String>())
    }

    /// The handler called `name`; the empty name is the default.
    pub(crate) fn runtime<'a>(&'a self, name: &'a str) -> Option<(&'a str, &'a RuntimeConfig)> {
        let name = if name.is_empty() { &self.default_runtime } else { name };
        self.runtimes.get_key_value(name).map(|(name, runtime)| (name.as_str(), runtime))
    }
}
