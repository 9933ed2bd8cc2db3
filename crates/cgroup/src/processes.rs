//! The processes of a cgroup: list, freeze, kill.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth_sys::spawn::send_signal;
use nix::errno::Errno;
use nix::libc::SIGKILL;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::create::converted;
use crate::files::Directory;
use crate::hierarchy::{Controller, Mounts, Place};
use crate::{CgroupPath, Error};

/// How long a cgroup may take to freeze for its processes to be killed: without it a few more
/// rounds are needed.
const FREEZE_DEADLINE: Duration = Duration::from_millis(20);
/// Rounds of killing where the kernel cannot kill a cgroup at once; a frozen one needs one.
const ROUNDS: usize = 20;
/// Processes held by descriptor at a time.
const BATCH: usize = 256;

/// Processes of `path` and below, in the hierarchy where it can have most.
pub(crate) fn pids(mounts: &Mounts, path: &CgroupPath) -> Result<BTreeSet<u32>, Error> {
    let mut all = BTreeSet::new();
    if let Some(unified) = mounts.unified(path) {
        collect(unified, &mut all)?;
    }
    if let Some(legacy) = tracking(mounts, path) {
        collect(legacy, &mut all)?;
    }
    Ok(all)
}

/// The v1 directory that is read for processes: every process of a cgroup is in all of them.
fn tracking(mounts: &Mounts, path: &CgroupPath) -> Option<Directory> {
    let legacy = [Controller::Pids, Controller::Freezer, Controller::Memory]
        .into_iter()
        .find_map(|wanted| mounts.legacy.iter().find(|l| l.controllers.contains(&wanted)));
    let legacy = legacy.or_else(|| mounts.legacy.first())?;
    Some(Directory::new(path.below(&legacy.mount)))
}

fn collect(top: Directory, all: &mut BTreeSet<u32>) -> Result<(), Error> {
    let mut open: Vec<Directory> = vec![top];
    while let Some(directory) = open.pop() {
        let text = match directory.read_if_there("cgroup.procs") {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            // A threaded cgroup: its processes are listed by an ancestor.
            Err(Error::Read { source: Errno::EOPNOTSUPP, .. }) => String::new(),
            Err(error) => return Err(error),
        };
        // 0 stands for a process outside this pid namespace.
        all.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &u32| *pid != 0));
        open.extend(children(directory.path().to_owned()).map(Directory::new));
    }
    Ok(())
}

/// The cgroups in one. Nearly every container's has none, as its count of links says (two, and
/// one for each directory in it), which is had for a tenth of what reading it costs.
fn children(directory: PathBuf) -> impl Iterator<Item = PathBuf> {
    let leaf = std::fs::metadata(&directory).is_ok_and(|metadata| metadata.nlink() == 2);
    let entries = (!leaf).then(|| std::fs::read_dir(directory)).into_iter().flatten();
    let entries = entries.flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path())
}

/// Sends SIGKILL to all.
pub(crate) fn kill_all(mounts: &Mounts, path: &CgroupPath) -> Result<(), Error> {
    let Some(unified) = mounts.unified(path) else { return kill_legacy(mounts, path) };
    match unified.write("cgroup.kill", "1") {
        Ok(()) | Err(Error::Write { source: Errno::ENOENT | Errno::ENODEV, .. }) => {}
        Err(error) => return Err(error),
    }
    // On a hybrid host a process may have been moved out of the v2 leaf.
    let Some(legacy) = tracking(mounts, path) else { return Ok(()) };
    signal_listed(path, SIGKILL, || {
        let (mut all, mut killed) = (BTreeSet::new(), BTreeSet::new());
        collect(legacy.clone(), &mut all)?;
        if !all.is_empty() {
            collect(unified.clone(), &mut killed)?;
        }
        Ok(&all - &killed)
    })
    .map(drop)
}

/// Sends `signal` to those that are there now.
pub(crate) fn signal_all(mounts: &Mounts, path: &CgroupPath, signal: i32) -> Result<(), Error> {
    signal_listed(path, signal, || pids(mounts, path)).map(drop)
}

