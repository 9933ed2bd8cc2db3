//! One process of a container: its first, or one added to it.
//!
//! ```text
//! Pending --created--> Created --start--> Starting --executed--> Running --+
//!                         |                   |                            |
//!                         +-------------------+------- its end ------------+--> Stopped
//! ```
//!
//! A first process is never `Pending`. A program that cannot be executed ends `Stopped`
//! with code 128, whatever its process returned.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_cgroup::Cgroup;
use berth_oci_runtime::{Creating, Leftover, StartHandle, Timing};
use berth_sys::spawn::send_signal;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use oci_spec::runtime::Process as OciProcess;
use tokio::io::Interest;
use tokio::sync::watch::{self, Sender};
use tokio::time::timeout;

use crate::container::remove_cgroup;
use crate::error::Error;
use crate::io::{Streams, Uris, watch as watch_fd};
use crate::log;
use crate::reaper::{Child, Exit, Reaper};

/// How long a worker may take to make a process. Mounts of network file systems may be slow.
const MAKE: Duration = Duration::from_secs(110);
/// How long a process may take from its release to execve(2).
const EXECUTE: Duration = Duration::from_secs(60);
/// How long a process that failed to start may take to end, and then to be killed.
const GRACE: Duration = Duration::from_secs(1);
/// Code of a process whose program could not be executed (CRI `StartError`).
pub(crate) const START_ERROR: u32 = 128;

/// A process; shared by requests and by the task that waits for its end.
#[derive(Debug)]
pub(crate) struct Process {
    /// Id of the container, or of the added process: for messages.
    pub(crate) id: String,
    pub(crate) uris: Uris,
    state: Mutex<State>,
    exit: Sender<Option<Exit>>,
    /// Whether its start is under way, and not told to others yet.
    starting: Sender<bool>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    pid: u32,
    /// Until somebody waits for its end.
    child: Option<Child>,
    pidfd: Option<Arc<OwnedFd>>,
    streams: Option<Arc<Streams>>,
    /// The input was closed before there were streams.
    input_closed: bool,
    /// It was let go to execute its program.
    released: bool,
    failed: bool,
}

impl State {
    fn as_told(&self, exit: Exit) -> Exit {
        Exit { code: if self.failed { START_ERROR } else { exit.code }, ..exit }
    }
}

#[derive(Debug)]
enum Phase {
    Pending(Box<OciProcess>),
    Created(StartHandle),
    Starting,
    Running,
    Stopped(Exit),
}

/// Where a process is, for `State`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    Created,
    Running,
    Stopped(Exit),
}

impl Process {
    /// A process that was made and waits for its start.
    pub(crate) fn created(id: &str, uris: Uris, made: Made, streams: Streams) -> Self {
        let state = State {
            phase: Phase::Created(made.start),
            pid: made.pid,
            child: Some(made.child),
            pidfd: Some(Arc::new(made.pidfd)),
            streams: Some(Arc::new(streams)),
            input_closed: false,
            released: false,
            failed: false,
        };
        Self::new(id, uris, state)
    }

    /// A process that will be made when it is started.
    pub(crate) fn pending(id: &str, uris: Uris, process: OciProcess) -> Self {
        let phase = Phase::Pending(Box::new(process));
        let state = State {
            phase,
            pid: 0,
            child: None,
            pidfd: None,
            streams: None,
            input_closed: false,
            released: false,
            failed: false,
        };
        Self::new(id, uris, state)
    }

    fn new(id: &str, uris: Uris, state: State) -> Self {
        let ((exit, _), (starting, _)) = (watch::channel(None), watch::channel(false));
        Self { id: id.to_owned(), uris, state: Mutex::new(state), exit, starting }
    }

