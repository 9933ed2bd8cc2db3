//! Whether a peer is still there, asked without reading from it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
};

/// How long a peer may be silent before the kernel asks whether it is there, how often it
/// asks then, and how many times in vain.
const SILENCE: Duration = Duration::from_secs(15);
const ASKED: u32 = 9;

/// Has the kernel find out that a peer is gone which could not say so: its machine has
/// died, or its farewell waits behind bytes that nobody here reads (tcp(7), SO_KEEPALIVE).
pub(crate) fn keep_asking(socket: &impl AsFd) -> Result<(), Errno> {
    set_tcp_keepidle(socket, SILENCE)?;
    set_tcp_keepintvl(socket, SILENCE)?;
    set_tcp_keepcnt(socket, ASKED)?;
    set_socket_keepalive(socket, true)
}

/// A second descriptor of a connection's socket, for as long as the connection is served.
#[derive(Debug)]
pub(crate) struct Watched(Option<Arc<OwnedFd>>);

impl Watched {
    /// Where `socket` cannot be watched, its peer counts as there.
    pub(crate) fn new(socket: &impl AsFd) -> Self {
        Self(socket.as_fd().try_clone_to_owned().ok().map(Arc::new))
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer(self.0.as_ref().map_or_else(Weak::new, Arc::downgrade))
    }
}

/// The other end of a socket. It does not keep the socket open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer(Weak<OwnedFd>);

impl Peer {
    /// Whether it has closed its end, or both (`POLLRDHUP`, poll(2)).
    pub(crate) fn is_gone(&self) -> bool {
        let Some(socket) = self.0.upgrade() else { return false };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut asked = [PollFd::new(&socket, PollFlags::RDHUP)];
        let answered = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        answered.is_ok() && asked[0].revents().intersects(gone)
    }
}
