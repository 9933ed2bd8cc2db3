//! Starts a program without copying this process, and signals one by number.
//!
//! [`Command`] is posix_spawn(3); [`send_signal`] takes the real-time signals too, for
//! which `nix` and `rustix` have no type.
//!
//! A fork of a daemon with a large heap costs milliseconds for its page tables; glibc
//! implements posix_spawn with `CLONE_VM | CLONE_VFORK`, which costs none of them, and
//! blocks signals meanwhile, so it may be called from any thread.
//!
//! Invariants: the program gets exactly the descriptors it was given, and /dev/null
//! where 0, 1 or 2 was not; its signal mask is empty and every signal has its default
//! action, whatever this process does with them (glibc leaves its own two, 32 and 33,
//! ignored).

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

/// Highest number a descriptor may get in the program.
pub const MAX_FD: RawFd = 255;

/// A program to start.
#[derive(Debug)]
pub struct Command {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: Option<CString>,
    fds: Vec<(OwnedFd, RawFd)>,
}

/// A program that was started, and is a child of this process until it is waited for.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: Pid,
    /// Close-on-exec pidfd: readable once it has ended.
    pub pidfd: OwnedFd,
}

impl Command {
    /// A program by its path, which is also its first argument; no environment.
    #[must_use]
    pub fn new(program: CString) -> Self {
        let args = vec![program.clone()];
        Self { program, args, env: Vec::new(), cwd: None, fds: Vec::new() }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: CString) -> &mut Self {
        self.args.push(arg);
        self
    }

    /// Adds `NAME=value` to the environment.
    pub fn env(&mut self, entry: CString) -> &mut Self {
        self.env.push(entry);
        self
    }

    /// Sets the working directory.
    pub fn cwd(&mut self, directory: CString) -> &mut Self {
        self.cwd = Some(directory);
        self
    }

    /// Hands a descriptor over, under `number` (at most [`MAX_FD`], each number once).
    pub fn fd(&mut self, fd: OwnedFd, number: RawFd) -> &mut Self {
        self.fds.push((fd, number));
        self
    }

    /// Starts it. The calling thread stops until the program was executed; an error is
    /// that of the first step that failed, execve(2) included.
    pub fn spawn(self) -> Result<Spawned, Errno> {
        let highest = self.fds.iter().map(|(_, number)| *number).fold(2, RawFd::max);
        let lowest = self.fds.iter().map(|(_, number)| *number).fold(0, RawFd::min);
        if lowest < 0 || highest > MAX_FD {
            return Err(Errno::EBADF);
        }
        // Above every target, so that no dup2 overwrites a source that is needed later.
        let mut sources = Vec::with_capacity(self.fds.len());
        for (fd, number) in &self.fds {
            let moved = rustix::io::fcntl_dupfd_cloexec(fd, highest + 1)
                .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
            sources.push((moved, *number));
        }
        let mut actions = Actions::new()?;
        for number in 0..=highest {
            match sources.iter().find(|(_, target)| *target == number) {
                Some((source, _)) => actions.dup2(source, number)?,
                None if number <= 2 => actions.open_null(number)?,
                None => actions.close(number)?,
            }
        }
        actions.close_from(highest + 1)?;
        if let Some(directory) = &self.cwd {
            actions.chdir(directory)?;
        }
        let attributes = Attributes::clean_signals()?;
        let pid = spawn(&self.program, &actions, &attributes, &self.args, &self.env)?;
        // Their numbers are free again for the pidfd.
        drop(sources);
        // The child is not reaped before this returns, so its pid is still its own.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            // Nobody could wait for it, or end it.
            rustix::process::kill_process(pid, Signal::KILL).ok();
            rustix::process::waitpid(Some(pid), WaitOptions::empty()).ok();
            Errno::from_raw(errno.raw_os_error())
        })?;
        Ok(Spawned { pid, pidfd })
    }
}

/// Sends a signal by its number, 0 to ask only whether the process may be signalled
/// (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` for a process that was reaped, `EINVAL` for a number that is no signal's.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let (fd, info, flags) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>(), 0_u32);
    // SAFETY: pidfd_send_signal(2) takes an open descriptor, a number, flags, and a null
    // pointer for which it makes the siginfo itself; it touches no memory of this process.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) };
    Errno::result(ret).map(drop)
}

