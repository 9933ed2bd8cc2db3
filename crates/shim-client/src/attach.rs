//! A container's streams, through its shim (`proto/berth/shim/v1/shim.proto`).
//!
//! The shim connects to a socket of packets that the caller has made. It never waits for the
//! caller: who reads slowly is told what it missed.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use berth_api::shim::packet;
use berth_model::ContainerId;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recv, sendmsg, socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Error, Shim};

/// Most input in one packet.
pub const MAX_PACKET: usize = packet::MAX;

/// Which streams are wanted.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The container.
    pub container: ContainerId,
    /// Whether there will be input.
    pub stdin: bool,
    /// Standard output; of a terminal both.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Whether the end of this input is that of the container's (CRI `stdin_once`).
    pub close_stdin: bool,
}

/// A socket that a shim may connect to, at a path that goes with it.
#[derive(Debug)]
pub struct Door {
    socket: OwnedFd,
    path: PathBuf,
}

impl Door {
    /// Makes the socket, in a directory that is nobody else's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        let door = Self { socket, path: path.to_owned() };
        listen(&door.socket, 1)?;
        Ok(door)
    }

    /// Who has connected; nobody but root or this daemon's user may.
    fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = accept_with(&self.socket, flags)?;
        let peer = socket_peercred(&accepted)?.uid;
        if !peer.is_root() && peer != rustix::process::geteuid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(accepted)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // What is left of a daemon that was killed, the next one removes.
        drop(std::fs::remove_file(&self.path));
    }
}

/// What a container's shim says to an attached client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Packet {
    /// Standard output.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// So many bytes were skipped, for they were not read in time.
    Skipped(u64),
    /// All input was given to the process.
    InputTaken,
    /// The process has ended, and this was all.
    End,
    /// The shim has gone away, and has not said why.
    Lost,
}

/// A client attached to a container; dropping it leaves.
#[derive(Debug)]
pub struct Attachment {
    socket: AsyncFd<Fd>,
}

#[derive(Debug)]
struct Fd(OwnedFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Shim {
    /// Attaches to a running container through `door`; what it writes from now on is heard.
    pub async fn attach(&self, request: &AttachRequest, door: Door) -> Result<Attachment, Error> {
        self.ask_to_attach(request, &door.path).await?;
        let failed = |source| Error::Io {
            what: "accept a container's streams",
            id: request.container.to_string(),
            source,
        };
        // It has connected before it answered.
        Attachment::new(door.accept().map_err(failed)?).map_err(failed)
    }
}

impl Attachment {
    #[expect(deprecated, reason = "sound for a descriptor that is owned, and never replaced")]
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(Self { socket: AsyncFd::with_interest(Fd(socket), interest)? })
    }

    /// The next packet. Nothing is lost if this is dropped.
    pub async fn receive(&self) -> io::Result<Packet> {
        loop {
            let mut bytes = vec![0; 1 + packet::MAX];
            let receive = |fd: &Fd| {
                let (_, read) = recv(&fd.0, &mut bytes[..], RecvFlags::DONTWAIT)?;
                Ok(read)
            };
            let read = match self.socket.async_io(Interest::READABLE, receive).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                read => read?,
            };
            if read == 0 {
                return Ok(Packet::Lost);
            }
            bytes.truncate(read);
            let kind = bytes.remove(0);
            return Ok(match kind {
                packet::STDOUT => Packet::Stdout(bytes),
                packet::STDERR => Packet::Stderr(bytes),
                packet::STDIN_END => Packet::InputTaken,
                packet::END => Packet::End,
                packet::SKIPPED => match <[u8; 8]>::try_from(bytes) {
                    Ok(count) => Packet::Skipped(u64::from_le_bytes(count)),
                    Err(_) => continue,
                },
                // What a younger shim may say.
                _ => continue,
            });
        }
    }

    /// Gives at most [`MAX_PACKET`] bytes of input, as fast as the process reads them.
    pub async fn input(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(packet::STDIN, bytes).await
    }

    /// Says that there is no more input.
    pub async fn end_input(&self) -> io::Result<()> {
        self.send(packet::STDIN_END, b"").await
    }

    async fn send(&self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(bytes)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let send = |fd: &Fd| {
            sendmsg(&fd.0, &parts, &mut SendAncillaryBuffer::default(), flags)?;
            Ok(())
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}
