//! A node of a test's own: a namespace, a registry, a daemon.

mod daemon;
mod leaks;
mod pods;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use berth_api::v1;
use tempfile::TempDir;

use crate::cri::{self, Cri};
use crate::disk::{Disk, SmallDisk, SmallDisks};
use crate::machine::Machine;
use crate::registry::Registry;
use crate::{image, log};

pub use daemon::{Daemon, Failpoint, binaries, failpoints, previous};
pub use leaks::{Known, remove_cgroups};
pub use pods::{Finished, Pod};

/// How long teardown that goes on in the background may take.
const SETTLE: Duration = Duration::from_secs(20);

/// What differs from a default node.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Lines added to the daemon's configuration, after its own tables.
    pub config: String,
    /// Lines added to its table `[container]`.
    pub container: String,
    /// Lines added to its table `[nri]`.
    pub nri: String,
    /// The daemon's `log.format`; empty means `human`.
    pub log_format: String,
    /// The daemon's `log.filter`; empty means that `quiet` says it.
    pub log_filter: String,
    /// Whether the daemon logs no more than a user's would by default.
    pub quiet: bool,
    /// Whether the daemon is told of no failpoints: it then does no more than one that ships.
    pub unarmed: bool,
    /// Variables of the daemon's environment, beside those of the test.
    pub environment: Vec<(String, String)>,
    /// The folder of daemon and shim; `None` means this tree's.
    pub binaries: Option<PathBuf>,
    /// Directories that lie on small file systems of their own.
    pub disks: SmallDisks,
    /// Whether a ctrl-c at the terminal spares the daemon: for those who then clean up.
    pub spared: bool,
}

impl NodeOptions {
    fn folder(&self) -> Result<PathBuf> {
        self.binaries.clone().map_or_else(binaries, Ok)
    }
}

/// The small file systems of a node.
#[derive(Debug, Default)]
pub struct Disks {
    /// Of the root directory.
    pub root: Option<Disk>,
    /// Of the state directory.
    pub state: Option<Disk>,
    /// Of the logs.
    pub logs: Option<Disk>,
}