/// What a posix_spawn function returned: an error number, not -1.
fn check(ret: libc::c_int) -> Result<(), Errno> {
    if ret == 0 { Ok(()) } else { Err(Errno::from_raw(ret)) }
}

struct Actions(Box<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> Result<Self, Errno> {
        let mut raw = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to writable memory of the right type, which the call fills in.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: the call above has just initialised it, and said so.
        Ok(Self(unsafe { raw.assume_init() }))
    }

    fn dup2(&mut self, source: &OwnedFd, number: RawFd) -> Result<(), Errno> {
        let source = source.as_raw_fd();
        // SAFETY: `self.0` was initialised by `new`; the descriptors are plain numbers here.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut *self.0, source, number) })
    }

    fn open_null(&mut self, number: RawFd) -> Result<(), Errno> {
        let (path, flags) = (c"/dev/null".as_ptr(), libc::O_RDWR);
        // SAFETY: `self.0` was initialised by `new`; the path is NUL-terminated and copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&mut *self.0, number, path, flags, 0)
        })
    }

    /// A number that is not open is skipped by glibc.
    fn close(&mut self, number: RawFd) -> Result<(), Errno> {
        // SAFETY: `self.0` was initialised by `new`; the descriptor is a plain number here.
        check(unsafe { libc::posix_spawn_file_actions_addclose(&mut *self.0, number) })
    }

    fn close_from(&mut self, first: RawFd) -> Result<(), Errno> {
        // SAFETY: `self.0` was initialised by `new`; the descriptor is a plain number here.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&mut *self.0, first) })
    }

    fn chdir(&mut self, directory: &CStr) -> Result<(), Errno> {
        let path = directory.as_ptr();
        // SAFETY: `self.0` was initialised by `new`; the path is NUL-terminated and copied.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&mut *self.0, path) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: `self.0` was initialised by `new` and is destroyed once, here.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut *self.0) };
    }
}

struct Attributes(Box<libc::posix_spawnattr_t>);

