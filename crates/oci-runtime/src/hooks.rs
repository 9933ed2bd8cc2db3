//! Running hooks: one after the other, by a runner of their own.
//!
//! ```text
//!  caller          init                                   runner            hook
//!    │ ◀── hooks ───┤  root mounted
//!    ├── fork ──────────────────────────────────────────▶ prestart,
//!    │              │ ◀──────────────── done, or failure ─┤ createRuntime ──▶ each
//!    │              ├── fork ────────────────────────────▶ createContainer ─▶ each
//!    │              │ pivot_root
//!    │ ◀── ready ───┤
//!    ├── go ───────▶├── fork ────────────────────────────▶ startContainer ──▶ each
//!    │              execve(program)
//! ```
//!
//! A runner is the subreaper of its hooks, so it knows all their descendants, and kills them
//! when a hook fails, takes too long, or nobody waits for the answer any more: it holds the
//! one end of a pipe whose other end its parent has, dead or alive. What a hook that succeeds
//! leaves running is left (it may have meant to). A hook has its state in a file on standard
//! input, so that one that does not read keeps nobody waiting; the first of its output is part
//! of the error.

use std::convert::Infallible;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use berth_sys::descriptor::{close_all_but, close_on_exec_from};
use berth_sys::exec::{StringVector, execve};
use berth_sys::process::{ForkOptions, Forked, InChild, fork};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{DumpableBehavior, Signal, WaitIdOptions, WaitIdStatus};

use crate::creating::{describe, readable};
use crate::error::Error;
use crate::init;
use crate::plan::{HookPlan, Hooks, ProcessPlan, RuntimeHooks, State};
use crate::wire::{self, Report};
use crate::worker::die_with_parent;

/// What is kept of the output of a hook, bytes.
const OUTPUT: usize = 2048;
/// How long the answer of a runner may take beside the time of its hooks.
const GRACE: Duration = Duration::from_secs(5);

/// The runner of the hooks that run in the caller's namespaces.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) forked: Forked,
    /// The runner gives up when this is closed.
    pub(crate) alive: OwnedFd,
}

/// A hook, and how it is executed; returns only when that failed.
struct Step<'a> {
    hook: &'a HookPlan,
    execute: Box<dyn Fn() -> Result<Infallible, Error> + 'a>,
}

/// Begins to run the hooks of the caller's namespaces; `process` is told their outcome over
/// `socket`, the caller's end.
pub(crate) fn begin(
    runtime: &RuntimeHooks,
    process: rustix::process::Pid,
    socket: BorrowedFd<'_>,
) -> Result<Runner, Error> {
    let (watched, alive) = pipe()?;
    let options = ForkOptions { quiet: true, ..ForkOptions::default() };
    let run = |child: &InChild| {
        let ready = || {
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
                .map_err(Error::setup("make the runner of hooks not dumpable"))?;
            berth_sys::signal::reset_to_default().map_err(Error::setup("reset signals"))?;
            close_all_but(child, &[socket, watched.as_fd()])
                .map_err(Error::setup("close the caller's descriptors"))?;
            rustix::process::setsid().map_err(Error::setup("start a session"))
        };
        let steps: Vec<_> =
            runtime.hooks.iter().map(|hook| on_host(hook, &runtime.bundle)).collect();
        let state = runtime.about.state("creating", process, &runtime.bundle);
        answer(socket, ready().and_then(|_| run_all(&steps, &state, watched.as_fd())))
    };
    let forked = fork(&options, run).map_err(Error::fork("the runner of hooks"))?;
    Ok(Runner { forked, alive })
}

/// What init does between its mounts and its new root: has the caller's hooks run, and runs
/// the container's. Nothing for a container without hooks.
pub(crate) fn before_pivot(
    hooks: &Hooks,
    bundle: &Path,
    socket: BorrowedFd<'_>,
) -> Result<(), Error> {
    if !hooks.runtime.is_empty() {
        wire::send_hooks(socket).map_err(Error::setup("ask for hooks"))?;
        wait(socket, &hooks.runtime)?;
    }
    if hooks.container.is_empty() {
        return Ok(());
    }
    let state = hooks.about.state("creating", rustix::process::getpid(), bundle);
    run_here(hooks.container.iter().map(|hook| on_host(hook, bundle)).collect(), &state)
}

