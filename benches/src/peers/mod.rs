//! Runtimes that this program starts itself, to be measured side by side.
//!
//! Each has a [`Machine`] of its own: a network with nothing in it, and mounts that nobody
//! else sees. Roots, states and sockets lie in a private directory, cgroups below a private
//! one. [`Peer::end`] takes everything away again; a dropped peer does so as far as it goes.
//!
//! | module | is |
//! |---|---|
//! | `find` | which runtimes and programs this machine has, and their versions |
//! | `containerd` | Debian's containerd, with runc or with crun, and CNI plugins |
//! | `pause` | the image of containerd's sandboxes |
//! | `serve` | `berth-bench peers` |

mod containerd;
mod find;
mod pause;
mod serve;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use berth_testkit::image::Image;
use berth_testkit::registry::Registry;
use berth_testkit::{Cri, Machine, Node, NodeOptions, remove_cgroups};

use tempfile::TempDir;

use crate::peers::containerd::Containerd;
use crate::session;

pub(crate) use find::{Oci, find, version};
pub(crate) use serve::{Options, serve};

/// The repository of containerd's pause image, and the tag of all images.
const PAUSE: &str = "pause";
const TAG: &str = "1";

/// How Berth is set up: by its defaults, in directories of its own.
const BERTH: [&str; 5] = [
    "network: a bridge, masquerade and host ports, made by the daemon itself over netlink and \
     nftables; no CNI plugin is started",
    "no process holds a pod's namespaces; one shim for each pod",
    "seccomp: its own RuntimeDefault profile",
    "log level info, to a file",
    "records of pods survive the daemon's death, not a power cut; a pulled image survives both",
];

/// What may be started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// `berthd` and its shim, from the folder `BERTH_BIN_DIR`.
    Berth,
    /// containerd with an OCI runtime.
    Containerd(Oci),
}

impl Kind {
    /// All of them; the first is what the others are compared with.
    pub(crate) const ALL: [Self; 3] =
        [Self::Berth, Self::Containerd(Oci::Runc), Self::Containerd(Oci::Crun)];

    /// Those that `names` say; all, if it says none.
    pub(crate) fn chosen(names: &[String]) -> Result<Vec<Self>> {
        let of = |name: &String| match name.as_str() {
            "berth" => Ok(Self::Berth),
            "runc" => Ok(Self::Containerd(Oci::Runc)),
            "crun" => Ok(Self::Containerd(Oci::Crun)),
            other => bail!("{other:?} is none of berth, runc, crun"),
        };
        if names.is_empty() { Ok(Self::ALL.to_vec()) } else { names.iter().map(of).collect() }
    }

    /// As tables have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth",
            Self::Containerd(Oci::Runc) => "containerd + runc",
            Self::Containerd(Oci::Crun) => "containerd + crun",
        }
    }
}

/// A runtime that was started here.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    /// Serves the store inside the peer's machine.
    registry: Registry,
    runtime: Runtime,
    cgroup: Cgroup,
}

/// The images that peers pull: the same ones under the same names.
#[derive(Debug)]
pub(crate) struct Store {
    registry: Registry,
    machine: Machine,
    /// After the registry, whose files lie in it.
    dir: TempDir,
}

impl Store {
    /// A store with the image that containerd's sandboxes are made of.
    pub(crate) fn new() -> Result<Self> {
        let dir = session::directory()?;
        let machine = Machine::new()?;
        let registry = Registry::start(&machine, dir.path())?;
        let store = Self { registry, machine, dir };
        store.push(PAUSE, &pause::image()?)?;
        Ok(store)
    }

    /// Pushes `image`; returns its reference.
    pub(crate) fn push(&self, name: &str, image: &Image) -> Result<String> {
        self.registry.push(&self.machine, name, TAG, image)
    }
}

/// A cgroup for pods, which goes with what is left in it.
#[derive(Debug)]
struct Cgroup(String);

impl Cgroup {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self(format!("/berth-bench-{}-{number}", std::process::id()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove_cgroups(&self.0).unwrap_or_else(|error| eprintln!("{error:#}"));
    }
}

#[derive(Debug)]
enum Runtime {
    Berth(Box<Node>),
    Containerd(Box<Containerd>),
}

impl Peer {
    /// Starts `kind`, whose images come from `store`.
    pub(crate) async fn start(kind: Kind, store: &Store) -> Result<Self> {
        let (registry, runtime) = match kind {
            Kind::Berth => {
                // As users run it: a log that says little.
                let options = NodeOptions { quiet: true, spared: true, ..NodeOptions::default() };
                let node = Node::start_with(options).await?;
                session::note_elsewhere(store.dir.path(), node.dir())?;
                let registry = store.registry.within(&node.machine)?;
                (registry, Runtime::Berth(Box::new(node)))
            }
            Kind::Containerd(oci) => {
                let machine = containerd::machine(oci)?;
                let registry = store.registry.within(&machine)?;
                let pause = registry.reference(PAUSE, TAG);
                let runtime = Containerd::start(machine, oci, &pause).await?;
                (registry, Runtime::Containerd(Box::new(runtime)))
            }
        };
        Ok(Self { kind, registry, runtime, cgroup: Cgroup::new() })
    }

    /// Where it answers the CRI.
    pub(crate) fn socket(&self) -> &Path {
        match &self.runtime {
            Runtime::Berth(node) => node.daemon().socket(),
            Runtime::Containerd(runtime) => runtime.socket(),
        }
    }

    /// The cgroup for its pods.
    pub(crate) fn cgroup_parent(&self) -> &str {
        &self.cgroup.0
    }

    /// What must be known to read its numbers.
    pub(crate) fn notes(&self) -> Vec<String> {
        match &self.runtime {
            Runtime::Berth(_) => BERTH.map(str::to_owned).to_vec(),
            Runtime::Containerd(runtime) => runtime.notes(),
        }
    }

    /// The end of its log, for messages.
    pub(crate) fn log_tail(&self) -> String {
        match &self.runtime {
            Runtime::Berth(node) => node.daemon().log_tail(),
            Runtime::Containerd(runtime) => runtime.log_tail(),
        }
    }

    /// Removes its pods, ends it, and fails if something is left.
    pub(crate) async fn end(self) -> Result<()> {
        let mut cri = Cri::connect(self.socket()).await?;
        for id in cri.sandboxes().await? {
            cri.remove_sandbox(&id).await.with_context(|| format!("remove sandbox {id}"))?;
        }
        drop((self.registry, self.cgroup));
        match self.runtime {
            Runtime::Berth(node) => node.assert_clean().await,
            Runtime::Containerd(runtime) => runtime.end(),
        }
    }
}
