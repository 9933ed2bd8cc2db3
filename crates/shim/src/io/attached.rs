//! A client attached to a container: its input, and its end.
//!
//! One task for each client, for as long as that is there: an idle container has none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use berth_api::shim::packet;
use nix::errno::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::outlet::{Outlet, send};
use super::{Watched, watch};

/// The end of a pipe, or the terminal, that a container reads from.
pub(super) type Stdin = Arc<AsyncFd<Watched<OwnedFd>>>;

/// One client.
#[derive(Debug)]
pub(super) struct Attached {
    socket: AsyncFd<Watched<Arc<OwnedFd>>>,
    /// While it takes input: whoever closes it closes it for all clients.
    stdin: Option<Weak<AsyncFd<Watched<OwnedFd>>>>,
}

/// Why a client's input stops being read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stop {
    /// The client is gone.
    Gone,
    /// The client's input has ended, or the process takes no more.
    Ended,
}

impl Attached {
    pub(super) fn new(socket: Arc<OwnedFd>, stdin: Option<&Stdin>) -> io::Result<Self> {
        let socket = watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, stdin: stdin.map(Arc::downgrade) })
    }

    /// Serves until the client is gone, or `end` is dropped: the process has ended then.
    /// `input_ended` is called once, when no more input comes from here.
    pub(super) async fn serve(
        mut self,
        outlet: &Outlet,
        end: oneshot::Receiver<()>,
        input_ended: impl FnOnce(),
    ) {
        let stopped = async {
            let stop = match self.stdin.take() {
                Some(stdin) => self.feed(&stdin).await,
                None => self.until_ended().await,
            };
            input_ended();
            if stop == Stop::Ended && self.send(packet::STDIN_END).await.is_ok() {
                self.hung_up().await;
            }
        };
        tokio::select! {
            () = stopped => {}
            _ = end => self.farewell(outlet).await,
        }
    }

    /// Tells the client that it has heard all, as soon as it has room for that.
    async fn farewell(&self, outlet: &Outlet) {
        let told = async {
            self.writing(|| outlet.tell()).await?;
            self.send(packet::END).await
        };
        tokio::select! {
            // One that is gone needs no words.
            _ = told => {}
            () = self.hung_up() => {}
        }
    }

    /// Gives the client's input to the process.
    async fn feed(&self, stdin: &Weak<AsyncFd<Watched<OwnedFd>>>) -> Stop {
        loop {
            let packet = match self.receive().await {
                Ok(packet) => packet,
                Err(_) => return Stop::Gone,
            };
            match packet.split_first() {
                None => return Stop::Gone,
                Some((&packet::STDIN, bytes)) => {
                    let Some(stdin) = stdin.upgrade() else { return self.until_ended().await };
                    let written = tokio::select! {
                        written = write_all(&stdin, bytes) => written,
                        () = self.hung_up() => return Stop::Gone,
                    };
                    // It has closed its input: no more is wanted.
                    if written.is_err() {
                        return self.until_ended().await;
                    }
                }
                Some((&packet::STDIN_END, _)) => return Stop::Ended,
                // What a younger daemon may say.
                Some(_) => {}
            }
        }
    }

    /// Reads input that nobody wants.
    async fn until_ended(&self) -> Stop {
        loop {
            match self.receive().await {
                Ok(packet) if packet.is_empty() => return Stop::Gone,
                Ok(packet) if packet[0] == packet::STDIN_END => return Stop::Ended,
                Ok(_) => {}
                Err(_) => return Stop::Gone,
            }
        }
    }

    /// The next packet; empty once the client has closed the socket.
    ///
    /// Readiness is edge-triggered, and [`Attached::hung_up`] may have used an edge up, so
    /// the socket is asked before it is waited for.
    async fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut packet = vec![0; 1 + packet::MAX];
            match recv(&self.socket.get_ref().0, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((_, read)) => {
                    packet.truncate(read);
                    return Ok(packet);
                }
                Err(rustix::io::Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
            drop(packet);
            self.socket.readable().await?.clear_ready();
        }
    }

    /// Waits until the client has closed the socket.
    async fn hung_up(&self) {
        while let Ok(mut ready) = self.socket.readable().await {
            if ready.ready().is_read_closed() {
                return;
            }
            ready.clear_ready();
        }
    }

    async fn send(&self, kind: u8) -> io::Result<()> {
        self.writing(|| send(self.socket.get_ref().0.as_fd(), kind, b"")).await
    }

    async fn writing(
        &self,
        mut write: impl FnMut() -> Result<(), rustix::io::Errno>,
    ) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |_| Ok(write()?)).await
    }
}

async fn write_all(to: &Stdin, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        let written = to.async_io(Interest::WRITABLE, |fd| {
            match nix::unistd::write(&fd.0, rest) {
                // A terminal that takes nothing now.
                Ok(0) => Err(Errno::EAGAIN.into()),
                written => Ok(written?),
            }
        });
        rest = &rest[written.await?..];
    }
    Ok(())
}
