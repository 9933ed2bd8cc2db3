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
use nix::sched::CloneFlags;
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
    pub(crate) async fn new(reaper: &Arc<Reaper>) -> Result<(Self, OwnedFd), Error> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (ready, report) =
            nix::unistd::pipe2(flags).map_err(|errno| Error::Syscall("make pipe", errno))?;
        let namespaces = Some(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS);
        let options = ForkOptions { namespaces, quiet: true, ..ForkOptions::default() };
        let forked = fork(&options, |child| run(child, &report))?;
        drop(report);
        let pid = forked.pid.as_raw().unsigned_abs();
        let this = Self { pid, init: reaper.know(pid, forked.pidfd) };
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
fn run(child: &InChild, report: &OwnedFd) -> u8 {
    let answer = match prepare(child, report) {
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

fn prepare(child: &InChild, report: &OwnedFd) -> Result<(), Errno> {
    close_all_but(child, &[report.as_fd()])?;
    empty_root()?;
    let mut all = SigSet::all();
    all.remove(Signal::SIGKILL);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    prctl::set_name(c"berth-init")?;
    prctl::set_no_new_privs()?;
    setgroups(&[])?;
    setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
    // From root to another user: the kernel clears every capability (capabilities(7)), and
    // the signal at the parent's death, which is therefore set last.
    setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
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
