//! Reaps children: each process that somebody waits for, and orphans.
//!
//! The shim is a subreaper (prctl(2)), so what daemonizes in a container without its own
//! pid namespace becomes its child. SIGCHLD tells of the end of orphans and of processes
//! that have executed their program; all of them are reaped as they end, and the code of
//! one that is known goes to who waits for it. A process that is still being made is quiet
//! ([`berth_sys::process::ForkOptions::quiet`]), so its code cannot be lost before it is
//! known; its end is seen by its pidfd.
//!
//! An entry of the table goes at the moment its process is reaped, and not before: the pid
//! may be another's afterwards.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use berth_sys::spawn::send_signal;
use nix::sys::signal::Signal;
use rustix::process::{WaitIdStatus, WaitOptions};
use tokio::io::Interest;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::io::watch;

/// How often it is looked whether a tracer has let an ended child go.
const TRACED: Duration = Duration::from_millis(100);
/// Children reaped before other work of the shim has its turn.
const TURN: usize = 256;

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Exit {
    /// Exit code, or 128 and the signal's number.
    pub(crate) code: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    /// The end of a process that was reaped just now.
    fn now(code: Option<i32>, signal: Option<i32>) -> Self {
        let code = code.or(signal.map(|signal| 128 + signal));
        let code = code.and_then(|code| u32::try_from(code).ok()).unwrap_or(255);
        Self { code, at: berth_failpoint::now() }
    }
}

/// Knows which children are waited for.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    known: Mutex<HashMap<u32, oneshot::Sender<Exit>>>,
}

/// A child whose end somebody waits for.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    pidfd: OwnedFd,
    end: oneshot::Receiver<Exit>,
}

impl Child {
    /// To signal it while somebody waits.
    pub(crate) fn pidfd(&self) -> std::io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Kills it; one that has ended is what is wanted.
    pub(crate) fn kill(&self) {
        send_signal(self.pidfd.as_fd(), Signal::SIGKILL as i32).ok();
    }
}

impl Reaper {
    fn known(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Exit>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the end of `pid` is kept for who waits; to be called before it executes
    /// a program.
    pub(crate) fn know(&self, pid: u32, pidfd: OwnedFd) -> Child {
        let (told, end) = oneshot::channel();
        self.known().insert(pid, told);
        Child { pid, pidfd, end }
    }

    /// Waits for the end of a child and reaps it, unless that was done.
    pub(crate) async fn wait(&self, child: Child) -> Exit {
        let Child { pid, pidfd, mut end } = child;
        // A descriptor that cannot be watched is no reason to lose the code.
        let Ok(fd) = watch(pidfd, Interest::READABLE) else {
            return end.await.unwrap_or_else(|_| Exit::now(None, None));
        };
        tokio::select! {
            biased;
            Ok(exit) = &mut end => return exit,
            // An error means that the runtime is shutting down: then nobody asks.
            ready = fd.readable() => drop(ready.map(|mut ready| ready.retain_ready())),
        }
        loop {
            // It has ended, and may have been reaped in the same moment.
            if let Ok(exit) = end.try_recv() {
                return exit;
            }
            match berth_sys::process::reap(fd.get_ref().0.as_fd()) {
                // A tracer that is not its parent sees the end first (ptrace(2)). The pidfd is
                // readable all the time, and of a quiet process nothing else will tell.
                Ok(None) => tokio::select! {
                    biased;
                    Ok(exit) = &mut end => return exit,
                    () = sleep(TRACED) => {}
                },
                status => {
                    self.known().remove(&pid);
                    let status = status.ok().flatten();
                    let code = status.as_ref().and_then(WaitIdStatus::exit_status);
                    let signal = status.as_ref().and_then(WaitIdStatus::terminating_signal);
                    return Exit::now(code, signal);
                }
            }
        }
    }

    /// Reaps a child whose end concerns nobody, whenever that is.
    pub(crate) fn bury(self: &Arc<Self>, pid: u32, pidfd: OwnedFd) {
        let (reaper, child) = (Arc::clone(self), self.know(pid, pidfd));
        tokio::spawn(async move { reaper.wait(child).await });
    }

    /// Reaps whenever a child ends, for as long as the shim lives.
    pub(crate) async fn run(self: Arc<Self>) {
        let Ok(mut ended) = signal(SignalKind::child()) else { return };
        loop {
            while self.reap(TURN) {
                tokio::task::yield_now().await;
            }
            if ended.recv().await.is_none() {
                return;
            }
        }
    }

    /// Reaps at most `count` children; whether there may be more.
    fn reap(&self, count: usize) -> bool {
        for _ in 0..count {
            let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) else {
                return false;
            };
            let told = self.known().remove(&pid.as_raw_nonzero().get().unsigned_abs());
            if let Some(told) = told {
                // Whoever waited may have given up.
                told.send(Exit::now(status.exit_status(), status.terminating_signal())).ok();
            }
        }
        true
    }
}
