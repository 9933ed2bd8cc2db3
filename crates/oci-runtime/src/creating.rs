//! The caller's side: from the fork of a worker to a program that runs.

use std::borrow::Cow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use berth_cgroup::{Cgroup, CgroupPath, Hierarchy};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, WaitIdStatus};

use crate::error::{AnyErrno, Error};
use crate::hooks::{self, Runner};
use crate::plan::RuntimeHooks;
use crate::wire::{self, Report};

/// How long killed processes may take to die, all together, before they are [`Leftover`]: one
/// that hangs in a file system dies when that answers, and the caller's thread has other work.
const DEATH: Duration = Duration::from_millis(200);
/// How long a process that is about to exit may take for it before it is killed.
const GRACE: Duration = Duration::from_millis(50);

/// How long the making of a process took, part by part.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Timing {
    /// Checking the spec, compiling its seccomp profile, and forking the worker.
    pub plan: Duration,
    /// From there until the process existed: its cgroup made, namespaces joined, cloned.
    pub worker: Duration,
    /// From there until it was ready: cgroup joined, mounts, root, devices, masks.
    pub init: Duration,
}

/// A process being made. Dropping it kills and reaps whatever there is already.
#[derive(Debug)]
pub struct Creating {
    socket: OwnedFd,
    worker: Option<Child>,
    process: Option<Child>,
    cgroup: Option<(Hierarchy, CgroupPath)>,
    /// To be run when the process asks for it.
    hooks: Option<RuntimeHooks>,
    runner: Option<Runner>,
    /// Whether there is something to undo.
    armed: bool,
    leftover: Leftover,
    timing: Timing,
    /// When the part began that is under way.
    part: Instant,
}

/// What is left of a creation when its processes were killed and took too long to die.
#[derive(Debug, Default)]
pub struct Leftover {
    /// Children of the caller, to be reaped with [`berth_sys::process::reap`].
    pub processes: Vec<(Pid, OwnedFd)>,
    /// The cgroup, to be removed once they are dead.
    pub cgroup: Option<Cgroup>,
}

/// A child that has not been reaped.
#[derive(Debug)]
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

/// A process that exists and waits for its start.
#[derive(Debug)]
pub struct Created {
    /// Its pid on the host. It is a child of the caller, who has to reap it: until its program
    /// is executed with [`berth_sys::process::reap`] alone, for its end gives no signal.
    pub pid: Pid,
    /// A close-on-exec pidfd of it.
    pub pidfd: OwnedFd,
    /// Master of its terminal, for [`crate::Stdio::Terminal`].
    pub console: Option<OwnedFd>,
    /// Its cgroup, if [`crate::create`] made one; the caller removes it after its end.
    pub cgroup: Option<Cgroup>,
    /// Lets it go. If this is dropped instead, the process exits by itself.
    pub start: StartHandle,
    /// How long it took.
    pub timing: Timing,
}

/// The right to start a created process, once.
#[derive(Debug)]
pub struct StartHandle {
    socket: OwnedFd,
}

/// A process on its way to `execve`.
#[derive(Debug)]
pub struct Starting {
    socket: OwnedFd,
}

impl AsFd for Creating {
    /// Readable when [`Creating::advance`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Creating {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Creating {
    /// `began` is when the call began that made it.
    pub(crate) fn new(
        socket: OwnedFd,
        worker: berth_sys::process::Forked,
        cgroup: Option<(Hierarchy, CgroupPath)>,
        hooks: Option<RuntimeHooks>,
        began: Instant,
    ) -> Self {
        let part = Instant::now();
        Self {
            socket,
            worker: Some(Child { pid: worker.pid, pidfd: worker.pidfd }),
            process: None,
            cgroup,
            hooks,
            runner: None,
            armed: true,
            leftover: Leftover::default(),
            timing: Timing { plan: part - began, ..Timing::default() },
            part,
        }
    }

