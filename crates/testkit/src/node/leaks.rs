//! What a node may leave behind, found from outside: in `/proc`, in `/sys`, on disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_metadata::{ImageStore, PodStore};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Node;

/// Longest that killed processes may take to leave their cgroup.
const CGROUP_DEADLINE: Duration = Duration::from_secs(5);
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// How `/proc/PID/fd` shows namespaces and processes.
const HELD: [&str; 8] =
    ["net:[", "ipc:[", "uts:[", "mnt:[", "pid:[", "user:[", "cgroup:[", "anon_inode:[pidfd]"];

/// How it shows the counters of a network namespace, and what was deleted.
const COUNTERS: &str = "/net/dev";
const DELETED: &str = " (deleted)";

/// Directories whose entries are named by the start of a sandbox's or container's id.
const NAMED: [&str; 4] = ["run/sandboxes", "run/containers", "run/s", "root/snapshots/active"];
/// Directories of what is in the making or on its way out.
const PASSING: [&str; 4] =
    ["run/exec", "root/content/ingest", "root/snapshots/ingest", "root/snapshots/trash"];
/// How a link of a sandbox is called: this, and as many digits of the sandbox's id.
const LINK: (&str, usize) = ("bv", 12);

/// What is expected to exist on a node: nothing else may.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Ids of sandboxes.
    pub sandboxes: BTreeSet<String>,
    /// Ids of containers.
    pub containers: BTreeSet<String>,
}

impl Known {
    /// Whether `name` is an id of these, or the start of one.
    fn names(&self, name: &str) -> bool {
        let begins = |ids: &BTreeSet<String>| {
            let id = ids.range(name.to_owned()..).next();
            id.is_some_and(|id| id.starts_with(name))
        };
        name.len() >= LINK.1 && (begins(&self.sandboxes) || begins(&self.containers))
    }
}

impl Node {
    /// What is left while the daemon runs without sandboxes.
    pub(super) fn leaks(&self) -> Result<Vec<String>> {
        self.leaks_beside(&Known::default())
    }

