//! The processes of a node, as the machine's first process would see them.
//!
//! This process is the reaper of all its descendants (prctl(2), `PR_SET_CHILD_SUBREAPER`):
//! what a killed daemon or shim leaves behind becomes its child, so everything a node
//! started is found below it, and is reaped at once, as `init` does.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

/// What this process starts, and waits for elsewhere.
const OWN: [&str; 2] = ["berthd", "docker-registry"];
/// A child that is called so and that nobody has taken by then was a daemon's, which died
/// between fork(2) and execve(2).
const OWN_WAIT: Duration = Duration::from_secs(5);
/// Pause between two looks for children that have ended.
const PAUSE: Duration = Duration::from_millis(5);

/// One process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
    pub(crate) state: char,
    /// Clock ticks since boot: with the pid, it names the process.
    pub(crate) started: u64,
}

impl Process {
    /// The process `pid`, if there is one.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it still runs.
    pub(crate) fn runs(&self) -> bool {
        Self::find(self.pid).is_some_and(|now| now.started == self.started && now.state != 'Z')
    }

    /// Whether it was stopped by a signal: until it goes on it reaps nobody, and nobody else
    /// can reap its children.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state == 'T'
    }

    /// Its command line.
    pub(crate) fn command(&self) -> String {
        let command = fs::read_to_string(format!("/proc/{}/cmdline", self.pid));
        command.unwrap_or_default().replace('\0', " ")
    }

    /// Signals it, if it still is the same process.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.runs() {
            let pid = Pid::from_raw(i32::try_from(self.pid)?);
            match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).context("signal a process"),
            }
        }
        Ok(())
    }
}

/// proc_pid_stat(5): the name stands in parentheses and may contain any.
fn parse(pid: u32, stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22; the parent was field 4.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Process { pid, parent, name: name.to_owned(), state, started })
}

/// Every process below this one.
pub(crate) fn descendants() -> Result<Vec<Process>> {
    let mut children: BTreeMap<u32, Vec<Process>> = BTreeMap::new();
    for process in processes()? {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = children.remove(&std::process::id()).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children.remove(&process.pid).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

/// Becomes the reaper of all descendants, for good.
pub(crate) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(true).context("become the reaper of descendants")?;
    thread::Builder::new().name("reaper".into()).spawn(reap).context("start the reaper")?;
    Ok(())
}

fn reap() {
    let mut waiting = BTreeMap::new();
    loop {
        // Blocks while no child has ended.
        if waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).is_err() {
            thread::sleep(PAUSE);
            continue;
        }
        let ended: Vec<_> = children().into_iter().filter(|child| child.state == 'Z').collect();
        waiting.retain(|pid, _| ended.iter().any(|child| child.pid == *pid));
        for child in ended {
            let since = *waiting.entry(child.pid).or_insert_with(Instant::now);
            let started_here = OWN.contains(&child.name.as_str());
            if !started_here || since.elapsed() > OWN_WAIT {
                let pid = i32::try_from(child.pid).map(Pid::from_raw);
                // Somebody was quicker: then it has been reaped.
                pid.map(|pid| waitpid(pid, Some(WaitPidFlag::WNOHANG))).ok();
            }
        }
        thread::sleep(PAUSE);
    }
}

fn children() -> Vec<Process> {
    let this = std::process::id();
    processes().unwrap_or_default().into_iter().filter(|child| child.parent == this).collect()
}

fn processes() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        // Processes come and go while the folder is read.
        found.extend(Process::find(pid));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_anything() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 999 0 0";
        let process = parse(42, stat).unwrap();
        assert_eq!((process.name.as_str(), process.parent), ("a) b (c", 7));
        assert_eq!((process.state, process.started), ('S', 999));
    }

    #[test]
    fn this_process_runs() {
        let this = Process::find(std::process::id()).unwrap();
        assert!(this.runs());
        let other = Process { started: this.started + 1, ..this };
        assert!(!other.runs(), "another process with the same number");
    }
}