impl Disks {
    fn mount(machine: &Machine, dir: &Path, sizes: SmallDisks) -> Result<Self> {
        let images = dir.join("disks");
        let disk = |name: &str, size: Option<SmallDisk>| {
            size.map(|size| Disk::mount(machine, &images, &dir.join(name), size)).transpose()
        };
        Ok(Self {
            root: disk("root", sizes.root)?,
            state: disk("run", sizes.state)?,
            logs: disk("logs", sizes.logs)?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Disk> {
        [&self.root, &self.state, &self.logs].into_iter().flatten()
    }
}

/// A disposable node.
#[derive(Debug)]
pub struct Node {
    /// The registry, inside [`Node::machine`].
    pub registry: Registry,
    /// The machine of registry and daemon.
    pub machine: Machine,
    /// The client.
    pub cri: Cri,
    daemon: Daemon,
    disks: Disks,
    dir: TempDir,
    cgroup_base: String,
    /// Whether the test got to its end; otherwise its daemon's log is of interest.
    proven_clean: bool,
}

impl Node {
    /// Starts a registry and a daemon.
    pub async fn start() -> Result<Self> {
        Self::start_with(NodeOptions::default()).await
    }

    /// Starts a registry and a daemon with `options`.
    pub async fn start_with(options: NodeOptions) -> Result<Self> {
        static NODES: AtomicU32 = AtomicU32::new(0);
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let cgroup_base = format!("/berth-test-{}-{number}", std::process::id());
        let dir =
            tempfile::Builder::new().prefix("berth-").tempdir().context("make a directory")?;
        let machine = Machine::new()?;
        let registry = Registry::start(&machine, dir.path())?;
        let disks = Disks::mount(&machine, dir.path(), options.disks)?;
        let daemon = Daemon::start(&machine, dir.path(), &cgroup_base, &options)?;
        let cri = Cri::connect(daemon.socket()).await?;
        Ok(Self { registry, machine, cri, daemon, disks, dir, cgroup_base, proven_clean: false })
    }

    /// The directory that holds everything the node made.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The small file systems that were asked for.
    #[must_use]
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// How something below [`Node::dir`] is reached from the test, small file systems
    /// included.
    #[must_use]
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.machine.outside(&self.dir().join(below))
    }

    /// The daemon's process and files.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// The cgroup below which all of the node's cgroups lie.
    #[must_use]
    pub fn cgroup_base(&self) -> &str {
        &self.cgroup_base
    }

    /// Pushes the busybox image and pulls it; returns its reference.
    pub async fn busybox(&mut self) -> Result<String> {
        let reference = self.push("busybox", "latest", &image::busybox()?)?;
        self.cri.pull(&reference).await?;
        Ok(reference)
    }

    /// Pushes `image`; returns its reference.
    pub fn push(&self, repository: &str, tag: &str, image: &image::Image) -> Result<String> {
        self.registry.push(&self.machine, repository, tag, image)
    }

    /// Where sandbox `name` has its logs.
    #[must_use]
    pub fn log_directory(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    /// The log of container `container` of sandbox `sandbox`.
    pub fn read_log(&self, sandbox: &str, container: &str) -> Result<Vec<log::Line>> {
        log::read(&self.path("logs").join(sandbox).join(format!("{container}.log")))
    }

    /// What kubelet would ask for a sandbox called `name`.
    #[must_use]
    pub fn sandbox_config(&self, name: &str) -> v1::PodSandboxConfig {
        cri::sandbox_config(name, &self.log_directory(name))
    }

    /// Creates and starts a container; returns its id.
    pub async fn run_container(
        &mut self,
        sandbox_id: &str,
        sandbox: &v1::PodSandboxConfig,
        config: &v1::ContainerConfig,
    ) -> Result<String> {
        let id = self.cri.create_container(sandbox_id, sandbox, config).await?;
        self.cri.start_container(&id).await?;
        Ok(id)
    }

    /// Waits until a container has exited.
    pub async fn wait_exit(&mut self, id: &str) -> Result<v1::ContainerStatus> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let status = self.cri.container_status(id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("container {id} is still {:?} after {SETTLE:?}", status.state());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the daemon as a supervisor does.
    pub fn terminate_daemon(&mut self) -> Result<()> {
        self.daemon.terminate()
    }

    /// Kills the daemon without warning.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.kill().map(drop)
    }

    /// Ends the daemon as a supervisor does, and starts it again.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon.terminate()?;
        self.reopen().await
    }

    /// Kills the daemon without warning, and starts it again.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.reopen().await
    }

    /// Waits until nothing is on the node beside `known`: teardown goes on after a verb has
    /// answered.
    pub fn settle(&self, known: &Known) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let left = self.leaks_beside(known)?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("left behind after {SETTLE:?}: {left:#?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the daemon again and waits until it serves.
    pub async fn start_daemon(&mut self) -> Result<()> {
        self.reopen().await
    }

    /// Starts the daemon again, and does not wait until it serves.
    pub fn launch_daemon(&mut self) -> Result<()> {
        self.daemon.launch(&self.machine)
    }

    /// Waits until the daemon has ended by itself; `None` when it runs on.
    pub fn daemon_ended(&mut self, limit: Duration) -> Result<Option<std::process::ExitStatus>> {
        self.daemon.ended(limit)
    }

    async fn reopen(&mut self) -> Result<()> {
        self.daemon.start_again(&self.machine)?;
        self.cri = Cri::connect(self.daemon.socket()).await?;
        Ok(())
    }

    /// From the next start of the daemon on, it and its shims are those in `folder`; `None`
    /// means this tree's. What runs keeps the shim it has.
    pub fn install(&mut self, folder: Option<&Path>) -> Result<()> {
        self.daemon.install(folder)
    }

    /// Lets everything run on after this process; returns the node's directory, where the
    /// file `kept` says which processes to end, and `cgroup` what they had.
    pub fn detach(self) -> Result<PathBuf> {
        let daemon = self.daemon.pid().context("the daemon does not run")?;
        let kept = format!("{daemon} berthd\n{} docker-registry\n", self.registry.pid());
        fs::write(self.dir.path().join("kept"), kept)?;
        fs::write(self.dir.path().join("cgroup"), &self.cgroup_base)?;
        let dir = self.dir.path().to_owned();
        // Dropping would end and remove everything.
        std::mem::forget(self);
        Ok(dir)
    }

    /// Removes what sandboxes there are, ends the daemon, and proves that nothing of the
    /// node is left: no process, mount, link, cgroup, socket, snapshot, lease or record.
    pub async fn assert_clean(mut self) -> Result<()> {
        for id in self.cri.sandboxes().await? {
            self.cri.remove_sandbox(&id).await?;
        }
        let containers = self.cri.containers().await?;
        anyhow::ensure!(containers.is_empty(), "containers are left: {containers:?}");
        self.settle(&Known::default())?;
        self.daemon.terminate()?;
        let left = self.leaks_at_rest()?;
        anyhow::ensure!(left.is_empty(), "left behind after the daemon ended: {left:#?}");
        for disk in self.disks.all() {
            disk.unmount(&self.machine)?;
        }
        self.proven_clean = true;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.proven_clean {
            eprintln!("the daemon's log ends:\n{}", self.daemon.log_tail());
        }
        self.daemon.kill().ok();
        self.scrub();
    }
}
