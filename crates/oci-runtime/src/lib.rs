//! An OCI runtime as a library: synchronous, for a caller with one thread.
//!
//! [`create`] and [`exec`] fork a worker and return at once; the caller polls the descriptor
//! of the [`Creating`] they give (or waits with a deadline) until there is a [`Created`]
//! process, stopped just before `execve`. [`StartHandle`] lets it go.
//!
//! ```text
//!  caller (shim)           worker                      init (or exec'd process)
//!    │ parse spec, compile seccomp
//!    ├── fork ───────────────▶
//!    │                        cgroup: make, limit, open
//!    │                        clone bind sources
//!    │                        setns: net ipc uts pid
//!    │                        ├── clone3, CLONE_PARENT ──▶   a child of the caller
//!    │ ◀─────────────────────────────────────── hello ───┤   (kernel adds its pid)
//!    │                        exit                        join cgroup, mounts, pivot_root,
//!    │                                                    devices, masks, console
//!    │ ◀──────────────────────── ready (console master) ──┤
//!  Created                                                │ waits
//!    ├── go ──────────────────────────────────────────▶   user, capabilities, seccomp
//!  Starting                                               execve(program)
//!    │ ◀───────────── end of file: executed, or failure ──┘
//! ```
//!
//! All of it runs over one sequenced-packet socket pair. Worker and init hold one end, which
//! is close-on-exec, the caller the other, so its end of file means that nobody is left who
//! could report. A failure is an [`Error`], sent as such by whoever met it.
//!
//! Invariants:
//! - Every path inside a container's root goes by descriptor through `root` (openat2 with
//!   `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`); mounts are made detached and moved onto
//!   descriptors. The host's mount namespace is never changed.
//! - procfs and the null device are those of the host, opened and checked before the
//!   container's root is entered.
//! - A program starts with descriptors 0, 1 and 2 only, a working directory proven to be
//!   inside its root, default signals, and no inheritable capability that is not ambient.
//! - Init is not dumpable before `execve`.
//! - Dropping a [`Creating`] kills and reaps whatever it forked and removes the cgroup; after
//!   [`Created`] the process is the caller's child, to reap by `pidfd`.
//!
//! Not here: pods, logs, events, reaping of running containers, hooks and user namespaces
//! (both refused with [`Error::Unsupported`]).

mod error;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use berth_cgroup::{Cgroup, Hierarchy};
use berth_model::mount::Mount;
use nix::unistd::Pid;
use oci_spec::runtime::{Process, Spec};

pub use error::{Error, Reported};

/// Standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// These descriptors become 0, 1 and 2; the caller's copies are closed by the call.
    Fds {
        /// Read by the process.
        stdin: OwnedFd,
        /// Written by the process.
        stdout: OwnedFd,
        /// Written by the process.
        stderr: OwnedFd,
    },
    /// A new pseudo-terminal of the container's own devpts; its master is [`Created::console`].
    Terminal,
}

/// What the containers of one sandbox share: today one tmpfs for `/dev/shm`.
///
/// It stays mounted in a small private mount namespace that this value keeps alive (design
/// decision 19). A mount of type `berth-shared` and source `shm` in a spec is a clone of it.
#[derive(Debug, Default)]
pub struct SharedMounts {
    _namespace: Option<OwnedFd>,
}

impl SharedMounts {
    /// Nothing shared: a spec that names `berth-shared` is refused.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Makes the namespace with a tmpfs of at most `shm_size` bytes.
    ///
    /// # Errors
    /// [`Error::Fork`] unless the caller has one thread; [`Error::Setup`].
    pub fn new(_shm_size: u64) -> Result<Self, Error> {
        todo!()
    }
}

/// A container to be made.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Its id; names its session keyring, nothing else.
    pub id: &'a str,
    /// Bundle directory; a relative `root.path` of the spec starts here.
    pub bundle: &'a Path,
    /// What it shall be (`config.json`).
    pub spec: &'a Spec,
    /// Mounts that make up its root file system, performed in its own mount namespace; empty
    /// when the directory `root.path` is it already.
    pub rootfs: &'a [Mount],
    /// Its standard streams; [`Stdio::Terminal`] exactly if `process.terminal` is set.
    pub stdio: Stdio,
    /// What its sandbox shares.
    pub shared: &'a SharedMounts,
    /// The host's cgroups.
    pub cgroups: &'a Hierarchy,
}

