//! Where the output of a container goes beside its log: to the clients attached to it.
//!
//! Each has a socket of packets, with a buffer in the kernel that is bounded. What does not
//! fit is skipped and counted, and the client is told how much it missed before it gets
//! more: neither the container nor its log ever waits for a client.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_api::shim::packet;
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, socket_send_buffer_size,
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use super::frame::Stream;

/// Bytes that may wait for one client, of which the kernel gives twice as many for what it
/// notes of them (socket(7)).
const BUFFER: usize = 2 << 20;

/// More of them for the one packet that says what did not fit.
const RESERVE: usize = 16 << 10;

/// What a client wants to hear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// Connects to the socket on which a client's daemon listens; waits for nobody.
pub(super) fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Beyond what is allowed to everybody if possible, else as much as that.
    if set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
        set_socket_send_buffer_size(&socket, BUFFER)?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// One client's output.
#[derive(Debug)]
pub(super) struct Outlet {
    socket: Arc<OwnedFd>,
    wanted: Wanted,
    /// Bytes that it missed and was not told of.
    skipped: Mutex<u64>,
}

impl Outlet {
    pub(super) fn new(socket: Arc<OwnedFd>, wanted: Wanted) -> Self {
        Self { socket, wanted, skipped: Mutex::default() }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends what fits; whether the client is still there.
    fn send(&self, stream: Stream, bytes: &[u8]) -> bool {
        let kind = match stream {
            Stream::Stdout if self.wanted.stdout => packet::STDOUT,
            Stream::Stderr if self.wanted.stderr => packet::STDERR,
            Stream::Stdout | Stream::Stderr => return true,
        };
        for bytes in bytes.chunks(packet::MAX) {
            let sent = self.tell().and_then(|()| send(&self.socket, kind, bytes));
            match sent {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => {
                    let mut skipped = self.skipped();
                    *skipped = skipped.saturating_add(bytes.len().try_into().unwrap_or(u64::MAX));
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Tells the client what it missed, if that is not told yet.
    pub(super) fn tell(&self) -> Result<(), Errno> {
        let mut skipped = self.skipped();
        if *skipped > 0 {
            send(&self.socket, packet::SKIPPED, &skipped.to_le_bytes())?;
            *skipped = 0;
        }
        Ok(())
    }

    /// As [`Outlet::tell`], beyond the room that output has: this is the last that the client
    /// hears from here.
    fn tell_last(&self) {
        if self.tell().is_err()
            && let Ok(doubled) = socket_send_buffer_size(&self.socket)
            && set_socket_send_buffer_size_force(&self.socket, doubled / 2 + RESERVE).is_ok()
        {
            self.tell().ok();
        }
    }

    fn skipped(&self) -> MutexGuard<'_, u64> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends one packet, now or not at all.
pub(super) fn send(socket: impl AsFd, kind: u8, bytes: &[u8]) -> Result<(), Errno> {
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(bytes)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &parts, &mut SendAncillaryBuffer::default(), flags).map(drop)
}

/// Every client that hears a container.
#[derive(Debug, Default)]
pub(super) struct Outlets(Mutex<Vec<Arc<Outlet>>>);

impl Outlets {
    fn all(&self) -> MutexGuard<'_, Vec<Arc<Outlet>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, outlet: Arc<Outlet>) {
        self.all().push(outlet);
    }

    pub(super) fn remove(&self, outlet: &Arc<Outlet>) {
        let mut all = self.all();
        all.retain(|other| !Arc::ptr_eq(other, outlet));
        // Most containers are never heard again.
        if all.is_empty() {
            *all = Vec::new();
        }
    }

    /// Tells everybody what they missed, whether they have room or not.
    pub(super) fn tell_last(&self) {
        self.all().iter().for_each(|outlet| outlet.tell_last());
    }

    pub(super) fn snapshot(&self) -> Vec<Arc<Outlet>> {
        self.all().clone()
    }

    /// Gives a chunk to everybody who wants it; who is gone is forgotten.
    pub(super) fn send(&self, stream: Stream, chunk: &[u8]) {
        let mut all = self.all();
        if !all.is_empty() && !chunk.is_empty() {
            all.retain(|outlet| outlet.send(stream, chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rustix::net::{RecvFlags, SocketType, recv, socketpair};

    const BOTH: Wanted = Wanted { stdout: true, stderr: true };

    fn pair(wanted: Wanted) -> (Arc<Outlet>, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Arc::new(Outlet::new(Arc::new(ours), wanted)), theirs)
    }

    fn next(socket: &OwnedFd) -> Option<(u8, Vec<u8>)> {
        let mut buffer = vec![0; 1 + packet::MAX];
        let (_, read) = recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        (read > 0).then(|| (buffer[0], buffer[1..read].to_vec()))
    }

    #[test]
    fn each_client_hears_what_it_wants() {
        let outlets = Outlets::default();
        let (both, first) = pair(BOTH);
        let (errors, second) = pair(Wanted { stdout: false, stderr: true });
        outlets.add(both);
        outlets.add(errors);
        outlets.send(Stream::Stdout, b"out");
        outlets.send(Stream::Stderr, b"err");
        outlets.send(Stream::Stderr, b"");
        assert_eq!(next(&first), Some((packet::STDOUT, b"out".to_vec())));
        assert_eq!(next(&first), Some((packet::STDERR, b"err".to_vec())));
        assert_eq!(next(&second), Some((packet::STDERR, b"err".to_vec())));
        assert_eq!((next(&first), next(&second)), (None, None));
    }

    #[test]
    fn a_slow_client_misses_output_and_is_told_how_much() {
        let outlets = Outlets::default();
        let (outlet, client) = pair(BOTH);
        outlets.add(outlet);
        let total: u64 = 16 << 20;
        for _ in 0..total / 4096 {
            outlets.send(Stream::Stdout, &[b'x'; 4096]);
        }
        let mut got = 0;
        while let Some((kind, bytes)) = next(&client) {
            assert_eq!(kind, packet::STDOUT);
            got += u64::try_from(bytes.len()).unwrap();
        }
        assert!(got > 0 && got < total, "{got}");
        outlets.send(Stream::Stdout, b"on");
        let (kind, skipped) = next(&client).unwrap();
        assert_eq!(kind, packet::SKIPPED);
        assert_eq!(u64::from_le_bytes(skipped.try_into().unwrap()), total - got);
        assert_eq!(next(&client), Some((packet::STDOUT, b"on".to_vec())));
    }

    /// teeth: crates/shim/src/io/outlet.rs: `doubled / 2 + RESERVE` → `doubled / 2`
    #[test]
    fn a_client_without_room_is_told_in_the_end_what_it_missed() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let outlets = Outlets::default();
        let (outlet, client) = pair(BOTH);
        outlets.add(outlet);
        let (total, mut got) = (16_u64 << 20, 0);
        for _ in 0..total / 4096 {
            outlets.send(Stream::Stdout, &[b'x'; 4096]);
        }
        outlets.tell_last();
        outlets.tell_last();
        while let Some((kind, bytes)) = next(&client) {
            if kind == packet::SKIPPED {
                assert_eq!(u64::from_le_bytes(bytes.try_into().unwrap()), total - got);
                assert_eq!(next(&client), None);
                return;
            }
            got += u64::try_from(bytes.len()).unwrap();
        }
        panic!("{got} of {total} bytes, and no word of the rest");
    }

    #[test]
    fn a_client_that_is_gone_is_forgotten() {
        let outlets = Outlets::default();
        let ((gone, client), (stays, other)) = (pair(BOTH), pair(BOTH));
        outlets.add(gone);
        outlets.add(stays);
        drop(client);
        outlets.send(Stream::Stdout, b"x");
        assert_eq!(outlets.snapshot().len(), 1);
        assert_eq!(next(&other), Some((packet::STDOUT, b"x".to_vec())));
    }
}
