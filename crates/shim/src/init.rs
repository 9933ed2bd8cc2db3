//! The init of a pid namespace that the containers of a pod share.
//!
//! A forked child, no program of its own: it reaps what nobody else does, and its end is
//! the end of every process in the namespace (pid_namespaces(7)). Containers see it as
//! their process 1, so it has nothing they could use: an empty root file system, no
//! descriptors, no user, no capabilities, not dumpable. It dies with the shim.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use berth_sys::descriptor::close_all_but;
use berth_sys::process::{ForkOptions, InChild, fork};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};

use tokio::io::Interest;
use tokio::time::timeout;

use crate::error::Error;
use crate::io::watch;
use crate::reaper::{Child, Reaper};
use crate::sandbox::{USER_NAMESPACE_FD, User};

/// nobody.
const NOBODY: u32 = 65534;

/// How long the init may take to be ready: it does nothing that may block.
const READY: Duration = Duration::from_secs(5);

/// A pid namespace, for as long as its init lives.
#[derive(Debug)]
pub(crate) struct PidNamespace {
    pid: u32,
    init: Child,
}

impl PidNamespace {
    /// Makes one; its descriptor is close-on-exec.
    ///
    /// With users of its own they own it: only then can their containers mount procfs.
    pub(crate) async fn new(
        reaper: &Arc<Reaper>,
        user: Option<User>,
    ) -> Result<(Self, OwnedFd), Error> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (ready, report) =
            nix::unistd::pipe2(flags).map_err(|errno| Error::Syscall("make pipe", errno))?;
        let (pid, pidfd) = match user {
            None => {
                let forked = fork(&options(false), |child| run(child, &report, NOBODY))?;
                (forked.pid.as_raw().unsigned_abs(), forked.pidfd)
            }
            Some(user) => fork_in(user, &report, reaper)?,
        };
        drop(report);
        let this = Self { pid, init: reaper.know(pid, pidfd) };
        match prepared(ready).await.and_then(|()| this.open()) {
            Ok(namespace) => Ok((this, namespace)),
            Err(error) => {
                let reaper = Arc::clone(reaper);
                tokio::spawn(async move { this.end(&reaper).await });
                Err(error)
            }
        }
    }

    fn open(&self) -> Result<OwnedFd, Error> {
        // It is not reaped yet, so its pid is its own.
        let path = format!("/proc/{}/ns/pid", self.pid);
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| Error::Syscall("open pid namespace", errno))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it, and with it every process of the namespace.
    pub(crate) async fn end(self, reaper: &Reaper) {
        self.init.kill();
        reaper.wait(self.init).await;
    }
}

fn options(sibling: bool) -> ForkOptions<'static> {
    let namespaces = Some(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS);
    ForkOptions { namespaces, quiet: !sibling, sibling, ..ForkOptions::default() }
}

/// Has the init cloned by a child that has entered the user namespace; its pid and pidfd. It
/// is a child of ours all the same.
fn fork_in(user: User, report: &OwnedFd, reaper: &Arc<Reaper>) -> Result<(u32, OwnedFd), Error> {
    let failed = |what| move |errno: Errno| Error::Syscall(what, errno);
    let (told, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(failed("make pipe"))?;
    let quiet = ForkOptions { quiet: true, ..ForkOptions::default() };
    let middle = fork(&quiet, |_| {
        let forked = enter().and_then(|()| {
            // The last id, where there are too few for nobody.
            let nobody = NOBODY.min(user.ids.saturating_sub(1));
            fork(&options(true), |child| run(child, report, nobody)).map_err(|error| error.errno())
        });
        let pid = forked.map(|forked| forked.pid.as_raw()).unwrap_or_else(|errno| -(errno as i32));
        u8::from(nix::unistd::write(&tell, &pid.to_ne_bytes()) != Ok(4))
    })?;
    drop(tell);
    let mut pid = [0; 4];
    let read = nix::unistd::read(&told, &mut pid);
    reaper.bury(middle.pid.as_raw().unsigned_abs(), middle.pidfd);
    let pid = match read.map_err(failed("read from the pod's init"))? {
        4 => i32::from_ne_bytes(pid),
        _ => -(Errno::ECHILD as i32),
    };
    let Ok(known) = u32::try_from(pid) else {
        return Err(failed("make a pid namespace in the user namespace")(Errno::from_raw(-pid)));
    };
    // It is not reaped yet, so its pid is its own.
    let pid = rustix::process::Pid::from_raw(pid)
        .ok_or(Error::Syscall("name the pod's init", Errno::ESRCH))?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|errno| Error::Io("open the pod's init", errno.into()))?;
    Ok((known, pidfd))
}

