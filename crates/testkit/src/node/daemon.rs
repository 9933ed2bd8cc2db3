//! The daemon of a node: its binary, its configuration, its process.

use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::NodeOptions;
use crate::machine::Machine;

const START_DEADLINE: Duration = Duration::from_secs(30);
/// The file beside the configuration through which failpoints are armed.
const FAILPOINTS: &str = "failpoints";
/// How long work may take until it comes to a point.
const PASS_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// The folder with `berthd` and the static shim.
///
/// `BERTH_BIN_DIR` names it; `cargo xtask` builds and sets it.
pub fn binaries() -> Result<PathBuf> {
    std::env::var_os("BERTH_BIN_DIR")
        .map(PathBuf::from)
        .context("BERTH_BIN_DIR is not set: run this through cargo xtask")
}

/// A failpoint of the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failpoint {
    /// Verb and step.
    pub name: String,
    /// Whether the verb may fail there.
    pub fails: bool,
}

/// Every failpoint of the daemon, in the order of the verbs and their steps.
pub fn failpoints() -> Result<Vec<Failpoint>> {
    let listed = Command::new(binaries()?.join("berthd")).arg("failpoints").output()?;
    anyhow::ensure!(listed.status.success(), "berthd has no failpoints: {listed:?}");
    let text = String::from_utf8(listed.stdout)?;
    let point = |line: &str| {
        let mut words = line.split_whitespace();
        Some(Failpoint { name: words.next()?.to_owned(), fails: words.next()? == "fails" })
    };
    text.lines().map(|line| point(line).context("a failpoint without its name")).collect()
}

/// The folder with `berthd` and the shim of the release before this tree, which
/// `cargo xtask test` builds; without it `test` is reported as skipped.
#[must_use]
pub fn previous(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("BERTH_PREVIOUS_DIR").map(PathBuf::from);
    if folder.is_none() {
        let reason = std::env::var("BERTH_PREVIOUS_MISSING")
            .unwrap_or_else(|_| "BERTH_PREVIOUS_DIR is not set: cargo xtask test sets it".into());
        crate::skip(test, &reason);
    }
    folder
}

/// A `berthd` of a node's own.
#[derive(Debug)]
pub struct Daemon {
    process: Option<Child>,
    options: NodeOptions,
    cgroup_base: String,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    pub(super) fn start(
        machine: &Machine,
        dir: &Path,
        cgroup_base: &str,
        options: &NodeOptions,
    ) -> Result<Self> {
        let (config, mut socket) = (dir.join("berthd.toml"), dir.join("run/berth.sock"));
        if options.disks.state.is_some() {
            socket = machine.outside(&socket);
        }
        let (options, cgroup_base) = (options.clone(), cgroup_base.to_owned());
        let log = dir.join("berthd.log");
        let mut daemon = Self { process: None, options, cgroup_base, config, socket, log };
        daemon.configure()?;
        daemon.start_again(machine)?;
        Ok(daemon)
    }

    /// From the next start on, the daemon and its shims are those in `folder`; `None` is
    /// this tree's. What runs goes on with the shim it has.
    pub(super) fn install(&mut self, folder: Option<&Path>) -> Result<()> {
        self.options.binaries = folder.map(Path::to_owned);
        self.configure()
    }

