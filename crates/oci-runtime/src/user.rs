//! User namespaces: made by a process that lives for nothing else, and entered.
//!
//! Who makes a user namespace has every capability in it and none outside, so all that needs
//! the host's root happens before: descriptors of cgroups, mounts and devices are opened, and
//! whatever has an owner is given to the ids that the namespace maps.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use berth_model::{IdMappings, IdRange};
use berth_sys::process::{ForkOptions, InChild, fork};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Rlimit, Signal, Uid, getrlimit, setrlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::creating::readable;
use crate::error::Error;
use crate::init::procfs::Procfs;
use crate::init::stdio;
use crate::plan::{Namespace, ProcessPlan, UserNamespace};
use crate::request::Stdio;
use crate::wire::{self, Report};
use crate::worker::become_worker;

/// How long making a namespace may take: it is some ten system calls.
const MAKING: Duration = Duration::from_secs(10);
/// How long its process may take to die.
const DEATH: Duration = Duration::from_secs(1);

/// A process in namespaces of its own, which exist as long as it does or somebody has them
/// open. It does nothing, and ends with this value.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    pidfd: OwnedFd,
    socket: OwnedFd,
}

impl Holder {
    /// Makes a user namespace in which ids lie as `ids` says, and the namespaces `also`, which
    /// it owns; `inside` is run in all of them, as their root.
    ///
    /// # Errors
    /// [`Error::Threads`], [`Error::Fork`], [`Error::Setup`] (the kernel refuses the mappings
    /// with `EINVAL` or `EPERM`), and those of `inside`.
    pub fn new(
        ids: &IdMappings,
        also: CloneFlags,
        inside: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let (socket, theirs) = wire::pair().map_err(Error::setup("make a socket pair"))?;
        let namespaces = Some(CloneFlags::CLONE_NEWUSER | also);
        let options = ForkOptions { namespaces, quiet: true, ..ForkOptions::default() };
        let caller = rustix::process::getpid();
        let forked = fork(&options, |child| hold(child, theirs.as_fd(), caller, inside))
            .map_err(Error::fork("the holder of a user namespace"))?;
        drop(theirs);
        let holder = Self { pid: forked.pid, pidfd: forked.pidfd, socket };
        holder.map("uid_map", &ids.uids)?;
        holder.map("gid_map", &ids.gids)?;
        wire::send_go(holder.socket.as_fd()).map_err(Error::setup("release the holder"))?;
        holder.ready()?;
        Ok(holder)
    }

