//! The messages between a caller and what it forked.
//!
//! A sequenced-packet socket pair: each message is one packet, its first byte says which.
//!
//! ```text
//! H            hello: the new process exists          process -> caller
//! K            wants hooks run by the caller          process -> caller
//! R            ready, with the console's master       process -> caller
//! F + JSON     failure: an `Error`                    worker or process -> caller
//! G            go: execute the program                caller -> process
//! R            hooks have run                         their runner -> process
//! F + JSON     a hook failed: an `Error`              their runner -> process
//! ```
//!
//! The kernel adds the sender's pid, as the caller's pid namespace numbers it. So the caller
//! knows its child even if the worker that cloned it was killed in between.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use rustix::process::Pid;

use crate::error::Error;

/// Longest message: two paths of the longest kind and some words.
const LONGEST: usize = 16 * 1024;

/// What the caller receives.
#[derive(Debug)]
pub(crate) enum Report {
    /// The process exists.
    Hello(Pid),
    /// It waits for the caller's hooks.
    Hooks,
    /// It waits for its start; with its terminal's master if it has one.
    Ready(Option<OwnedFd>),
    /// It, or the worker, failed.
    Failed(Error),
    /// Nobody is left who could send.
    End,
}

/// A connected pair, both close-on-exec: the caller's end and the other.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_passcred(&ours, true)?;
    Ok((ours, theirs))
}

/// Tells the caller that this process exists.
pub(crate) fn send_hello(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, b"H", None)
}

/// Asks the caller to run hooks.
pub(crate) fn send_hooks(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, b"K", None)
}

/// Tells the caller that this process waits for its start.
pub(crate) fn send_ready(
    socket: BorrowedFd<'_>,
    console: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    send(socket, b"R", console)
}

/// Tells the caller why there will be no process. If even this fails, the end of the socket
/// tells it that there is none.
pub(crate) fn send_failure(socket: BorrowedFd<'_>, error: &Error) {
    let mut message = vec![b'F'];
    let written = serde_json::to_writer(&mut message, error).is_ok();
    if !written || message.len() > LONGEST || put(socket, &message).is_err() {
        // Paths as long as that are in no one's interest; that it has failed is.
        put(socket, b"F\"too long\"").ok();
    }
}

/// Sends as plainly as can be: a container's seccomp filter may be in force already, and many
/// admit write(2) but no call of sockets. A caller that is gone ends this process by SIGPIPE,
/// which has nobody to be told of then.
fn put(socket: BorrowedFd<'_>, message: &[u8]) -> Result<(), Errno> {
    loop {
        match rustix::io::write(socket, message) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => return send(socket, message, None),
        }
    }
}

/// Lets the process execute its program.
pub(crate) fn send_go(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, b"G", None)
}

/// Waits, for ever, until the caller says go; `false` if the caller is gone instead.
pub(crate) fn wait_for_go(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut buffer = [0u8; 1];
    loop {
        match rustix::io::read(socket, &mut buffer[..]) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(buffer == *b"G"),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What has arrived; `None` if nothing has yet.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Report>, Error> {
    let mut bytes = vec![0u8; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket, &mut slices, &mut control, flags) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // A peer that was killed with unread data in its queue resets the connection.
            Err(Errno::CONNRESET) => return Ok(Some(Report::End)),
            Err(errno) => return Err(Error::setup("receive from the worker")(errno)),
        }
    };
    if received.bytes == 0 {
        return Ok(Some(Report::End));
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Error::Protocol("a message too long".into()));
    }
    let (mut sender, mut descriptor) = (None, None);
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(mut fds) => descriptor = fds.next(),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials.pid),
            _ => {}
        }
    }
    bytes.truncate(received.bytes);
    parse(&bytes, sender, descriptor).map(Some)
}

fn parse(bytes: &[u8], sender: Option<Pid>, descriptor: Option<OwnedFd>) -> Result<Report, Error> {
    match (bytes.split_first(), sender) {
        (Some((b'H', [])), Some(pid)) => Ok(Report::Hello(pid)),
        (Some((b'K', [])), _) => Ok(Report::Hooks),
        (Some((b'R', [])), _) => Ok(Report::Ready(descriptor)),
        (Some((b'F', json)), _) => serde_json::from_slice(json)
            .map(Report::Failed)
            .map_err(|_| Error::Protocol("a failure that cannot be read".into())),
        _ => Err(Error::Protocol("an unknown message".into())),
    }
}

fn send(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    // Without NOSIGNAL a caller that is gone would end this process by SIGPIPE.
    loop {
        let sent = rustix::net::sendmsg(
            socket.as_fd(),
            &[IoSlice::new(message)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_crosses_as_it_is() {
        let (ours, theirs) = pair().unwrap();
        let error = Error::Exec { program: "nope".to_owned(), errno: nix::errno::Errno::ENOENT };
        send_failure(theirs.as_fd(), &error);
        match receive(ours.as_fd()).unwrap() {
            Some(Report::Failed(received)) => {
                assert_eq!(received.to_string(), "exec nope: no such file or directory");
                assert_eq!(received.kind(), berth_model::ErrorKind::NotFound);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_too_long_for_a_packet_is_still_a_failure() {
        let (ours, theirs) = pair().unwrap();
        let error = Error::invalid("process", "x".repeat(LONGEST));
        send_failure(theirs.as_fd(), &error);
        assert!(matches!(receive(ours.as_fd()), Err(Error::Protocol(_))));
    }

    #[test]
    fn the_kernel_names_the_sender_and_passes_the_console() {
        let (ours, theirs) = pair().unwrap();
        assert!(receive(ours.as_fd()).unwrap().is_none());
        send_hello(theirs.as_fd()).unwrap();
        let (one, _other) = pair().unwrap();
        send_ready(theirs.as_fd(), Some(one.as_fd())).unwrap();
        drop(theirs);
        let own = rustix::process::getpid();
        assert!(matches!(receive(ours.as_fd()).unwrap(), Some(Report::Hello(pid)) if pid == own));
        assert!(matches!(receive(ours.as_fd()).unwrap(), Some(Report::Ready(Some(_)))));
        assert!(matches!(receive(ours.as_fd()).unwrap(), Some(Report::End)));
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused() {
        let (ours, theirs) = pair().unwrap();
        for message in [b"X".as_slice(), b"Hello", b"F{"] {
            send(theirs.as_fd(), message, None).unwrap();
            assert!(matches!(receive(ours.as_fd()), Err(Error::Protocol(_))), "{message:?}");
        }
    }
}