    /// Until the answer is dropped, the end of this process is not told to others: they
    /// are told of its start first.
    pub(crate) fn starting(&self) -> Starting<'_> {
        self.starting.send_replace(true);
        Starting(self)
    }

    /// The end of this process as others are told it, once its start is behind it.
    pub(crate) async fn told(&self, exit: Exit) -> Exit {
        // An error means that the sender is gone, and it is a field of `self`.
        self.starting.subscribe().wait_for(|starting| !starting).await.ok();
        match self.state().phase {
            Phase::Stopped(exit) => exit,
            _ => exit,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pid on the node; 0 when it has none yet.
    pub(crate) fn pid(&self) -> u32 {
        self.state().pid
    }

    pub(crate) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.state().pidfd.clone()
    }

    /// Its entry with the reaper, for the one who waits for its end.
    pub(crate) fn take_child(&self) -> Option<Child> {
        self.state().child.take()
    }

    pub(crate) fn streams(&self) -> Option<Arc<Streams>> {
        self.state().streams.clone()
    }

    pub(crate) fn status(&self) -> Status {
        match self.state().phase {
            Phase::Pending(_) | Phase::Created(_) | Phase::Starting => Status::Created,
            Phase::Running => Status::Running,
            Phase::Stopped(exit) => Status::Stopped(exit),
        }
    }

    /// Whether it is an added process that nobody has begun to start.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.state().phase, Phase::Pending(_))
    }

    /// What an added process shall be; it is being started from here on.
    pub(crate) fn take_pending(&self) -> Result<Box<OciProcess>, Error> {
        let mut state = self.state();
        match std::mem::replace(&mut state.phase, Phase::Starting) {
            Phase::Pending(process) => Ok(process),
            other => {
                let error = self.refused(&other);
                state.phase = other;
                Err(error)
            }
        }
    }

    /// An added process could not be made: it has ended without ever having run.
    pub(crate) fn failed(&self) {
        self.finish(Exit { code: START_ERROR, at: berth_failpoint::now() });
    }

    /// An added process was made.
    pub(crate) fn made(&self, made: Made, streams: Streams) {
        let mut state = self.state();
        state.phase = Phase::Created(made.start);
        state.pid = made.pid;
        state.child = Some(made.child);
        state.pidfd = Some(Arc::new(made.pidfd));
        if state.input_closed {
            streams.close_stdin();
        }
        state.streams = Some(Arc::new(streams));
    }

    /// Ends its input, also that of a process that is yet to be made.
    pub(crate) fn close_stdin(&self) {
        let mut state = self.state();
        match &state.streams {
            Some(streams) => streams.close_stdin(),
            None => state.input_closed = true,
        }
    }

    /// Lets it execute its program, and waits until it has; its pid.
    pub(crate) async fn start(&self) -> Result<u32, Error> {
        let handle = {
            let mut state = self.state();
            match std::mem::replace(&mut state.phase, Phase::Starting) {
                Phase::Created(handle) => {
                    state.released = true;
                    handle
                }
                other => {
                    let error = self.refused(&other);
                    state.phase = other;
                    return Err(error);
                }
            }
        };
        let begun = self.streams().map_or(Ok(()), |streams| streams.begin_input());
        let executed = match begun {
            Ok(()) => execute(handle).await,
            Err(error) => Err(error),
        };
        match executed {
            Ok(()) => {
                let mut state = self.state();
                if matches!(state.phase, Phase::Starting) {
                    state.phase = Phase::Running;
                }
                Ok(state.pid)
            }
            Err(error) => {
                self.state().failed = true;
                // It ends by itself; one that does not, because it hangs, is made to.
                if timeout(GRACE, self.wait()).await.is_err() {
                    self.kill(Signal::SIGKILL as i32).ok();
                    // One that cannot die now has failed all the same, and ends some day.
                    timeout(GRACE, self.wait()).await.ok();
                }
                self.fail_stopped();
                Err(error)
            }
        }
    }

    /// The end may have been seen before the failure was.
    fn fail_stopped(&self) {
        let mut state = self.state();
        if let Phase::Stopped(exit) = &mut state.phase {
            exit.code = START_ERROR;
            let exit = *exit;
            drop(state);
            self.exit.send_replace(Some(exit));
        }
    }

    fn refused(&self, phase: &Phase) -> Error {
        let state = match phase {
            Phase::Pending(_) | Phase::Created(_) => "not started yet",
            Phase::Starting => "being started already",
            Phase::Running => "running already",
            Phase::Stopped(_) => "stopped",
        };
        Error::State { id: self.id.clone(), state }
    }

    /// Signals it; one that has ended is an error, as containerd has it.
    pub(crate) fn kill(&self, signal: i32) -> Result<(), Error> {
        let pidfd = match &*self.state() {
            State { phase: Phase::Stopped(_), .. } => None,
            state => state.pidfd.clone(),
        };
        let ended = || Error::NotFound { what: "running process", id: self.id.clone() };
        let pidfd = pidfd.ok_or_else(ended)?;
        match send_signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(ended()),
            Err(Errno::EINVAL) => Err(Error::invalid("signal", signal.to_string())),
            Err(errno) => Err(Error::Syscall("signal a process", errno)),
        }
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            if exit.changed().await.is_err() {
                // Not reached: `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether its program was executed, as far as is known before its start is told.
    pub(crate) fn was_executed(&self) -> bool {
        let state = self.state();
        state.released && !state.failed
    }

    /// Its end with the code that others are told.
    pub(crate) fn as_told(&self, exit: Exit) -> Exit {
        self.state().as_told(exit)
    }

    /// Notes its end; returns it as others are told it.
    pub(crate) fn finish(&self, exit: Exit) -> Exit {
        let mut state = self.state();
        let exit = state.as_told(exit);
        state.phase = Phase::Stopped(exit);
        state.pidfd = None;
        drop(state);
        self.exit.send_replace(Some(exit));
        exit
    }
}