/// Kills one by one, frozen where that is possible so that nothing forks meanwhile.
fn kill_legacy(mounts: &Mounts, path: &CgroupPath) -> Result<(), Error> {
    let list = || pids(mounts, path);
    let frozen = match freeze_soon(mounts, path) {
        Ok(frozen) => frozen,
        Err(Error::NoFreezer) => false,
        Err(error) => return Err(error),
    };
    let mut result = Ok(());
    for _ in 0..if frozen { 1 } else { ROUNDS } {
        match signal_listed(path, SIGKILL, list) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    if frozen {
        set_frozen(mounts, path, false)?;
    }
    result
}

/// Freezes what can be in a short time; whether all is. If not, it is thawed again.
fn freeze_soon(mounts: &Mounts, path: &CgroupPath) -> Result<bool, Error> {
    let deadline = Instant::now() + FREEZE_DEADLINE;
    let mut pause = Duration::from_micros(100);
    while !set_frozen(mounts, path, true)? {
        if Instant::now() >= deadline {
            set_frozen(mounts, path, false)?;
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    Ok(true)
}

/// Signals what `list` names; returns how many. Each is held by descriptor and looked up again
/// before it is signalled, so a number that was given to another process meanwhile is safe.
fn signal_listed(
    path: &CgroupPath,
    signal: i32,
    list: impl Fn() -> Result<BTreeSet<u32>, Error>,
) -> Result<usize, Error> {
    let failed = |pid, source| Error::Kill { pid, cgroup: path.to_string(), source };
    let mut signalled = 0;
    let listed: Vec<u32> = list()?.into_iter().collect();
    for batch in listed.chunks(BATCH) {
        let mut held: Vec<(u32, OwnedFd)> = Vec::with_capacity(batch.len());
        for pid in batch {
            let number = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            let Some(number) = number else { continue };
            match pidfd_open(number, PidfdFlags::empty()).map_err(converted) {
                Ok(descriptor) => held.push((*pid, descriptor)),
                Err(Errno::ESRCH) => {}
                Err(source) => return Err(failed(*pid, source)),
            }
        }
        let still = list()?;
        for (pid, descriptor) in held.iter().filter(|(pid, _)| still.contains(pid)) {
            match send_signal(descriptor.as_fd(), signal) {
                Ok(()) => signalled += 1,
                Err(Errno::ESRCH) => {}
                Err(source) => return Err(failed(*pid, source)),
            }
        }
    }
    Ok(signalled)
}

/// Asks for all to be stopped, or to run; whether that is so.
pub(crate) fn set_frozen(mounts: &Mounts, path: &CgroupPath, wanted: bool) -> Result<bool, Error> {
    Freezer::of(mounts, path).ok_or(Error::NoFreezer)?.set(wanted)
}

/// Where a cgroup is frozen. On a hybrid host in v2: there a frozen process can still be killed.
enum Freezer {
    V1(Directory),
    V2(Directory),
}

impl Freezer {
    fn of(mounts: &Mounts, path: &CgroupPath) -> Option<Self> {
        if let Some(unified) = mounts.unified(path) {
            return Some(Self::V2(unified));
        }
        match mounts.place(Controller::Freezer, path)? {
            Place::V1(directory) => Some(Self::V1(directory)),
            Place::V2(directory) => Some(Self::V2(directory)),
        }
    }

    /// Asks for the state; whether it is reached. A v1 freezer may need to be asked again
    /// when a process forked meanwhile.
    fn set(&self, frozen: bool) -> Result<bool, Error> {
        match self {
            Self::V1(directory) => {
                let wanted = if frozen { "FROZEN" } else { "THAWED" };
                directory.write("freezer.state", wanted)?;
                Ok(directory.read("freezer.state")?.trim() == wanted)
            }
            Self::V2(directory) => {
                let wanted = u8::from(frozen);
                directory.write("cgroup.freeze", &wanted.to_string())?;
                let events = directory.read("cgroup.events")?;
                Ok(crate::files::keyed(&events, "frozen") == u64::from(wanted))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{create, mountinfo};

    /// The host's v1 hierarchies alone: what a host without v2 has.
    #[test]
    fn without_v2_a_cgroup_is_frozen_and_killed_one_by_one() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let mounts = Mounts { unified: None, ..mountinfo::read().unwrap() };
        if mounts.legacy.is_empty() {
            eprintln!("skipped: needs cgroup v1");
            return;
        }
        let path = format!("/berth-test-v1-{}", std::process::id());
        let path = CgroupPath::new(&path).unwrap();
        create::create(&mounts, &path).unwrap();
        let handles = crate::JoinHandles::open(&mounts, &path).unwrap();
        assert!(handles.unified().is_none());
        let mut child = std::thread::spawn(move || {
            handles.join_self().unwrap();
            let script = "sleep 1000 & sleep 1000 & while :; do :; done";
            Command::new("sh").args(["-c", script]).spawn().unwrap()
        })
        .join()
        .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while pids(&mounts, &path).unwrap().len() < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        while !set_frozen(&mounts, &path, true).unwrap() {
            assert!(Instant::now() < deadline, "it does not freeze");
        }
        assert!(set_frozen(&mounts, &path, false).unwrap());
        kill_all(&mounts, &path).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        while create::remove(&mounts, &path).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(mounts.roots().all(|root| !path.below(root).exists()));
    }
}