    /// What is on the node beside `known` and is not on its way out. Teardown goes on after
    /// a verb has answered; see [`Node::settle`].
    pub fn leaks_beside(&self, known: &Known) -> Result<Vec<String>> {
        let shims = self.shims()?.into_iter();
        let strange = shims.filter(|(_, command)| {
            !known.sandboxes.iter().any(|sandbox| command.contains(sandbox.as_str()))
        });
        let mut left: Vec<String> =
            strange.map(|(pid, command)| format!("process {pid}: {command}")).collect();
        left.extend(self.mounts("self")?);
        if let Some(pid) = self.daemon.pid() {
            left.extend(self.mounts(&pid.to_string())?);
        }
        for dir in cgroups(self.cgroup_base()) {
            let strange = below(&dir).into_iter().filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                !known.names(&name)
            });
            left.extend(strange.map(|path| format!("cgroup {}", path.display())));
        }
        left.extend(self.descriptors(known)?);
        left.extend(self.links(known)?);
        left.extend(self.files(known));
        if left.is_empty() {
            // An address is given back when its link was seen to go.
            left.extend(self.records(known)?);
        }
        Ok(left)
    }

    /// Ids of the sandboxes in the daemon's store, those in the making too.
    pub fn stored_sandboxes(&self) -> Result<Vec<String>> {
        let pods = PodStore::open(&self.dir().join("root/pods.db")).context("open pods.db")?;
        let sandboxes = pods.sandboxes().context("list sandboxes")?;
        Ok(sandboxes.into_iter().map(|sandbox| sandbox.id.to_string()).collect())
    }

    /// Fails if a page of the daemon's stores is damaged: whoever opens one has each of
    /// them checked.
    pub fn check_stores(&self) -> Result<()> {
        let root = self.dir().join("root");
        self.machine.run(move || {
            PodStore::open(&root.join("pods.db")).context("check pods.db")?;
            ImageStore::open(&root.join("images.db")).context("check images.db")?;
            Ok(())
        })
    }

    /// What the daemon's store still holds; anyone may read it while the daemon runs.
    fn records(&self, known: &Known) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let path = self.dir().join("root/pods.db");
        let pods = self.machine.run(move || PodStore::open(&path).context("open pods.db"))?;
        for sandbox in pods.sandboxes().context("list sandboxes")? {
            if !known.sandboxes.contains(sandbox.id.as_str()) {
                left.push(format!("record of sandbox {}", sandbox.id));
            }
        }
        for container in pods.containers().context("list containers")? {
            if !known.containers.contains(container.id.as_str()) {
                left.push(format!("record of container {}", container.id));
            }
        }
        for lease in pods.leases().context("list leases")? {
            if !known.sandboxes.contains(lease.sandbox.as_str()) {
                left.push(format!("lease of {} to {}", lease.address, lease.sandbox));
            }
        }
        Ok(left)
    }

    /// What is left after the daemon has ended too.
    pub(super) fn leaks_at_rest(&self) -> Result<Vec<String>> {
        let mut left = self.leaks()?;
        let mut files = Vec::new();
        walk(&self.path("run"), &mut files);
        for path in files {
            let kind = fs::symlink_metadata(&path).map(|found| found.file_type());
            let ours = path.ends_with("berth.sock");
            if kind.is_ok_and(|kind| kind.is_socket() || kind.is_fifo()) && !ours {
                left.push(format!("socket or FIFO {}", path.display()));
            }
        }
        Ok(left)
    }

    /// Processes of the node: those that name its directory in their command line or
    /// environment, as the daemon, the registry and every shim do.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let own = self.dir().as_os_str().as_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
            // Processes come and go while the folder is read.
            let names_us = ["cmdline", "environ"].iter().any(|file| {
                fs::read(format!("/proc/{pid}/{file}"))
                    .is_ok_and(|text| text.windows(own.len()).any(|window| window == own))
            });
            if names_us {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Processes of the node without the daemon and the registry.
    fn shims(&self) -> Result<Vec<(u32, String)>> {
        let known = [self.daemon.pid(), Some(self.registry.pid()), Some(std::process::id())];
        let others = self.processes()?.into_iter().filter(|pid| !known.contains(&Some(*pid)));
        Ok(others
            .map(|pid| {
                let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                (pid, command.unwrap_or_default().replace('\0', " "))
            })
            .collect())
    }

    fn mounts(&self, process: &str) -> Result<Vec<String>> {
        let own = self.dir().display().to_string();
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
        let disk = |line: &&str| {
            let target = line.split(' ').nth(4).unwrap_or_default();
            self.disks.all().any(|disk| disk.has_mount(Path::new(target)))
        };
        Ok(mounts
            .lines()
            .filter(|line| line.contains(&own) && !disk(line))
            .map(|line| format!("mount {line}"))
            .collect())
    }

    /// Namespaces, other than its own, and processes that the daemon holds by descriptor. For
    /// statistics it may hold counters of the networks of known sandboxes, and cgroups that
    /// there are.
    fn descriptors(&self, known: &Known) -> Result<Vec<String>> {
        let Some(pid) = self.daemon.pid() else { return Ok(Vec::new()) };
        let links = |pid: u32, dir: &str| -> Result<Vec<String>> {
            let entries = fs::read_dir(format!("/proc/{pid}/{dir}"))?.flatten();
            // Descriptors come and go while the folder is read.
            let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
            Ok(links.map(|link| link.display().to_string()).collect())
        };
        let mut allowed = links(pid, "ns")?;
        for (shim, command) in self.shims()? {
            if known.sandboxes.iter().any(|sandbox| command.contains(sandbox.as_str())) {
                // One that ends meanwhile holds nothing.
                let held = links(shim, "fd").unwrap_or_default().into_iter();
                allowed.extend(held.filter(|link| link.starts_with("net:[")));
            }
        }
        let all = links(pid, "fd")?;
        let held = all.iter().filter(|link| HELD.iter().any(|kind| link.starts_with(kind)));
        let foreign = held.filter(|link| !allowed.contains(link));
        let networks = all.iter().filter(|link| link.ends_with(COUNTERS));
        let cgroups = all.iter().filter(|link| link.starts_with(CGROUP_ROOT));
        let gone = cgroups.filter(|link| known.sandboxes.is_empty() || link.ends_with(DELETED));
        let foreign = foreign.chain(networks.skip(known.sandboxes.len())).chain(gone);
        Ok(foreign.map(|link| format!("{link} held by the daemon")).collect())
    }

    /// Links in the node's namespace other than loopback, the bridge, and those of sandboxes
    /// that are known.
    fn links(&self, known: &Known) -> Result<Vec<String>> {
        let devices = self.machine.run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
        Ok(devices
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.trim().to_owned())
            .filter(|name| name != "lo" && name != "berth0")
            .filter(|name| name.strip_prefix(LINK.0).is_none_or(|digits| !known.names(digits)))
            .map(|name| format!("link {name}"))
            .collect())
    }

    /// Entries of the daemon's directories that belong to nothing that is known.
    fn files(&self, known: &Known) -> Vec<String> {
        let entries = |dir: &str| {
            let dir = self.path(dir);
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
        };
        let named = NAMED.into_iter().flat_map(entries).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !known.names(&name)
        });
        let passing = PASSING.into_iter().flat_map(entries);
        named.chain(passing).map(|path| format!("file {}", path.display())).collect()
    }

    /// Removes what a failed test left, as far as it goes.
    pub(super) fn scrub(&self) {
        remove_cgroups(self.cgroup_base()).unwrap_or_else(|error| eprintln!("{error:#}"));
        for (pid, _) in self.shims().unwrap_or_default() {
            end(pid);
        }
        for line in self.mounts("self").unwrap_or_default() {
            if let Some(target) = line.split(' ').nth(5) {
                umount2(target, MntFlags::MNT_DETACH).ok();
            }
        }
    }
}

/// Kills what runs in the cgroup `base`, and removes it in every hierarchy that has it.
pub fn remove_cgroups(base: &str) -> Result<()> {
    let deadline = Instant::now() + CGROUP_DEADLINE;
    loop {
        let mut dirs = Vec::new();
        for dir in cgroups(base) {
            dirs.extend(below(&dir));
            dirs.push(dir);
        }
        for dir in &dirs {
            let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.lines().filter_map(|pid| pid.parse().ok()).for_each(end);
        }
        // Busy until the last process is reaped.
        dirs.retain(|dir| fs::remove_dir(dir).is_err() && dir.exists());
        let Some(left) = dirs.first() else { return Ok(()) };
        ensure!(Instant::now() < deadline, "cgroup {} cannot be removed", left.display());
        thread::sleep(Duration::from_millis(5));
    }
}

/// The cgroup `base` in each hierarchy that has it.
fn cgroups(base: &str) -> Vec<PathBuf> {
    let base = base.trim_start_matches('/');
    let mut dirs = vec![Path::new(CGROUP_ROOT).join(base)];
    for entry in fs::read_dir(CGROUP_ROOT).into_iter().flatten().flatten() {
        dirs.push(entry.path().join(base));
    }
    dirs.retain(|dir| dir.is_dir());
    dirs
}

fn end(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// Every folder below `dir`, deepest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(below(&path));
            found.push(path);
        }
    }
    found
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}