/// What init does before it executes its program. Nothing for a container without hooks.
pub(crate) fn before_start(hooks: &Hooks, bundle: &Path) -> Result<(), Error> {
    if hooks.start.is_empty() {
        return Ok(());
    }
    let state = hooks.about.state("created", rustix::process::getpid(), bundle);
    run_here(hooks.start.iter().map(|(hook, plan)| in_container(hook, plan)).collect(), &state)
}

/// Runs hooks in this process's namespaces.
fn run_here(steps: Vec<Step<'_>>, state: &State<'_>) -> Result<(), Error> {
    let (ours, theirs) = wire::pair().map_err(Error::setup("make a socket pair"))?;
    let (watched, alive) = pipe()?;
    let options = ForkOptions::default();
    let run = |child: &InChild| {
        // Init's own end of the pipe too: the runner is to hear of init's death.
        let ready = close_all_but(child, &[theirs.as_fd(), watched.as_fd()])
            .map_err(Error::setup("close the descriptors of init"));
        answer(theirs.as_fd(), ready.and_then(|()| run_all(&steps, state, watched.as_fd())))
    };
    let runner = fork(&options, run).map_err(Error::fork("the runner of hooks"))?;
    drop((theirs, watched));
    let hooks: Vec<_> = steps.iter().map(|step| step.hook.clone()).collect();
    let outcome = wait(ours.as_fd(), &hooks);
    // It ends by itself now, at the latest.
    drop(alive);
    readable(runner.pidfd.as_fd(), Instant::now() + GRACE)?;
    berth_sys::process::reap(runner.pidfd.as_fd()).map_err(Error::setup("reap hooks"))?;
    outcome
}

/// Waits for what a runner answers.
fn wait(socket: BorrowedFd<'_>, hooks: &[HookPlan]) -> Result<(), Error> {
    let end = Instant::now() + GRACE + hooks.iter().map(|hook| hook.timeout).sum();
    loop {
        match wire::receive(socket)? {
            Some(Report::Ready(None)) => return Ok(()),
            Some(Report::Failed(error)) => return Err(error),
            Some(Report::End) => {
                let outcome = "without an answer".to_owned();
                return Err(Error::Gone { what: "the runner of hooks".into(), outcome });
            }
            Some(_) => return Err(Error::Protocol("the runner of hooks".into())),
            None if readable(socket, end)? => {}
            None => return Err(Error::Timeout { what: "the runner of hooks".into() }),
        }
    }
}

fn answer(socket: BorrowedFd<'_>, outcome: Result<(), Error>) -> u8 {
    match outcome {
        Ok(()) => u8::from(wire::send_ready(socket, None).is_err()),
        Err(error) => {
            wire::send_failure(socket, &error);
            1
        }
    }
}

fn run_all(steps: &[Step<'_>], state: &State<'_>, watched: BorrowedFd<'_>) -> Result<(), Error> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(Error::setup("adopt what hooks leave"))?;
    let json = serde_json::to_vec(state)
        .map_err(|error| Error::invalid("annotations", error.to_string()))?;
    for step in steps {
        run_one(step, &json, watched)?;
    }
    Ok(())
}

fn run_one(step: &Step<'_>, state: &[u8], watched: BorrowedFd<'_>) -> Result<(), Error> {
    let input = memory(state)?;
    let (output, theirs) = pipe()?;
    let child = |_: &InChild| {
        let started = rustix::process::setpgid(None, None).map_err(Error::setup("start a hook"));
        let streams = [input.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let started = started.and_then(|()| init::stdio::put(streams));
        let Err(error) = started.and_then(|()| (step.execute)());
        // Into the output, which becomes part of the error.
        rustix::io::write(&theirs, error.to_string().as_bytes()).ok();
        error.shell_code().unwrap_or(1)
    };
    let hook = fork(&ForkOptions::default(), child).map_err(Error::fork("a hook"))?;
    drop(theirs);
    let mut said = Vec::new();
    let problem = match follow(&hook, &output, watched, step.hook.timeout, &mut said)? {
        None => format!("it took longer than {} s", step.hook.timeout.as_secs()),
        Some(Ended::Abandoned) => "nobody waits for it any more".to_owned(),
        Some(Ended::Itself(status)) if status.exit_status() == Some(0) => return Ok(()),
        Some(Ended::Itself(status)) => describe(&status),
    };
    kill_all(&hook);
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    let colon = if said.is_empty() { "" } else { ": " };
    Err(Error::Hook {
        point: step.hook.point.into(),
        path: step.hook.path.to_string_lossy().into_owned(),
        problem: format!("{problem}{colon}{said}"),
    })
}

enum Ended {
    Itself(WaitIdStatus),
    Abandoned,
}

/// Reads the output of a hook until that has ended; `None` if it takes too long.
fn follow(
    hook: &Forked,
    output: &OwnedFd,
    watched: BorrowedFd<'_>,
    timeout: Duration,
    said: &mut Vec<u8>,
) -> Result<Option<Ended>, Error> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let end = Instant::now() + timeout;
    let mut open = true;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = Timespec::try_from(left).ok();
        let mut polled = vec![
            PollFd::new(&hook.pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(watched, PollFlags::IN),
        ];
        if open {
            polled.push(PollFd::new(output, PollFlags::IN));
        }
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::setup("poll")(errno)),
        }
        let seen: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if seen.get(2).is_some_and(|seen| *seen) {
            open = take(output, said)?;
        }
        if seen[1] {
            return Ok(Some(Ended::Abandoned));
        }
        if seen[0] {
            let status = berth_sys::process::reap(hook.pidfd.as_fd());
            if let Some(status) = status.map_err(Error::setup("reap a hook"))? {
                return Ok(Some(Ended::Itself(status)));
            }
        }
    }
}

