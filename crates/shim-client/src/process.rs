//! A process named so that a recycled pid is never mistaken for it.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::Error;

/// A pid and the moment its process started: unique for as long as the node is up.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid, in this daemon's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot (proc_pid_stat(5), field 22).
    pub started: u64,
}

impl ProcessId {
    /// Names the process that has `pid` now.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let started = start_time(pid).map_err(|source| Error::Process { pid, source })?;
        Ok(Self { pid, started })
    }

    /// Whether the process exists still; a zombie does.
    #[must_use]
    pub fn exists(self) -> bool {
        start_time(self.pid) == Ok(self.started)
    }

    /// Opens a pidfd for the process, or says `NotFound` if another has its pid now.
    ///
    /// The start time is compared after the descriptor was opened: from then on the
    /// descriptor means the process whose start time was read, or none.
    pub fn open(self) -> Result<OwnedFd, Error> {
        let gone = |source| Error::Process { pid: self.pid, source };
        let raw = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = raw.ok_or_else(|| gone(Errno::ESRCH))?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| gone(Errno::from_raw(errno.raw_os_error())))?;
        if start_time(self.pid) == Ok(self.started) { Ok(fd) } else { Err(gone(Errno::ESRCH)) }
    }

    /// Sends `signal`; a process that is gone already is success.
    pub fn kill(self, signal: Signal) -> Result<(), Error> {
        let fd = match self.open() {
            Err(Error::Process { source: Errno::ESRCH, .. }) => return Ok(()),
            other => other?,
        };
        send(&fd, signal).map_err(|source| Error::Process { pid: self.pid, source })
    }
}

/// How the child `pid` of `parent` ended: its exit code, or 128 and the signal's number.
/// `None` unless it waits to be reaped.
///
/// With that a shim which hangs need not say it (proc_pid_stat(5), fields 3, 4 and 52).
#[must_use]
pub fn unreaped(pid: u32, parent: u32) -> Option<i32> {
    parse_unreaped(&std::fs::read(format!("/proc/{pid}/stat")).ok()?, parent)
}

fn parse_unreaped(stat: &[u8], parent: u32) -> Option<i32> {
    let fields: Vec<&str> = fields(stat)?.collect();
    if *fields.first()? != "Z" || fields.get(1)?.parse() != Ok(parent) {
        return None;
    }
    // As waitpid(2) has it: a signal's number, or an exit code above it.
    let status: i32 = fields.get(49)?.parse().ok()?;
    Some(match status & 0x7f {
        0 => status >> 8 & 0xff,
        signal => 128 + signal,
    })
}

/// Signals the process behind `pidfd`; one that is gone already is success.
pub(crate) fn send(pidfd: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or(Errno::EINVAL)?;
    match rustix::process::pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
    }
}

/// Field 22 of `/proc/<pid>/stat`.
fn start_time(pid: u32) -> Result<u64, Errno> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) | None => Errno::ESRCH,
            Some(errno) => errno,
        }
    })?;
    parse_start_time(&stat).ok_or(Errno::EINVAL)
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    fields(stat)?.nth(19)?.parse().ok()
}

/// The fields from the third on. The second, the name, may hold spaces and parentheses:
/// counting starts behind its last one.
fn fields(stat: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let tail = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("7 (a) b (c)) {tail}");
        assert_eq!(parse_start_time(stat.as_bytes()), Some(22));
        assert_eq!(parse_start_time(b"7 (x) S 1"), None);
        assert_eq!(parse_start_time(b""), None);
    }

    #[test]
    fn a_dead_child_says_how_it_ended_until_it_is_reaped() {
        let me = std::process::id();
        for (script, code) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let mut child =
                std::process::Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let pid = child.id();
            let pidfd = ProcessId::of(pid).unwrap().open().unwrap();
            let mut ready = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut ready, nix::poll::PollTimeout::NONE).unwrap();
            assert_eq!(unreaped(pid, me), Some(code), "{script}");
            assert_eq!(unreaped(pid, me + 1), None, "it is the child of another");
            child.wait().unwrap();
            assert_eq!(unreaped(pid, me), None, "it was reaped");
        }
        assert_eq!(unreaped(me, std::os::unix::process::parent_id()), None, "it runs");
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_killed() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let real = ProcessId::of(child.id()).unwrap();
        let other = ProcessId { started: real.started + 1, ..real };

        other.kill(Signal::SIGKILL).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the wrong process was killed");
        assert!(real.exists() && !other.exists());

        real.kill(Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(!real.exists());
        real.kill(Signal::SIGKILL).unwrap();
    }
}
