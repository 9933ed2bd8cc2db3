//! netlink(7) over blocking sockets: [`request`] encodes, [`answer`] decodes, [`Socket`]
//! sends a batch in one write and reads the kernel's answers.
//!
//! The kernel works through a request inside sendmsg(2), for dumps inside recvmsg(2): an
//! answer that is not there when asked for will never come. So nothing here waits, save
//! for the kernel's own locks.

pub(crate) mod answer;
pub(crate) mod request;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berth_sys::netlink::extended_ack;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::error::{Detail, Error};
use answer::{Acknowledgement, Answer, answers};
use request::Request;

/// Largest answer read at once, bytes; the kernel makes none larger for a dump.
const BUFFER_BYTES: usize = 32 << 10;

/// A netlink socket of the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket for links, addresses and routes in the calling thread's namespace.
    pub(crate) fn route() -> Result<Self, Errno> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Opens a socket for nftables and conntrack in the calling thread's namespace.
    pub(crate) fn netfilter() -> Result<Self, Errno> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        extended_ack(fd.as_fd())?;
        Ok(Self { fd, sequence: 0, buffer: Vec::new() })
    }

    /// Sends all messages of `request` in one write; reports the first that is refused.
    ///
    /// Messages of a plain request are independent: those after a refused one are still
    /// obeyed. Those of a transaction are obeyed all or none.
    pub(crate) fn run(&mut self, request: Request) -> Result<(), Error> {
        self.query(request, |_| Ok(()))
    }

    /// Like [`Socket::run`], and hands every answer that is no acknowledgement to `each`.
    pub(crate) fn query(
        &mut self,
        request: Request,
        mut each: impl FnMut(Answer<'_>) -> Result<(), &'static str>,
    ) -> Result<(), Error> {
        let sent = request.finish(self.sequence.wrapping_add(1));
        self.sequence = sent.last;
        let flags = MsgFlags::empty();
        send(self.fd.as_raw_fd(), &sent.bytes, flags).map_err(|source| Error::Netlink {
            operation: sent.operation(sent.first).to_owned(),
            source,
        })?;
        self.buffer.resize(BUFFER_BYTES, 0);
        let malformed =
            |reason| Error::Malformed { operation: sent.operation(sent.last).to_owned(), reason };
        let mut refusal = None;
        loop {
            let length = match self.receive() {
                Ok(length) => length,
                Err(Errno::EAGAIN) => {
                    return Err(refusal.unwrap_or_else(|| malformed("there is none")));
                }
                Err(source) => {
                    let operation = sent.operation(sent.last).to_owned();
                    return Err(Error::Netlink { operation, source });
                }
            };
            let bytes = self.buffer.get(..length).ok_or_else(|| malformed("too long"))?;
            for answer in answers(bytes) {
                let answer = answer.map_err(malformed)?;
                if !sent.covers(answer.sequence) {
                    continue;
                }
                let Some(ack) = answer.acknowledgement().map_err(malformed)? else {
                    each(answer).map_err(malformed)?;
                    continue;
                };
                let Acknowledgement { error, words } = ack;
                if let Some(source) = error {
                    let operation = sent.operation(answer.sequence).to_owned();
                    let detail = Detail(words);
                    refusal.get_or_insert(Error::Kernel { operation, detail, source });
                }
                let whole = sent.transaction && answer.sequence == sent.first && error.is_some();
                if whole || answer.sequence == sent.last {
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Reads one datagram; its true length, though it be longer than the buffer.
    fn receive(&mut self) -> Result<usize, Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }
}