/// Takes some output; `false` at its end.
fn take(output: &OwnedFd, said: &mut Vec<u8>) -> Result<bool, Error> {
    let mut buffer = [0u8; 4096];
    match rustix::io::read(output, &mut buffer[..]) {
        Ok(0) => Ok(false),
        Ok(count) => {
            let room = OUTPUT.saturating_sub(said.len());
            said.extend(buffer.iter().take(count.min(room)));
            Ok(true)
        }
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(true),
        Err(errno) => Err(Error::setup("read the output of a hook")(errno)),
    }
}

/// Kills a hook and all that came of it, and waits for their end. Its group first; what left
/// that is a child of this process once its parents are dead, and is found where there is a
/// procfs (a container that has none is killed whole).
fn kill_all(hook: &Forked) {
    if let Some(group) = rustix::process::Pid::from_raw(hook.pid.as_raw()) {
        rustix::process::kill_process_group(group, Signal::KILL).ok();
    }
    // Before it has made its group.
    rustix::process::pidfd_send_signal(&hook.pidfd, Signal::KILL).ok();
    let options = WaitIdOptions::EXITED;
    loop {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for child in children.split_whitespace() {
            // The number is that of the procfs, which need not be of this pid namespace.
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let path = format!("/proc/{child}");
            if let Ok(child) = rustix::fs::openat(CWD, path, flags, Mode::empty()) {
                rustix::process::pidfd_send_signal(&child, Signal::KILL).ok();
            }
        }
        if children.is_empty() {
            break;
        }
        match rustix::process::waitid(rustix::process::WaitId::All, options) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
}

/// A program of the host's.
fn on_host<'a>(hook: &'a HookPlan, bundle: &'a Path) -> Step<'a> {
    let execute = move || {
        die_with_parent()?;
        close_on_exec_from(3).map_err(Error::setup("mark descriptors close-on-exec"))?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        rustix::process::chdir(bundle).map_err(Error::setup("enter the bundle"))?;
        let arguments = StringVector::new(hook.arguments.clone());
        let environment = StringVector::new(hook.environment.clone());
        execve(&hook.path, &arguments, &environment).map_err(|errno| Error::Exec {
            program: hook.path.to_string_lossy().into_owned(),
            errno,
        })
    };
    Step { hook, execute: Box::new(execute) }
}

/// A program of the container's: it has no right that the container's own has not.
fn in_container<'a>(hook: &'a HookPlan, plan: &'a ProcessPlan) -> Step<'a> {
    Step { hook, execute: Box::new(|| init::finish::execute(plan)) }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::setup("make a pipe"))
}

/// A file in memory, to be read from its begin.
fn memory(content: &[u8]) -> Result<OwnedFd, Error> {
    let create = |flags| rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC | flags);
    // Linux 6.3 to 6.5 can refuse a call without the seal (`vm.memfd_noexec`); before, the
    // kernel does not know it.
    let file = match create(MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => create(MemfdFlags::empty()),
        created => created,
    };
    let file = file.map_err(Error::setup("make the state of a hook"))?;
    let mut file = std::fs::File::from(file);
    let written = file.write_all(content).and_then(|()| file.rewind());
    written.map_err(Error::setup("write the state of a hook"))?;
    Ok(file.into())
}