impl Attributes {
    fn clean_signals() -> Result<Self, Errno> {
        let mut raw = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer is to writable memory of the right type, which the call fills in.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: the call above has just initialised it, and said so.
        let mut attributes = Self(unsafe { raw.assume_init() });
        let flags =
            libc::c_short::try_from(libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF)
                .expect("both flags are below 16");
        // SAFETY: a sigset_t is plain bits, and sigemptyset and sigfillset set them all; the
        // attributes were initialised above, and copy the sets they are given.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            check(libc::posix_spawnattr_setsigmask(&mut *attributes.0, &set))?;
            libc::sigfillset(&mut set);
            check(libc::posix_spawnattr_setsigdefault(&mut *attributes.0, &set))?;
            check(libc::posix_spawnattr_setflags(&mut *attributes.0, flags))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: `self.0` was initialised by `clean_signals` and is destroyed once, here.
        unsafe { libc::posix_spawnattr_destroy(&mut *self.0) };
    }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

fn spawn(
    program: &CStr,
    actions: &Actions,
    attributes: &Attributes,
    args: &[CString],
    env: &[CString],
) -> Result<Pid, Errno> {
    let (args, env) = (pointers(args), pointers(env));
    let mut pid = 0;
    // SAFETY: every string is NUL-terminated and outlives the call, both arrays end with a
    // null pointer, actions and attributes are initialised; the child shares this memory only
    // until execve(2), and glibc runs nothing of ours in it.
    check(unsafe {
        libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            &*actions.0,
            &*attributes.0,
            args.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok(Pid::from_raw(pid).expect("posix_spawn gives a pid when it succeeds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::io::Read;

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    fn shell(script: &str) -> Command {
        let mut command = Command::new(c"/bin/sh".to_owned());
        command.arg(c"-c".to_owned()).arg(CString::new(script).unwrap());
        command
    }

    /// Runs `command` with a pipe as its standard output: what it printed, and its code.
    fn run(mut command: Command) -> (String, Option<i32>) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        command.fd(write, 1);
        let spawned = command.spawn().unwrap();
        let mut output = String::new();
        File::from(read).read_to_string(&mut output).unwrap();
        let status = waitid(WaitId::PidFd(spawned.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        (output, status.unwrap().exit_status())
    }

    use std::os::fd::AsFd;

    #[test]
    fn the_program_gets_the_descriptors_it_was_given_and_no_other() {
        let null = || OwnedFd::from(File::open("/dev/zero").unwrap());
        // Not close-on-exec, and in the middle of the mapped numbers or above them.
        let leaked = rustix::io::dup(null()).unwrap();
        let mut command = shell("exec ls -l /proc/self/fd");
        command.fd(null(), 10).fd(null(), 12);
        let (output, code) = run(command);
        drop(leaked);

        // "… 3 -> /proc/7/fd" is how ls itself reads the folder.
        let open: Vec<(&str, &str)> = output
            .lines()
            .filter_map(|line| line.split_once(" -> "))
            .filter(|(_, target)| !target.starts_with("/proc/"))
            .map(|(entry, target)| (entry.rsplit(' ').next().unwrap(), target))
            .collect();
        let numbers: Vec<&str> = open.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, ["0", "1", "10", "12", "2"], "{output}");
        assert_eq!(open[0].1, "/dev/null");
        assert_eq!(open[2].1, "/dev/zero");
        assert_eq!(code, Some(0));
    }

    #[test]
    fn descriptors_may_trade_places() {
        let (zero, null) = (File::open("/dev/zero").unwrap(), File::open("/dev/null").unwrap());
        let (a, b) = (zero.as_raw_fd(), null.as_raw_fd());
        let mut command = shell(&format!("readlink /proc/$$/fd/{a} /proc/$$/fd/{b}"));
        command.fd(zero.into(), b).fd(null.into(), a);
        assert_eq!(run(command).0, "/dev/null\n/dev/zero\n");
    }

    #[test]
    fn arguments_environment_directory_and_signals_are_the_given_ones() {
        // A shell that waits for a child blocks signals itself, so grep looks at its own.
        let script = "echo $0 $A $PWD; exec grep -E 'Sig(Blk|Ign)' /proc/self/status";
        let mut command = shell(script);
        command.arg(c"zero".to_owned()).env(c"A=b c".to_owned()).cwd(c"/proc".to_owned());
        let (output, _) = run(command);
        let (first, signals) = output.split_once('\n').unwrap();
        assert_eq!(first, "zero b c /proc");
        for line in signals.lines() {
            let set = u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap();
            assert_eq!(set & !(0b11 << 31), 0, "{output}");
        }
        assert_eq!(signals.lines().count(), 2);
    }

    #[test]
    fn a_real_time_signal_reaches_its_process() {
        let mut command = shell("exec sleep 60");
        command.env(c"PATH=/bin:/usr/bin".to_owned());
        let spawned = command.spawn().unwrap();
        assert_eq!(send_signal(spawned.pidfd.as_fd(), 65), Err(Errno::EINVAL));
        send_signal(spawned.pidfd.as_fd(), 0).unwrap();
        send_signal(spawned.pidfd.as_fd(), 37).unwrap();
        let status = waitid(WaitId::PidFd(spawned.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        assert_eq!(status.unwrap().terminating_signal(), Some(37));
        assert_eq!(send_signal(spawned.pidfd.as_fd(), 9), Err(Errno::ESRCH));
    }

    #[test]
    fn what_cannot_be_executed_is_an_error_of_spawn() {
        let missing = Command::new(c"/nonexistent/program".to_owned());
        assert_eq!(missing.spawn().unwrap_err(), Errno::ENOENT);
        assert_eq!(Command::new(c"/etc".to_owned()).spawn().unwrap_err(), Errno::EACCES);
        let mut far = Command::new(c"/bin/true".to_owned());
        far.fd(File::open("/dev/null").unwrap().into(), MAX_FD + 1);
        assert_eq!(far.spawn().unwrap_err(), Errno::EBADF);
    }
}
