//! Debian's containerd, with runc or with crun, and Debian's CNI plugins.
//!
//! Configured as the packages have it, but for what a private machine needs: root, state,
//! socket, networks, and `restrict_oom_score_adj`, without which runc cannot start a
//! sandbox where `CAP_SYS_RESOURCE` is missing.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_testkit::{Cri, Machine};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::{processes, session};

use super::find::{Oci, cni_plugins, find};

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Where a machine with cgroup v1 may have an empty v2 hierarchy beside it.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// What CNI keeps on a node whatever it is told.
const CNI_STATE: &str = "/var/lib/cni";
/// Finds runc's and crun's friends, and the `iptables` of the CNI plugins.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How it is set up: by the defaults of the packages.
const SET_UP: [&str; 5] = [
    "network: Debian's CNI plugins, an executable each: bridge with masquerade, host-local, \
     portmap, loopback",
    "a pause process in each pod, a static program of 129 bytes, lighter than any in use; one \
     shim for each pod, and the OCI runtime started anew for each of its steps",
    "seccomp: its own RuntimeDefault profile",
    "log level info, to a file",
    "each change of its database, also of pods, is synced to the disk",
];

/// A containerd that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Containerd {
    process: Option<Child>,
    oci: Oci,
    socket: PathBuf,
    log: PathBuf,
    /// Before the directory: mounts that lie in it go with the machine.
    machine: Machine,
    dir: TempDir,
}

/// A machine for containerd. What it keeps in `/run` whatever it is told (sockets of shims,
/// state of runc) stays in there, as does what CNI keeps.
pub(super) fn machine(oci: Oci) -> Result<Machine> {
    let machine = Machine::new()?;
    machine.run(move || {
        let mut hidden = vec!["/run"];
        if Path::new(CNI_STATE).is_dir() {
            hidden.push(CNI_STATE);
        }
        if hides_unified(oci) {
            hidden.push(UNIFIED);
        }
        for target in hidden {
            mount(Some("none"), target, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
                .with_context(|| format!("hide {target} from containerd"))?;
        }
        Ok(())
    })?;
    Ok(machine)
}

/// crun refuses to run where v1 and v2 controllers are mounted side by side.
fn hides_unified(oci: Oci) -> bool {
    oci == Oci::Crun && Path::new(UNIFIED).is_dir()
}

impl Containerd {
    /// Starts containerd in `machine`, with the image `pause` for its sandboxes.
    pub(super) async fn start(machine: Machine, oci: Oci, pause: &str) -> Result<Self> {
        let dir = session::directory()?;
        let socket = dir.path().join("containerd.sock");
        let log = dir.path().join("containerd.log");
        configure(dir.path(), oci, pause)?;
        let mut this = Self { process: None, oci, socket, log, machine, dir };
        this.launch()?;
        let mut cri = Cri::connect(&this.socket).await?;
        // It listens before its CRI is ready, which refuses every question until then.
        let deadline = Instant::now() + START_DEADLINE;
        while cri.sandboxes().await.is_err() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // It would pull it for the first sandbox, which is not to be measured.
        cri.pull(pause).await.with_context(|| format!("pull {pause}: {}", this.log_tail()))?;
        Ok(this)
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = SET_UP.map(str::to_owned).to_vec();
        notes.push(
            "restrict_oom_score_adj = true: without CAP_SYS_RESOURCE runc can start no sandbox \
             otherwise"
                .to_owned(),
        );
        if hides_unified(self.oci) {
            notes.push(format!(
                "{UNIFIED} is hidden from crun by an empty file system: it refuses machines \
                 with cgroup v1 and v2 side by side"
            ));
        }
        notes
    }

    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn launch(&mut self) -> Result<()> {
        let program = find("containerd").context("containerd is not installed")?;
        let log = File::create(&self.log)?;
        let config = self.dir.path().join("config.toml");
        self.process = Some(self.machine.run(move || {
            let mut command = Command::new(program);
            command.arg("--config").arg(config).env("PATH", PATH).stdin(Stdio::null());
            command.stdout(log.try_clone()?).stderr(log);
            // A ctrl-c is for us: we still remove pods through it.
            command.process_group(0);
            command.spawn().context("start containerd")
        })?);
        let deadline = Instant::now() + START_DEADLINE;
        while UnixStream::connect(&self.socket).is_err() {
            let process = self.process.as_mut().context("containerd was just started")?;
            if let Some(status) = process.try_wait()? {
                self.process = None;
                bail!("containerd ended at once: {status}\n{}", self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("containerd did not listen within {START_DEADLINE:?}\n{}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends containerd, and fails if something is left.
    pub(super) fn end(mut self) -> Result<()> {
        self.terminate()?;
        let left = self.processes();
        ensure!(left.is_empty(), "processes of containerd are left: {left:?}");
        Ok(())
    }

    fn terminate(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(process.id())?), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while process.try_wait()?.is_none() {
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("containerd still ran {STOP_DEADLINE:?} after SIGTERM");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its shims, and what they have started that is not in a pod's cgroup: they name the
    /// socket.
    fn processes(&self) -> Vec<Pid> {
        processes::naming(&self.socket)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("{error:#}");
        }
        for pid in self.processes() {
            // Gone by itself meanwhile: as good.
            kill(pid, Signal::SIGKILL).ok();
        }
    }
}

fn configure(dir: &Path, oci: Oci, pause: &str) -> Result<()> {
    let networks = dir.join("cni");
    fs::create_dir(&networks)?;
    let network = serde_json::to_vec_pretty(&network(&dir.join("addresses")))?;
    fs::write(networks.join("10-bench.conflist"), network)?;
    let plugins = cni_plugins()
        .context("no CNI plugins are installed (Debian package containernetworking-plugins)")?;
    let runtime = find(oci.program());
    let runtime = runtime.with_context(|| format!("{} is not installed", oci.program()))?;
    let text = configuration(dir, oci, pause, plugins, &runtime);
    fs::write(dir.join("config.toml"), text).context("configure containerd")
}

fn configuration(dir: &Path, oci: Oci, pause: &str, plugins: &Path, runtime: &Path) -> String {
    const CRI: &str = "[plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "version = 2\nroot = '{dir}/root'\nstate = '{dir}/state'\n\n\
         [grpc]\naddress = '{dir}/containerd.sock'\n\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = '{dir}/opt'\n\n\
         {CRI}]\nsandbox_image = '{pause}'\nrestrict_oom_score_adj = true\n\
         netns_mounts_under_state_dir = true\n\n\
         {CRI}.cni]\nbin_dir = '{plugins}'\nconf_dir = '{dir}/cni'\n\n\
         {CRI}.containerd]\ndefault_runtime_name = '{oci}'\nsnapshotter = 'overlayfs'\n\n\
         {CRI}.containerd.runtimes.{oci}]\nruntime_type = 'io.containerd.runc.v2'\n\n\
         {CRI}.containerd.runtimes.{oci}.options]\nBinaryName = '{runtime}'\n",
        dir = dir.display(),
        plugins = plugins.display(),
        runtime = runtime.display(),
        oci = oci.program(),
    )
}

/// What a node's network is with the plain plugins: a bridge with masquerade, and host ports.
fn network(addresses: &Path) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "bench",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": addresses,
                    "ranges": [[{"subnet": "10.88.0.0/16"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}