/// A further process in a running container.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The container's id.
    pub id: &'a str,
    /// A pidfd of its init, which must not have been reaped.
    pub init: BorrowedFd<'a>,
    /// The container's spec: its seccomp profile and namespaces apply.
    pub spec: &'a Spec,
    /// The process to run.
    pub process: &'a Process,
    /// Its standard streams; [`Stdio::Terminal`] exactly if `process.terminal` is set.
    pub stdio: Stdio,
    /// The container's cgroup; `None` if it has none of its own.
    pub cgroup: Option<&'a Cgroup>,
}

/// A process being made. Dropping it kills and reaps whatever there is already.
#[derive(Debug)]
pub struct Creating {
    socket: OwnedFd,
}

impl AsFd for Creating {
    /// Readable when [`Creating::advance`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Creating {
    /// Takes what has been reported so far, without blocking; `None` means that the answer is
    /// still to come and the descriptor will be readable again. Not to be called after an
    /// answer or an error.
    ///
    /// # Errors
    /// Whatever worker or init met; everything made has been undone by then.
    pub fn advance(&mut self) -> Result<Option<Created>, Error> {
        todo!()
    }

    /// Waits for the answer at most `deadline`, from now.
    ///
    /// # Errors
    /// As [`Creating::advance`], or [`Error::Timeout`]; everything made has been undone.
    pub fn wait(self, _deadline: Duration) -> Result<Created, Error> {
        todo!()
    }
}

/// A process that exists and waits for its start.
#[derive(Debug)]
pub struct Created {
    /// Its pid on the host. It is a child of the caller, who has to reap it.
    pub pid: Pid,
    /// A close-on-exec pidfd of it.
    pub pidfd: OwnedFd,
    /// Master of its terminal, for [`Stdio::Terminal`].
    pub console: Option<OwnedFd>,
    /// Its cgroup, if [`create`] made one; the caller removes it after the container's end.
    pub cgroup: Option<Cgroup>,
    /// Lets it go. If this is dropped instead, the process exits by itself.
    pub start: StartHandle,
}

/// The right to start a created process, once.
#[derive(Debug)]
pub struct StartHandle {
    socket: OwnedFd,
}

impl StartHandle {
    /// Lets the process go, without waiting for it to execute its program.
    ///
    /// # Errors
    /// [`Error::Gone`] if it has ended meanwhile.
    pub fn release(self) -> Result<Starting, Error> {
        Ok(Starting { socket: self.socket })
    }
}

/// A process on its way to `execve`.
#[derive(Debug)]
pub struct Starting {
    socket: OwnedFd,
}

impl AsFd for Starting {
    /// Readable when [`Starting::finish`] will not block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Starting {
    /// Waits at most `deadline`, from now, until the program is executed.
    ///
    /// # Errors
    /// [`Error::Exec`] names the program that could not be executed; the process has then
    /// ended by itself and is to be reaped. [`Error::Timeout`].
    pub fn finish(self, _deadline: Duration) -> Result<(), Error> {
        todo!()
    }
}

/// Starts a created process and waits, at most `deadline`, until its program is executed.
///
/// # Errors
/// As [`StartHandle::release`] and [`Starting::finish`].
pub fn start(handle: StartHandle, deadline: Duration) -> Result<(), Error> {
    handle.release()?.finish(deadline)
}

/// Begins to make a container: checks the spec and forks the worker.
///
/// # Errors
/// [`Error::InvalidSpec`], [`Error::Unsupported`], [`Error::Seccomp`], [`Error::Fork`].
pub fn create(_request: CreateRequest<'_>) -> Result<Creating, Error> {
    todo!()
}

/// Begins to make a further process in a running container.
///
/// # Errors
/// As [`create`].
pub fn exec(_request: ExecRequest<'_>) -> Result<Creating, Error> {
    todo!()
}