    /// Opens one of its namespaces: `user`, `net`, `ipc`, `uts`.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn open(&self, kind: &str) -> Result<OwnedFd, Error> {
        // It is not reaped yet, so its pid is its own.
        let path = format!("/proc/{}/ns/{kind}", self.pid);
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::setup("open a namespace of the holder"))
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The kernel takes all ranges in one write, once (user_namespaces(7)).
    fn map(&self, file: &str, ranges: &[IdRange]) -> Result<(), Error> {
        let line =
            |range: &IdRange| format!("{} {} {}\n", range.container, range.host, range.length);
        let text: String = ranges.iter().map(line).collect();
        std::fs::write(format!("/proc/{}/{file}", self.pid), text)
            .map_err(Error::setup("map the ids of a user namespace"))
    }

    fn ready(&self) -> Result<(), Error> {
        let end = Instant::now() + MAKING;
        loop {
            match wire::receive(self.socket.as_fd())? {
                Some(Report::Ready(_)) => return Ok(()),
                Some(Report::Failed(error)) => return Err(error),
                Some(Report::Hello(_) | Report::Hooks) => {
                    return Err(Error::Protocol("the holder of a user namespace".into()));
                }
                Some(Report::End) => {
                    let what = "the holder of a user namespace".into();
                    return Err(Error::Gone { what, outcome: "unknown".to_owned() });
                }
                None if readable(self.socket.as_fd(), end)? => {}
                None => return Err(Error::Timeout { what: "the holder".into() }),
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // One that has ended by itself is what is wanted.
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
        if matches!(readable(self.pidfd.as_fd(), Instant::now() + DEATH), Ok(true)) {
            berth_sys::process::reap(self.pidfd.as_fd()).ok();
        }
    }
}

/// Runs the holder; its exit code.
fn hold(
    child: &InChild,
    socket: BorrowedFd<'_>,
    caller: rustix::process::Pid,
    inside: impl FnOnce() -> Result<(), Error>,
) -> u8 {
    let made = berth_sys::descriptor::close_all_but(child, &[socket])
        .map_err(Error::setup("close the caller's descriptors"))
        .and_then(|()| become_worker(caller))
        .and_then(|()| wire::wait_for_go(socket).map_err(Error::setup("wait for the ids")))
        .and_then(|_| become_root())
        // Another user is another death signal (prctl(2)).
        .and_then(|()| become_worker(caller))
        .and_then(|()| inside());
    if let Err(error) = made {
        wire::send_failure(socket, &error);
        return 1;
    }
    // Ends with the caller, who never says go again.
    u8::from(wire::send_ready(socket, None).is_err() || wire::wait_for_go(socket).is_err())
}

/// From an id that the user namespace does not map to its root: files could not be made
/// otherwise, and would belong to nobody.
pub(crate) fn become_root() -> Result<(), Error> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    // These are the bare system calls, for the calling thread alone; it is the only one.
    set_thread_groups(&[]).map_err(Error::setup("drop the caller's groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(Error::setup("become the namespace's group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(Error::setup("become the namespace's root"))
}

/// The user namespace of a container in the making.
#[derive(Debug)]
pub(crate) struct Users<'a> {
    namespace: OwnedFd,
    pub(crate) ids: &'a IdMappings,
}

impl<'a> Users<'a> {
    /// Opens it, or makes it.
    pub(crate) fn of(
        plan: &'a UserNamespace,
        open: impl FnOnce(&Namespace) -> Result<OwnedFd, Error>,
    ) -> Result<Self, Error> {
        let namespace = match &plan.join {
            Some(existing) => open(existing)?,
            None => Holder::new(&plan.ids, CloneFlags::empty(), || Ok(()))?.open("user")?,
        };
        Ok(Self { namespace, ids: &plan.ids })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Moves the calling process there, as its root.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        setns(&self.namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(Error::setup("join the user namespace"))?;
        become_root()
    }
}

/// Has a bind mount show ids as `ids` says, by the user namespace of the container if that
/// says the same.
pub(crate) fn map_mount(
    mount: BorrowedFd<'_>,
    path: &Path,
    ids: &IdMappings,
    users: Option<&Users<'_>>,
) -> Result<(), Error> {
    let set = |user: BorrowedFd<'_>| {
        berth_sys::mount::mount_set_ids(mount, user)
            .map_err(|source| Error::UnmappedMount { path: path.to_owned(), source })
    };
    match users.filter(|users| users.ids == ids) {
        Some(users) => set(users.fd()),
        None => set(Holder::new(ids, CloneFlags::empty(), || Ok(()))?.open("user")?.as_fd()),
    }
}

/// What a process needs of the host's root before it enters a user namespace, where limits
/// cannot be raised, nor the OOM score lowered, nor a stream of the host be given away.
pub(crate) fn prepare(plan: &ProcessPlan, stdio: &Stdio, ids: &IdMappings) -> Result<(), Error> {
    if let Some(score) = plan.oom_score_adj {
        Procfs::of_host()?.set_oom_score_adj(score)?;
    }
    for limit in &plan.limits {
        let own = getrlimit(limit.resource);
        let lower = matches!((own.maximum, limit.hard), (Some(own), Some(hard)) if hard <= own);
        if own.maximum.is_some() && !lower {
            // Only the hard limit, and only upwards: what is wanted is set at the end, and a
            // limit that the host does not let us raise is clamped then.
            setrlimit(limit.resource, Rlimit { current: own.current, maximum: limit.hard }).ok();
        }
    }
    if let Stdio::Fds { stdin, stdout, stderr } = stdio {
        let uid = ids.host_uid(plan.user.uid).ok_or_else(|| unmapped("user", plan.user.uid))?;
        for stream in [stdin, stdout, stderr] {
            stdio::give(stream.as_fd(), uid)?;
        }
    }
    Ok(())
}

pub(crate) fn unmapped(kind: &str, id: u32) -> Error {
    Error::invalid("process.user", format!("the user namespace does not map {kind} {id}"))
}