/// Enters the pod's user namespace, as its root.
fn enter() -> Result<(), Errno> {
    prctl::set_dumpable(false)?;
    let path = format!("/proc/self/fd/{USER_NAMESPACE_FD}");
    let namespace = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_dumpable(false)
}

/// Waits for the one byte that the child writes when it is ready. Its end closes the pipe.
async fn prepared(ready: OwnedFd) -> Result<(), Error> {
    let failed = |source| Error::Io("read from the pod's init", source);
    let ready = watch(ready, Interest::READABLE).map_err(failed)?;
    let mut byte = [0];
    let read = ready.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(&fd.0, &mut byte)?));
    let late = Error::Timeout { what: "preparing the pod's init", seconds: READY.as_secs() };
    let failed_with = |errno| Err(Error::Syscall("prepare the pod's init", errno));
    match timeout(READY, read).await.map_err(|_| late)?.map_err(failed)? {
        1 if byte[0] == 0 => Ok(()),
        1 => failed_with(Errno::from_raw(byte[0].into())),
        _ => failed_with(Errno::ECHILD),
    }
}

/// The child: prepares itself, tells so, and reaps until it is killed.
fn run(child: &InChild, report: &OwnedFd, nobody: u32) -> u8 {
    let answer = match prepare(child, report, nobody) {
        Ok(()) => 0,
        Err(errno) => u8::try_from(errno as i32).unwrap_or(u8::MAX),
    };
    let told = nix::unistd::write(report, &[answer]);
    if answer != 0 || told != Ok(1) {
        return 1;
    }
    // The report's descriptor, and with it the last that are the shim's.
    if close_all_but(child, &[]).is_err() {
        return 1;
    }
    for standard in 0..=2 {
        nix::unistd::close(standard).ok();
    }
    reap()
}

fn prepare(child: &InChild, report: &OwnedFd, nobody: u32) -> Result<(), Errno> {
    close_all_but(child, &[report.as_fd()])?;
    empty_root()?;
    let mut all = SigSet::all();
    all.remove(Signal::SIGKILL);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    prctl::set_name(c"berth-init")?;
    prctl::set_no_new_privs()?;
    setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
    setresgid(gid, gid, gid)?;
    // From root to another user: the kernel clears every capability (capabilities(7)), and
    // the signal at the parent's death, which is therefore set last.
    setresuid(uid, uid, uid)?;
    prctl::set_dumpable(false)?;
    prctl::set_pdeathsig(Signal::SIGKILL)
}

/// Replaces the root by an empty read-only file system.
fn empty_root() -> Result<(), Errno> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("berth-init"), "/proc", Some("tmpfs"), flags, Some("size=4k,mode=555"))?;
    chdir("/proc")?;
    // New and old root at one place (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Reaps children for ever; sleeps while there are none to reap.
fn reap() -> u8 {
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => {
                // SIGCHLD is blocked, so one that came since the last look is still pending.
                if ended.wait().is_err() {
                    return 1;
                }
            }
            // An error may be a death by a signal nix has no name for: it is reaped too.
            Ok(_) | Err(_) => {}
        }
    }
}
