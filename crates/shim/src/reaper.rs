//! Reaps children: each process by its own pidfd, adopted orphans when nobody else does.
//!
//! The shim is a subreaper (prctl(2)), so what daemonizes in a container without its own
//! pid namespace becomes its child. `waitid(P_ALL)` would reap processes whose exit code
//! somebody waits for; so every child that is waited for is known here, and an orphan is
//! a child that is not. While a worker makes a process, that process is a child nobody
//! knows of yet: orphans wait until it is known.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::signal::unix::{SignalKind, signal};

use crate::io::watch;

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Exit {
    /// Exit code, or 128 and the signal's number.
    pub(crate) code: u32,
    pub(crate) at: SystemTime,
}

/// Knows which children are waited for.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashSet<u32>,
    /// Workers under way.
    making: usize,
}

/// Holds orphans back while it lives.
#[derive(Debug)]
pub(crate) struct Making(Arc<Reaper>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner).making -= 1;
        self.0.reap_orphans();
    }
}

impl Reaper {
    /// To be called before a worker is forked.
    pub(crate) fn making(self: &Arc<Self>) -> Making {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).making += 1;
        Making(Arc::clone(self))
    }

    /// From here on `pid` is [`Reaper::wait`]ed for; to be called while it is being made.
    pub(crate) fn know(&self, pid: u32) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).known.insert(pid);
    }

    /// Waits for the end of a known child and reaps it.
    pub(crate) async fn wait(&self, pid: u32, pidfd: OwnedFd) -> Exit {
        let status = match watch(pidfd, Interest::READABLE) {
            Ok(fd) => {
                // An error means that the runtime is shutting down: then nobody asks.
                if let Ok(mut ready) = fd.readable().await {
                    ready.retain_ready();
                }
                let id = WaitId::PidFd(fd.get_ref().0.as_fd());
                waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok().flatten()
            }
            Err(_) => None,
        };
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).known.remove(&pid);
        let signalled = |status: &rustix::process::WaitIdStatus| {
            status.terminating_signal().map(|signal| 128 + signal)
        };
        let code = status.as_ref().and_then(|status| status.exit_status().or(signalled(status)));
        let code = code.and_then(|code| u32::try_from(code).ok()).unwrap_or(255);
        Exit { code, at: berth_failpoint::now() }
    }

    /// Reaps orphans whenever a child ends, for as long as the shim lives.
    pub(crate) async fn run(self: Arc<Self>) {
        let Ok(mut ended) = signal(SignalKind::child()) else { return };
        while ended.recv().await.is_some() {
            self.reap_orphans();
        }
    }

    fn reap_orphans(&self) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.making > 0 {
            return;
        }
        for pid in children() {
            if inner.known.contains(&pid) {
                continue;
            }
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // One that still runs is left alone; an error means it is no child any more.
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
            }
        }
    }
}

/// The children of this process's one thread (`proc_pid_task_children(5)`).
fn children() -> Vec<u32> {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let list = std::fs::read_to_string(path).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