    /// How long the part took that ends now.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.part, now)
    }

    /// Takes what has been reported so far, without blocking; `None` means that the answer is
    /// still to come and the descriptor will be readable again. Not to be called after an
    /// answer or an error.
    ///
    /// # Errors
    /// Whatever worker or process met; everything made has been undone by then.
    pub fn advance(&mut self) -> Result<Option<Created>, Error> {
        match self.take_reports() {
            Ok(None) => Ok(None),
            Ok(Some(console)) => self.complete(console).map(Some),
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    /// What could not be undone, or ended, in the short time that a caller can wait. To be asked
    /// for after an answer or an error; whoever does not, leaves zombies.
    pub fn leftover(&mut self) -> Leftover {
        self.undo();
        std::mem::take(&mut self.leftover)
    }

    /// Waits for the answer at most `deadline`, from now.
    ///
    /// # Errors
    /// As [`Creating::advance`], or [`Error::Timeout`]; everything made has been undone.
    pub fn wait(mut self, deadline: Duration) -> Result<Created, Error> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(created) = self.advance()? {
                return Ok(created);
            }
            if !readable(self.socket.as_fd(), end)? {
                return Err(Error::Timeout { what: "the worker".into() });
            }
        }
    }

    /// The console (or its absence) once the process is ready.
    fn take_reports(&mut self) -> Result<Option<Option<OwnedFd>>, Error> {
        loop {
            match wire::receive(self.socket.as_fd())? {
                None => return Ok(None),
                Some(Report::Hello(pid)) => {
                    self.process = Some(Child::of(pid)?);
                    self.timing.worker = self.lap();
                }
                Some(Report::Hooks) => self.run_hooks()?,
                Some(Report::Ready(console)) => {
                    self.timing.init = self.lap();
                    return Ok(Some(console));
                }
                Some(Report::Failed(error)) => return Err(error),
                Some(Report::End) => return Err(self.ended()),
            }
        }
    }

    /// Has the hooks run that the process waits for.
    fn run_hooks(&mut self) -> Result<(), Error> {
        let (Some(hooks), Some(process)) = (self.hooks.take(), &self.process) else {
            return Err(Error::Protocol("a process that asks for hooks".into()));
        };
        let pid = rustix::process::Pid::from_raw(process.pid.as_raw())
            .ok_or_else(|| Error::Protocol("a process without a number".into()))?;
        self.runner = Some(hooks::begin(&hooks, pid, self.socket.as_fd())?);
        Ok(())
    }

    /// Has the runner of hooks end, which kills them first. It is not killed itself: nobody
    /// else knows what the hooks have started.
    fn end_runner(&mut self, until: Instant) {
        if let Some(Runner { forked, alive }) = self.runner.take() {
            drop(alive);
            let runner = Child { pid: forked.pid, pidfd: forked.pidfd };
            if let Err(runner) = runner.reaped(until) {
                self.leftover.processes.push((runner.pid, runner.pidfd));
            }
        }
    }

    fn complete(&mut self, console: Option<OwnedFd>) -> Result<Created, Error> {
        // The worker ends right after it has cloned the process; one that does not is stopped
        // or traced, and of no further use.
        if let Some(worker) = self.worker.take() {
            self.end(worker, GRACE, Instant::now() + DEATH);
        }
        // It ends right after it has answered.
        self.end_runner(Instant::now() + DEATH);
        let cgroup = self.cgroup.as_ref().map(|(hierarchy, path)| hierarchy.at(path));
        let socket = self.socket.try_clone().map_err(Error::setup("copy a socket"))?;
        let process = self
            .process
            .take()
            .ok_or_else(|| Error::Protocol("a process that did not say hello".into()))?;
        self.armed = false;
        Ok(Created {
            pid: process.pid,
            pidfd: process.pidfd,
            console,
            cgroup,
            start: StartHandle { socket },
            timing: self.timing,
        })
    }

    /// Why the socket has ended without an answer.
    fn ended(&mut self) -> Error {
        let mut outcomes = Vec::new();
        let end = Instant::now() + DEATH;
        for (name, child) in [("worker", self.worker.take()), ("process", self.process.take())] {
            if let Some(outcome) = child.and_then(|child| self.end(child, GRACE, end)) {
                outcomes.push(format!("{name}: {outcome}"));
            }
        }
        Error::Gone { what: "the new process".into(), outcome: outcomes.join(", ") }
    }

    /// Kills and reaps what there is, then removes the cgroup. Safe to repeat.
    fn undo(&mut self) {
        if !std::mem::take(&mut self.armed) {
            return;
        }
        self.end_runner(Instant::now() + DEATH);
        let end = Instant::now() + DEATH;
        if let Some(worker) = self.worker.take() {
            self.end(worker, Duration::ZERO, end);
        }
        // The worker may have been killed between cloning the process and now: its hello is
        // in the socket, or will be, or the socket ends.
        while self.process.is_none() {
            match wire::receive(self.socket.as_fd()) {
                Ok(Some(Report::Hello(pid))) => self.process = Child::of(pid).ok(),
                Ok(Some(Report::End)) | Err(_) => break,
                Ok(Some(_)) => {}
                Ok(None) => match readable(self.socket.as_fd(), end) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => break,
                },
            }
        }
        if let Some(process) = self.process.take() {
            self.end(process, Duration::ZERO, end);
        }
        if let Some((hierarchy, path)) = self.cgroup.take() {
            // What cannot be removed (somebody else's process is in it) is found by the sweep
            // of whoever owns the path; the first failure is the one to report.
            let cgroup = hierarchy.at(&path);
            if cgroup.remove().is_err() {
                self.leftover.cgroup = Some(cgroup);
            }
        }
    }

    /// Ends a child and says how it ended, or keeps it for later.
    fn end(&mut self, child: Child, grace: Duration, until: Instant) -> Option<String> {
        child.end(grace, until).unwrap_or_else(|child| {
            self.leftover.processes.push((child.pid, child.pidfd));
            None
        })
    }
}

