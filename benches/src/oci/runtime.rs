//! One OCI runtime, and where it is run.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use berth_testkit::Machine;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use crate::session;

use super::bundle;

/// Berth's own, which knows `run` only.
pub(super) const OURS: &str = "berth-bench-oci";
/// Others that are looked for.
const OTHERS: [&str; 3] = ["runc", "crun", "youki"];
/// A command that takes longer hangs.
const HANG: Duration = Duration::from_secs(5);
/// The cgroup v2 hierarchy of a machine that has v1 as well.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Names and programs: those asked for, or all that are found.
pub(super) fn find(asked: &[PathBuf]) -> Result<Vec<(String, PathBuf)>> {
    let named = |program: &Path| {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned());
        name.with_context(|| format!("{} names no program", program.display()))
    };
    if !asked.is_empty() {
        let search = |program: &PathBuf| {
            let found = if program.components().count() > 1 { None } else { in_path(program) };
            let program = found.unwrap_or_else(|| program.clone());
            Ok((named(&program)?, program))
        };
        return asked.iter().map(search).collect();
    }
    let own = std::env::current_exe().context("find this program")?;
    let beside = own.with_file_name(OURS);
    let folder = std::env::var_os("BERTH_BIN_DIR").map(|folder| Path::new(&folder).join(OURS));
    let ours = folder.into_iter().chain([beside]).find(|program| program.is_file());
    let others = OTHERS.iter().filter_map(|name| in_path(Path::new(name)));
    ours.into_iter().chain(others).map(|program| Ok((named(&program)?, program))).collect()
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Where all runtimes run: bundles and roots, and a machine without network for each.
#[derive(Debug)]
pub(super) struct Stage {
    dir: TempDir,
    cgroup: String,
}

impl Stage {
    /// Containers are made below the cgroup `cgroup`.
    pub(super) fn make(cgroup: &str) -> Result<Self> {
        let dir = session::directory()?;
        Ok(Self { dir, cgroup: cgroup.to_owned() })
    }

    /// Makes everything for `program` and tries it once; again without the v2 hierarchy if it
    /// fails with it.
    pub(super) fn open(&self, name: &str, program: &Path) -> Result<Runtime> {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir)?;
        let bundle = bundle::make(&dir, &format!("{}/{name}", self.cgroup))?;
        let version = version(program)?;
        let mut failures = Vec::new();
        for hide in [false, true] {
            if hide && !Path::new(UNIFIED).is_dir() {
                break;
            }
            let machine = Machine::new()?;
            if hide {
                machine.run(hide_unified)?;
            }
            let job = Job {
                program: program.to_owned(),
                root: dir.join("root"),
                bundle: bundle.clone(),
                errors: dir.join("errors"),
                id: format!("bench-{name}-{}", std::process::id()),
                whole: name == OURS,
            };
            let (name, version) = (name.to_owned(), version.clone());
            let runtime = Runtime { name, version, hides_unified: hide, machine, job };
            match runtime.turn(1, &Arc::new(AtomicBool::new(false))) {
                Ok(laps) if laps.iter().all(|lap| !lap.hung) => return Ok(runtime),
                Ok(_) => failures.push("it hangs".to_owned()),
                Err(error) => failures.push(format!("{error:#}")),
            }
            self.sweep()?;
        }
        bail!(failures.join("; with unified hidden: "))
    }

    fn sweep(&self) -> Result<()> {
        berth_testkit::remove_cgroups(&self.cgroup)
    }

    /// Kills what is left, and removes it.
    pub(super) fn remove(self) -> Result<()> {
        self.sweep()?;
        self.dir.close().context("remove the bundles")
    }
}

fn hide_unified() -> Result<()> {
    const NONE: Option<&str> = None;
    mount(Some("tmpfs"), UNIFIED, Some("tmpfs"), MsFlags::empty(), NONE)
        .with_context(|| format!("hide {UNIFIED}"))
}

/// What it says of itself: `crun version 1.8.1`, and more lines.
fn version(program: &Path) -> Result<String> {
    if program.file_name().is_some_and(|name| name == OURS) {
        return Ok(env!("CARGO_PKG_VERSION").to_owned());
    }
    let told = Command::new(program).arg("--version").output();
    let told = told.with_context(|| format!("start {}", program.display()))?;
    let text = String::from_utf8_lossy(&told.stdout);
    let line = text.lines().next().unwrap_or_default();
    Ok(line.rsplit_once("version ").map_or(line, |(_, version)| version).to_owned())
}

/// A runtime that works here.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) name: String,
    version: String,
    hides_unified: bool,
    machine: Machine,
    job: Job,
}

