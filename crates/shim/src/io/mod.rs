//! Standard streams of containers: logs, FIFOs, terminals.
//!
//! Where a process can have the caller's descriptor itself it gets it, and the shim
//! copies nothing. Only CRI logs and terminals pass through the shim, which gives a copy to
//! clients that are attached; a log on a file system
//! that may hang passes through a process of its own.

mod attached;
pub(crate) mod frame;
mod logfile;
mod outlet;
mod place;
mod pump;
mod streams;
mod uri;
mod writer;

pub(crate) use outlet::Wanted;
pub(crate) use streams::{Client, Streams};
pub(crate) use uri::Uris;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Gives anything with a descriptor the trait that tokio wants.
#[derive(Debug)]
pub(crate) struct Watched<T>(pub(crate) T);

impl<T: AsFd> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Tells tokio to watch what `inner` owns.
#[expect(deprecated, reason = "sound for a descriptor that is owned, and never replaced")]
pub(crate) fn watch<T: AsFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<Watched<T>>> {
    AsyncFd::with_interest(Watched(inner), interest)
}

/// Makes reads and writes through `fd`, and every duplicate of it, return at once.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