/// A process whose start is not told yet.
#[derive(Debug)]
pub(crate) struct Starting<'a>(&'a Process);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.send_replace(false);
    }
}

/// A process that was made, and is known to the reaper.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) child: Child,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) start: StartHandle,
}

/// Waits for the worker's answer without stopping the shim, and attaches `streams`.
pub(crate) async fn make(
    creating: Creating,
    reaper: &Arc<Reaper>,
    streams: &mut Streams,
) -> Result<Made, Error> {
    let mut fd = watch_fd(creating, Interest::READABLE)
        .map_err(|source| Error::Io("watch a worker", source))?;
    let created = timeout(MAKE, async {
        loop {
            let mut ready =
                fd.readable_mut().await.map_err(|source| Error::Io("wait for a worker", source))?;
            match ready.get_inner_mut().0.advance()? {
                Some(created) => return Ok::<_, Error>(created),
                None => ready.clear_ready(),
            }
        }
    });
    let late = |_| Error::Timeout { what: "making the process", seconds: MAKE.as_secs() };
    let created = created.await.map_err(late).flatten();
    bury(fd.into_inner().0.leftover(), reaper);
    let created = created?;
    let Timing { plan, worker, init } = created.timing;
    log::debug(format_args!("made a process: plan {plan:?}, worker {worker:?}, init {init:?}"));
    let failed = |source| Error::Io("copy a pidfd", source);
    let pid = created.pid.as_raw().unsigned_abs();
    let copy = created.pidfd.try_clone().map_err(failed);
    let child = reaper.know(pid, created.pidfd);
    let attached = streams.attach(created.console, reaper).await;
    match attached.and(copy) {
        Ok(pidfd) => Ok(Made { child, pid, pidfd, cgroup: created.cgroup, start: created.start }),
        Err(error) => {
            // It exits when it cannot be started any more; one that hangs is made to.
            drop(created.start);
            child.kill();
            let reaper = Arc::clone(reaper);
            let ended = async move {
                reaper.wait(child).await;
            };
            let removal = tokio::spawn(remove_after(ended, created.cgroup));
            timeout(GRACE, removal).await.ok();
            Err(error)
        }
    }
}

/// Reaps what a failed creation has left, whenever that dies, then removes its cgroup.
fn bury(leftover: Leftover, reaper: &Arc<Reaper>) {
    let Leftover { processes, cgroup } = leftover;
    if processes.is_empty() && cgroup.is_none() {
        return;
    }
    let children: Vec<Child> = processes
        .into_iter()
        .map(|(pid, pidfd)| reaper.know(pid.as_raw().unsigned_abs(), pidfd))
        .collect();
    let reaper = Arc::clone(reaper);
    let ended = async move {
        for child in children {
            reaper.wait(child).await;
        }
    };
    tokio::spawn(remove_after(ended, cgroup));
}

async fn remove_after(ended: impl Future<Output = ()>, cgroup: Option<Cgroup>) {
    ended.await;
    let Some(cgroup) = cgroup else { return };
    if let Err(error) = remove_cgroup(&cgroup).await {
        log::warn(format_args!("remove the cgroup of a discarded process: {error}"));
    }
}

async fn execute(handle: StartHandle) -> Result<(), Error> {
    let starting = handle.release()?;
    let fd = watch_fd(starting, Interest::READABLE)
        .map_err(|source| Error::Io("watch a process", source))?;
    match timeout(EXECUTE, fd.readable()).await {
        Err(_) => {
            return Err(Error::Timeout { what: "execve", seconds: EXECUTE.as_secs() });
        }
        Ok(ready) => {
            ready.map_err(|source| Error::Io("wait for a process", source))?.retain_ready()
        }
    }
    Ok(fd.into_inner().0.finish(Duration::from_secs(1))?)
}