impl Runtime {
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn hides_unified(&self) -> bool {
        self.hides_unified
    }

    /// Runs `count` containers, unless `stop` is set meanwhile.
    pub(super) fn turn(&self, count: usize, stop: &Arc<AtomicBool>) -> Result<Vec<Lap>> {
        let (job, stop) = (self.job.clone(), Arc::clone(stop));
        let turn = move || {
            let mut laps = Vec::with_capacity(count);
            while laps.len() < count && !stop.load(Ordering::Relaxed) {
                laps.push(job.lap()?);
            }
            Ok(laps)
        };
        self.machine.run(turn).with_context(|| self.name.clone())
    }
}

/// What one container took, ms.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lap {
    pub(super) run: Option<f64>,
    pub(super) create: Option<f64>,
    pub(super) start: Option<f64>,
    pub(super) delete: Option<f64>,
    /// Whether a command took so long that it was killed.
    pub(super) hung: bool,
}

/// All that is needed to run a container.
#[derive(Clone, Debug)]
struct Job {
    program: PathBuf,
    /// Where the runtime keeps what it knows.
    root: PathBuf,
    bundle: PathBuf,
    errors: PathBuf,
    id: String,
    /// Whether it knows `run` only.
    whole: bool,
}

impl Job {
    /// One container by `run`, and one by `create`, `start` and `delete`.
    fn lap(&self) -> Result<Lap> {
        let bundle = self.bundle.display().to_string();
        let mut lap = Lap::default();
        lap.run = self.command(&["run", "--bundle", &bundle, &self.id])?;
        lap.hung = lap.run.is_none();
        if lap.hung || self.whole {
            return Ok(lap);
        }
        let pid_file = self.bundle.join("pid");
        let pid_path = pid_file.display().to_string();
        let create = ["create", "--bundle", &bundle, "--pid-file", &pid_path, &self.id];
        lap.create = self.command(&create)?;
        let pid = fs::read_to_string(&pid_file).unwrap_or_default();
        if lap.create.is_some() {
            lap.start = self.command(&["start", &self.id])?;
        }
        if lap.start.is_some() {
            // What still runs cannot be deleted, and its end is none of the runtime's time.
            ended(pid.trim());
            lap.delete = self.command(&["delete", &self.id])?;
        }
        lap.hung = lap.delete.is_none();
        Ok(lap)
    }

    /// How long the command took until it ended, ms; `None` when it hung and was killed.
    fn command(&self, arguments: &[&str]) -> Result<Option<f64>> {
        let mut command = Command::new(&self.program);
        if !self.whole {
            command.arg("--root").arg(&self.root);
        }
        let errors = File::create(&self.errors)?;
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let began = Instant::now();
        let child = command.spawn();
        let mut child = child.with_context(|| format!("start {}", self.program.display()))?;
        if !ends(&child)? {
            child.kill().ok();
            child.wait()?;
            self.force();
            return Ok(None);
        }
        let status = child.wait()?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        if !status.success() {
            let told = fs::read_to_string(&self.errors).unwrap_or_default();
            self.force();
            bail!("{} ended with {status}: {}", arguments.join(" "), told.trim());
        }
        Ok(Some(took))
    }

    /// Removes what a failed command left, as far as the runtime does it.
    fn force(&self) {
        if self.whole {
            return;
        }
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(["delete", "--force", &self.id]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // What it does not remove goes with the cgroups.
        command.status().ok();
    }
}

/// Whether `child` ends before it counts as hanging.
fn ends(child: &Child) -> Result<bool> {
    let pid = rustix::process::Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .context("watch the command")?;
    let deadline = Instant::now() + HANG;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], left) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
    }
}

/// Waits until process `pid` has ended, reaped or not, for a moment at most.
fn ended(pid: &str) {
    let stat = PathBuf::from(format!("/proc/{pid}/stat"));
    let deadline = Instant::now() + HANG;
    while Instant::now() < deadline {
        let runs = fs::read_to_string(&stat).is_ok_and(|stat| {
            let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
            state.is_some_and(|state| !state.starts_with(['Z', 'X']))
        });
        if !runs {
            return;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_asked_for_is_named_after_its_file() {
        let found = find(&[PathBuf::from("/opt/x/crun"), PathBuf::from("sh")]).unwrap();
        assert_eq!(found[0], ("crun".to_owned(), PathBuf::from("/opt/x/crun")));
        assert!(found[1].1.is_absolute() && found[1].0 == "sh", "{found:?}");
        assert!(find(&[PathBuf::from("/")]).is_err());
    }
}
