//! Forking with clone3(2), by a caller that has one thread.
//!
//! A fork copies only the calling thread: a lock that another thread holds stays locked in
//! the child for ever, the allocator's first of all. So [`fork`] asks the kernel how many
//! threads there are and refuses when it is not one. In exchange the child may do whatever
//! ordinary code does: allocate, open files, fork again.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::stat;
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

/// Proof that the running code is a forked child that will end in `_exit` or `execve`.
#[derive(Debug)]
pub struct InChild(());

/// What the child differs in from its parent.
#[derive(Debug, Default)]
pub struct ForkOptions<'a> {
    /// New namespaces (`CLONE_NEW*`); any other flag is refused.
    pub namespaces: Option<CloneFlags>,
    /// The child's parent is the caller's parent (`CLONE_PARENT`), which then gets the
    /// caller's own exit signal for it and has to reap it.
    pub sibling: bool,
    /// The kernel tells nobody of its end by a signal, and `wait(2)` for any child does not
    /// find it: only who asks with `__WALL` ([`reap`]). So it is until it executes a program
    /// (execve(2) makes it an ordinary child), and so are siblings that it forks.
    pub quiet: bool,
    /// The cgroup v2 directory it starts in (`CLONE_INTO_CGROUP`).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child process.
#[derive(Debug)]
pub struct Forked {
    /// Its pid in the caller's namespace.
    pub pid: Pid,
    /// A close-on-exec pidfd of it.
    pub pidfd: OwnedFd,
}

/// Why [`fork`] refused or failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ForkError {
    /// The process has threads beside the caller.
    #[error("fork needs a process with one thread, this one has {0}")]
    Threads(u64),
    /// `/proc/self/task` could not be read.
    #[error("count the threads of this process")]
    CountThreads(#[source] Errno),
    /// clone3(2) failed, or an argument is not one it takes.
    #[error("clone a process")]
    Clone(#[source] Errno),
}

impl ForkError {
    /// The kernel's reason, or `EDEADLK` for a process with several threads.
    pub fn errno(self) -> Errno {
        match self {
            Self::Threads(_) => Errno::EDEADLK,
            Self::CountThreads(errno) | Self::Clone(errno) => errno,
        }
    }
}

/// The namespaces [`fork`] may make.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWUSER)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Reaps a child that has ended, a quiet one too; `None` while it lives, or while a tracer
/// has not seen its end, although its pidfd is readable then.
///
/// # Errors
/// `ECHILD` if it is no child of the caller, or was reaped already.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<WaitIdStatus>, Errno> {
    // The C library's constant is a negative int; rustix has no name for it.
    let any_signal = WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | any_signal;
    rustix::process::waitid(WaitId::PidFd(pidfd), options)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// How many threads this process has.
///
/// # Errors
/// Whatever stat(2) of `/proc/self/task` gives; `EPROTO` if the count makes no sense.
pub fn thread_count() -> Result<u64, Errno> {
    // The kernel gives that directory one link per thread and two more (proc_task_getattr).
    let links = stat("/proc/self/task")?.st_nlink;
    links.checked_sub(2).filter(|count| *count > 0).ok_or(Errno::EPROTO)
}

/// Forks; the child runs `child` and exits with the code it returns.
///
/// The child shares nothing with the parent but inherited descriptors. Destructors of the
/// parent's values never run in it. A panic in `child` ends it with code 101 (or by SIGABRT
/// where panics abort).
///
/// # Errors
/// [`ForkError::Threads`] unless the caller is the only thread.
pub fn fork(
    options: &ForkOptions<'_>,
    child: impl FnOnce(&InChild) -> u8,
) -> Result<Forked, ForkError> {
    match thread_count().map_err(ForkError::CountThreads)? {
        1 => {}
        threads => return Err(ForkError::Threads(threads)),
    }
    let mut pidfd: RawFd = -1;
    match clone3(options, &mut pidfd).map_err(ForkError::Clone)? {
        0 => run_child(child),
        pid => {
            // SAFETY: clone3 with CLONE_PIDFD succeeded, so the kernel has stored there a new
            // descriptor that nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked { pid: Pid::from_raw(pid), pidfd })
        }
    }
}

/// The raw call: 0 in the child, the child's pid in the parent.
fn clone3(options: &ForkOptions<'_>, pidfd: &mut RawFd) -> Result<libc::pid_t, Errno> {
    let namespaces = options.namespaces.unwrap_or(CloneFlags::empty());
    if !NAMESPACES.contains(namespaces) {
        return Err(Errno::EINVAL);
    }
    let mut flags = u64::from(namespaces.bits().cast_unsigned());
    flags |= u64::from(libc::CLONE_PIDFD.cast_unsigned());
    if options.sibling {
        flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
    }
    let mut cgroup = 0;
    if let Some(fd) = options.cgroup {
        // The constant does not fit libc's c_int (it is bit 33).
        flags |= 1 << 33;
        cgroup = u64::try_from(fd.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    }
    // With CLONE_PARENT the exit signal is the caller's own and must not be given (clone3(2)).
    let silent = options.sibling || options.quiet;
    let exit_signal = if silent { 0 } else { u64::from(libc::SIGCHLD.cast_unsigned()) };
    let args = libc::clone_args {
        flags,
        pidfd: std::ptr::from_mut(pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup,
    };
    // SAFETY: `args` is a valid clone_args of the size given, and its one pointer is to a
    // live descriptor slot. Without CLONE_VM and without a stack the child is a copy that
    // continues here on a copy of this stack, exactly as after fork(2); the caller has checked
    // that this is the only thread, so no lock of the copied memory is held by anyone else.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&args).cast::<c_void>(),
            size_of::<libc::clone_args>(),
        )
    };
    let pid = Errno::result(ret)?;
    Ok(libc::pid_t::try_from(pid).expect("the kernel returns pids as int"))
}

/// Runs the child's code and ends the process, whatever happens.
fn run_child(child: impl FnOnce(&InChild) -> u8) -> ! {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child(&InChild(()))));
    let code = outcome.map_or(101, i32::from);
    // SAFETY: _exit(2) ends this process at once and runs none of the parent's destructors
    // or exit handlers, which is wanted in a forked child.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test harness runs this on a thread of its own.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().is_ok());
        let answer = fork(&ForkOptions::default(), |_| 0);
        assert!(matches!(answer, Err(ForkError::Threads(2..))), "{answer:?}");
        drop(stop);
        assert!(!thread.join().unwrap());
    }

    #[test]
    fn flags_that_are_not_namespaces_are_refused() {
        let options =
            ForkOptions { namespaces: Some(CloneFlags::CLONE_VM), ..ForkOptions::default() };
        let mut pidfd = -1;
        assert_eq!(clone3(&options, &mut pidfd), Err(Errno::EINVAL));
    }
}