    fn configure(&self) -> Result<()> {
        let dir = self.config.parent().context("the configuration lies in the node's directory")?;
        fs::write(&self.config, configuration(dir, &self.cgroup_base, &self.options)?)?;
        Ok(())
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The process id; `None` when it does not run.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The file that its log goes to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts the process, unless it runs, and waits until it accepts connections.
    pub fn start_again(&mut self, machine: &Machine) -> Result<()> {
        if self.process.is_none() {
            self.launch(machine)?;
        }
        let deadline = Instant::now() + START_DEADLINE;
        while UnixStream::connect(&self.socket).is_err() {
            let process = self.process.as_mut().context("the daemon was just started")?;
            if let Some(status) = process.try_wait()? {
                self.process = None;
                bail!("berthd ended at once: {status}\n{}", self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("berthd did not listen within {START_DEADLINE:?}\n{}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Starts the process.
    pub(super) fn launch(&mut self, machine: &Machine) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let program = self.options.folder()?.join("berthd");
        let config = self.config.clone();
        let options = self.options.clone();
        self.process = Some(machine.run(move || spawn(&program, &config, log, &options))?);
        Ok(())
    }

    /// Waits until the process has ended by itself; `None` when it runs on after `limit`.
    pub(super) fn ended(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            let process = self.process.as_mut().context("the daemon does not run")?;
            if let Some(status) = process.try_wait()? {
                self.process = None;
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks the daemon to end, and expects it to do so well.
    pub fn terminate(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        signal(&process, Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            match process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("berthd ended with {status}\n{}", self.log_tail()),
                None if Instant::now() > deadline => {
                    self.process = Some(process);
                    bail!("berthd still runs {STOP_DEADLINE:?} after SIGTERM");
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Kills the daemon without warning.
    pub fn kill(&mut self) -> Result<Option<ExitStatus>> {
        let Some(mut process) = self.process.take() else { return Ok(None) };
        process.kill().context("kill berthd")?;
        Ok(Some(process.wait().context("wait for berthd")?))
    }

    /// Arms the failpoints that `lines` say, and no others: `run.stored kill`, one a line,
    /// as crate `failpoint` has it. It holds from now on, after a restart as well.
    pub fn arm(&self, lines: &str) -> Result<()> {
        let (file, new) = (self.config.with_file_name(FAILPOINTS), "failpoints.new");
        // By rename: the daemon reads at any time, and half a line means nothing.
        let new = self.config.with_file_name(new);
        fs::write(&new, lines)?;
        fs::rename(&new, file).context("arm failpoints")
    }

    /// Has whatever comes to one of `points` wait there until [`Daemon::release`].
    pub fn hold(&self, points: &[&str]) -> Result<()> {
        self.passed()?;
        self.arm(&points.iter().map(|point| format!("{point} hold\n")).collect::<String>())
    }

    /// Waits until `point` was passed `times` times since [`Daemon::hold`], and leaves the
    /// list to [`Daemon::passed`].
    pub async fn wait_passed(&self, point: &str, times: usize) -> Result<()> {
        let file = self.config.with_file_name(format!("{FAILPOINTS}.passed"));
        let deadline = Instant::now() + PASS_DEADLINE;
        loop {
            let text = fs::read_to_string(&file).unwrap_or_default();
            if text.lines().filter(|line| *line == point).count() >= times {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{point} was not passed {times} times in {PASS_DEADLINE:?}: {text}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets go of what is held; nothing is armed from now on.
    pub fn release(&self) -> Result<()> {
        self.arm("")
    }

    /// The names of the points passed since the last call, in order.
    pub fn passed(&self) -> Result<Vec<String>> {
        let file = self.config.with_file_name(format!("{FAILPOINTS}.passed"));
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.context("read passed failpoints")?,
        };
        fs::write(&file, "")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// How often `point` was passed since the last call of [`Daemon::passed`], to which the
    /// list is left.
    pub fn passes(&self, point: &str) -> Result<usize> {
        let file = self.config.with_file_name(format!("{FAILPOINTS}.passed"));
        match fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            text => {
                let text = text.context("read passed failpoints")?;
                Ok(text.lines().filter(|line| *line == point).count())
            }
        }
    }

    /// The end of its log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

fn spawn(program: &Path, config: &Path, log: File, options: &NodeOptions) -> Result<Child> {
    let mut command = Command::new(program);
    command.envs(options.environment.clone());
    if options.spared {
        command.process_group(0);
    }
    if !options.unarmed {
        command.env("BERTH_FAILPOINTS", config.with_file_name(FAILPOINTS));
    }
    command
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

fn signal(process: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(process.id())?);
    kill(pid, signal).with_context(|| format!("send {signal} to berthd"))
}

fn knows_plugins(options: &NodeOptions) -> Result<bool> {
    let Some(folder) = &options.binaries else { return Ok(true) };
    let printed = Command::new(folder.join("berthd")).args(["config", "default"]).output()?;
    Ok(String::from_utf8_lossy(&printed.stdout).lines().any(|line| line == "[nri]"))
}

fn configuration(dir: &Path, cgroup_base: &str, options: &NodeOptions) -> Result<String> {
    let filter = match options.log_filter.as_str() {
        "" if options.quiet => "info",
        "" => "debug,h2=warn,hyper=warn,tower=warn",
        filter => filter,
    };
    let format = if options.log_format.is_empty() { "human" } else { &options.log_format };
    // The node's own socket: the default is the host's. A release of old has no plugins.
    let nri = match knows_plugins(options)? {
        true => format!(
            "[nri]\nsocket = '{dir}/nri/nri.sock'\nplugins = '{dir}/nri/plugins'\n\
             plugin_configs = '{dir}/nri/conf.d'\n{more}\n\n",
            dir = dir.display(),
            more = options.nri,
        ),
        false => String::new(),
    };
    let shim = options.folder()?.join("containerd-shim-berth-v1");
    Ok(format!(
        "root = '{dir}/root'\nstate = '{dir}/run'\n\n\
         [cri]\nsocket = '{dir}/run/berth.sock'\n\n\
         [log]\nformat = '{format}'\nfilter = '{filter}'\n\n\
         [container]\ncgroup_base = '{cgroup_base}'\n{container}\n\n\
         {nri}[runtime.handlers.berth]\nshim = '{shim}'\n\n{more}",
        more = options.config,
        container = options.container,
        dir = dir.display(),
        shim = shim.display(),
    ))
}
