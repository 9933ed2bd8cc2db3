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
//! - Worker and process die with their caller until the process executes its program: a caller
//!   that is killed leaves nobody behind who would still make a cgroup or a mount.
//! - Dropping a [`Creating`] kills and reaps whatever it forked and removes the cgroup; after
//!   [`Created`] the process is the caller's child, to reap by `pidfd`.
//!
//! In a user namespace the worker also mounts the root file system and `/dev`, with the host's
//! privileges ([`mod@outside`]), enters the namespace, and clones an init that has none of them.
//!
//! Hooks of the spec ([`mod@hooks`]) run before a program is executed: those for afterwards,
//! `poststart` and `poststop`, are refused with [`Error::Unsupported`].
//!
//! Not here: pods, logs, events, reaping of running containers.

mod creating;
mod error;
mod hooks;
mod image_volumes;
mod init;
mod outside;
mod plan;
mod request;
mod shared;
mod user;
mod wire;
mod worker;

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Instant;

use berth_cgroup::{Cgroup, CgroupPath};
use berth_sys::process::{ForkOptions, fork};
use oci_spec::runtime::{LinuxResources, Spec};

pub use creating::{Created, Creating, Leftover, StartHandle, Starting, Timing, start};
pub use error::{Error, Reported};
pub use outside::probe;
pub use request::{CreateRequest, ExecRequest, Stdio};
pub use shared::{MakingMounts, SharedMounts};
pub use user::Holder;

use plan::{ContainerPlan, ProcessPlan};

/// Begins to make a container: checks the spec and forks the worker.
///
/// # Errors
/// [`Error::InvalidSpec`], [`Error::Unsupported`], [`Error::Seccomp`], [`Error::Fork`],
/// [`Error::Threads`]; nothing has been made then.
pub fn create(request: CreateRequest<'_>) -> Result<Creating, Error> {
    let began = Instant::now();
    check_id(request.id)?;
    if !request.bundle.is_absolute() {
        return Err(Error::invalid("bundle", "is not an absolute path"));
    }
    let plan = ContainerPlan::new(request.id, request.spec, request.rootfs)?;
    check_stdio(&request.stdio, &plan.process)?;
    let (ours, theirs) = wire::pair().map_err(Error::setup("make a socket pair"))?;
    let around = worker::Surroundings {
        bundle: request.bundle,
        shared: request.shared,
        cgroups: request.cgroups,
        stdio: &request.stdio,
        socket: theirs.as_fd(),
    };
    let caller = rustix::process::getpid();
    let forked = fork(&worker_options(), |child| worker::create(child, &plan, &around, caller))
        .map_err(Error::fork("the worker"))?;
    let hooks = plan::RuntimeHooks {
        hooks: plan.hooks.runtime,
        about: plan.hooks.about,
        bundle: request.bundle.to_owned(),
    };
    let cgroup = (request.cgroups.clone(), plan.cgroup);
    Ok(Creating::new(ours, forked, Some(cgroup), Some(hooks), began))
}

/// Begins to make a further process in a running container.
///
/// # Errors
/// As [`create`].
pub fn exec(request: ExecRequest<'_>) -> Result<Creating, Error> {
    let began = Instant::now();
    check_id(request.id)?;
    let plan = plan::exec_process(request.id, request.spec, request.process)?;
    check_stdio(&request.stdio, &plan)?;
    let (ours, theirs) = wire::pair().map_err(Error::setup("make a socket pair"))?;
    let around = worker::Joined {
        init: request.init,
        cgroup: request.cgroup,
        stdio: &request.stdio,
        socket: theirs.as_fd(),
    };
    let caller = rustix::process::getpid();
    let forked = fork(&worker_options(), |child| worker::exec(child, &plan, &around, caller))
        .map_err(Error::fork("the worker"))?;
    Ok(Creating::new(ours, forked, None, None, began))
}

/// Quiet, so that a caller who reaps orphans by `wait(2)` for any child reaps neither a worker
/// nor a process that it does not know of yet.
fn worker_options() -> ForkOptions<'static> {
    ForkOptions { quiet: true, ..ForkOptions::default() }
}

/// The cgroup that [`create`] makes for container `id`: for who cleans up without a
/// [`Created`].
///
/// # Errors
/// [`Error::InvalidSpec`], [`Error::Unsupported`], [`Error::Cgroup`]; `create` refuses the
/// spec then as well.
pub fn cgroup_path(id: &str, spec: &Spec) -> Result<CgroupPath, Error> {
    check_id(id)?;
    plan::cgroup_path(id, spec)
}

/// Changes the limits of a running container. What `resources` does not name stays as it is,
/// and so do its devices. On failure everything is as it was.
///
/// # Errors
/// [`Error::InvalidSpec`], [`Error::Unsupported`], [`Error::Cgroup`].
pub fn update(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Error> {
    let limits = plan::new_limits(resources)?;
    cgroup.change(&limits).map(drop).map_err(worker::cgroup_error(cgroup.path()))
}

/// An id is part of names that others read; it is never part of a path of ours without this.
fn check_id(id: &str) -> Result<(), Error> {
    // NAME_MAX, less what a caller may put around it.
    const LONGEST: usize = 128;
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    let whole = Path::new(id).components().count() == 1 && id.starts_with(char::is_alphanumeric);
    if id.len() <= LONGEST && id.chars().all(sound) && whole {
        Ok(())
    } else {
        Err(Error::invalid("id", format!("{id:?} is not a container id")))
    }
}

fn check_stdio(stdio: &Stdio, plan: &ProcessPlan) -> Result<(), Error> {
    match (stdio, plan.terminal) {
        (Stdio::Terminal, true) | (Stdio::Fds { .. }, false) => Ok(()),
        _ => Err(Error::invalid("process.terminal", "does not fit the streams given")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_plain_word() {
        for good in ["a", "0f3c", "my-c_1.2+x"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\n", &"a".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