impl Drop for Creating {
    fn drop(&mut self) {
        self.undo();
    }
}

impl Child {
    /// A child of this process, known by its pid; it cannot be another's, since nobody but us
    /// reaps it.
    fn of(pid: rustix::process::Pid) -> Result<Self, Error> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(Error::setup("open the new process"))?;
        Ok(Self { pid: Pid::from_raw(pid.as_raw_nonzero().get()), pidfd })
    }

    /// Ends it, if it does not end within `grace` by itself, and says how it did; itself if it
    /// is still there at `until`.
    fn end(self, grace: Duration, until: Instant) -> Result<Option<String>, Self> {
        let ended = matches!(readable(self.pidfd.as_fd(), Instant::now() + grace), Ok(true));
        if !ended {
            // ESRCH would mean that it has just ended.
            rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
        }
        self.reaped(until)
    }

    /// How it ended; itself if it is still there at `until`.
    fn reaped(self, until: Instant) -> Result<Option<String>, Self> {
        if !matches!(readable(self.pidfd.as_fd(), until), Ok(true)) {
            return Err(self);
        }
        match berth_sys::process::reap(self.pidfd.as_fd()) {
            // Somebody traces it, and has not seen its end yet (ptrace(2)).
            Ok(None) => Err(self),
            status => Ok(status.ok().flatten().as_ref().map(describe)),
        }
    }
}

pub(crate) fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

impl StartHandle {
    /// Lets the process go, without waiting for it to execute its program.
    ///
    /// # Errors
    /// [`Error::Gone`] if it has ended meanwhile.
    pub fn release(self) -> Result<Starting, Error> {
        match wire::send_go(self.socket.as_fd()) {
            Ok(()) => Ok(Starting { socket: self.socket }),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(Error::Gone {
                what: "the created process".into(),
                outcome: "before its start".to_owned(),
            }),
            Err(errno) => Err(Error::setup("start the process")(errno)),
        }
    }
}

impl AsFd for Starting {
    /// Readable when [`Starting::finish`] will not block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Starting {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Starting {
    /// Waits at most `deadline`, from now, until the program is executed.
    ///
    /// A process that is killed on its way (by the memory controller, say) counts as executed:
    /// its exit status tells.
    ///
    /// # Errors
    /// [`Error::Exec`] names the program that could not be executed; the process has then
    /// ended by itself and is to be reaped. [`Error::Timeout`].
    pub fn finish(self, deadline: Duration) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        loop {
            match wire::receive(self.socket.as_fd())? {
                Some(Report::End) => return Ok(()),
                Some(Report::Failed(error)) => return Err(error),
                Some(Report::Hello(_) | Report::Hooks | Report::Ready(_)) => {
                    return Err(Error::Protocol("a process that was ready".into()));
                }
                None => {
                    if !readable(self.socket.as_fd(), end)? {
                        return Err(Error::Timeout { what: Cow::Borrowed("the process") });
                    }
                }
            }
        }
    }
}

/// Starts a created process and waits, at most `deadline`, until its program is executed.
///
/// # Errors
/// As [`StartHandle::release`] and [`Starting::finish`].
pub fn start(handle: StartHandle, deadline: Duration) -> Result<(), Error> {
    handle.release()?.finish(deadline)
}

/// Waits until `fd` is readable; `false` when `end` has passed.
pub(crate) fn readable(fd: BorrowedFd<'_>, end: Instant) -> Result<bool, Error> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up: a timeout of zero would spin through the last millisecond.
        let milliseconds = left.as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(Error::setup::<AnyErrno>("poll")(errno.into())),
        }
    }
}
