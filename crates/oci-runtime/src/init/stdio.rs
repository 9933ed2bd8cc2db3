//! Descriptors 0, 1 and 2 of the program.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Uid, fchown, fstat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::ioctl_tiocsctty;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::Error;
use crate::init::console::Console;
use crate::init::devices;
use crate::plan::ProcessPlan;
use crate::request::Stdio;

/// The streams as a container may have them: copies, and in the place of a null device one that
/// it cannot change. To be called outside the container.
pub(crate) fn guard(stdio: &Stdio) -> Result<Stdio, Error> {
    let Stdio::Fds { stdin, stdout, stderr } = stdio else { return Ok(Stdio::Terminal) };
    let copy = |stream: &OwnedFd| -> Result<OwnedFd, Error> {
        let step = "copy a standard stream";
        if devices::is_null(stream.as_fd()).map_err(Error::setup(step))? {
            return null();
        }
        fcntl_dupfd_cloexec(stream, 3).map_err(Error::setup(step))
    };
    Ok(Stdio::Fds { stdin: copy(stdin)?, stdout: copy(stdout)?, stderr: copy(stderr)? })
}

/// The host's null device, opened by a mount that nobody else has.
fn null() -> Result<OwnedFd, Error> {
    let step = "open the null device of a standard stream";
    let mount = devices::clone_null(devices::host_null()?.as_fd()).map_err(Error::setup(step))?;
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(Error::setup(step))
}

/// Puts the program's standard streams in place.
pub(crate) fn install(
    stdio: &Stdio,
    console: Option<&Console>,
    plan: &ProcessPlan,
) -> Result<(), Error> {
    match (stdio, console) {
        (Stdio::Fds { stdin, stdout, stderr }, None) => {
            let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
            // In a user namespace the worker has given them already.
            for stream in streams.into_iter().filter(|_| plan.ids.is_none()) {
                give(stream, plan.user.uid)?;
            }
            put(streams)
        }
        (Stdio::Terminal, Some(console)) => {
            let terminal = console.slave.as_fd();
            fchown(terminal, Some(Uid::from_raw(plan.user.uid)), None)
                .map_err(Error::setup("give the terminal to the user"))?;
            ioctl_tiocsctty(terminal).map_err(Error::setup("take the terminal"))?;
            put([terminal; 3])
        }
        _ => Err(Error::invalid("process.terminal", "does not fit the streams given")),
    }
}

/// Gives a pipe to the user of the process, by its number on the host; he could not open `/dev/stdout` otherwise. Nothing
/// else changes its owner: a file of the host is not ours to give away (CVE-2026-88265).
pub(crate) fn give(stream: BorrowedFd<'_>, uid: u32) -> Result<(), Error> {
    let step = "give a standard stream to the user";
    let stat = fstat(stream).map_err(Error::setup(step))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo || stat.st_uid == uid {
        return Ok(());
    }
    fchown(stream, Some(Uid::from_raw(uid)), None).map_err(Error::setup(step))
}

/// Makes these the first three descriptors.
pub(crate) fn put(streams: [BorrowedFd<'_>; 3]) -> Result<(), Error> {
    let step = "put the standard streams in place";
    // A stream that is itself one of the first three must not be overwritten before its turn.
    let copies: Vec<OwnedFd> = streams
        .iter()
        .map(|stream| fcntl_dupfd_cloexec(stream, 3))
        .collect::<Result<_, Errno>>()
        .map_err(Error::setup(step))?;
    debug_assert!(copies.iter().all(|copy| copy.as_raw_fd() > 2));
    let [stdin, stdout, stderr] = copies.as_slice() else {
        return Err(Error::setup(step)(Errno::BADF));
    };
    dup2_stdin(stdin).map_err(Error::setup(step))?;
    dup2_stdout(stdout).map_err(Error::setup(step))?;
    dup2_stderr(stderr).map_err(Error::setup(step))
}
