//! What went through the interfaces of a sandbox.
//!
//! They are read from outside: rtnetlink(7) lists the links of another namespace to whoever
//! names it by the number that it has here (`IFLA_TARGET_NETNSID`, Linux 4.20). To enter it
//! would take a thread for each reading.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::attach::INTERFACE;
use crate::error::Error;
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::network::Network;
use crate::route;

/// Most interfaces of a sandbox that are told of, beside its own: who may make some there may
/// make so many that lists of all sandboxes outgrow a message.
const MOST: usize = 256;

/// An interface, and what went through it since it was made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InterfaceCounters {
    /// Its name in the sandbox.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received in error.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets not sent for an error.
    pub tx_errors: u64,
    /// Packets dropped before they were sent.
    pub tx_dropped: u64,
}

/// A network namespace whose counters are read again and again.
///
/// It is kept open. So the number by which the node's namespace knows it is looked up once:
/// the kernel gives that to no other namespace while this one exists.
#[derive(Debug)]
pub struct Watched {
    nsid: i32,
    _netns: OwnedFd,
}

impl Network {
    /// What [`Network::counters`] reads of: the namespace exists at least as long as that.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn watch(&self, netns: OwnedFd) -> Result<Watched, Error> {
        let mut socket = self.reading();
        let nsid = match nsid(&mut socket, netns.as_fd())? {
            Some(nsid) => nsid,
            // It has one from its first veth on; a namespace without one is numbered now.
            None => {
                let mut request = Request::new();
                route::add_nsid(&mut request, netns.as_fd());
                match socket.run(request) {
                    // Somebody else was faster.
                    Err(error) if error.errno() == Some(nix::errno::Errno::EEXIST) => {}
                    result => result?,
                }
                nsid_given(&mut socket, netns.as_fd())?
            }
        };
        Ok(Watched { nsid, _netns: netns })
    }

    /// Reads the counters of every interface in a network namespace but `lo`, in the order
    /// in which they were made; of very many of them only the first, and the sandbox's own.
    /// Some ten microseconds.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn counters(&self, netns: &Watched) -> Result<Vec<InterfaceCounters>, Error> {
        let mut request = Request::new();
        route::list_counters(&mut request, netns.nsid);
        let mut all = Vec::new();
        self.reading().query(request, |answer| {
            if let Some((name, counters)) = route::parse_counters(&answer)? {
                keep(&mut all, name, counters);
            }
            Ok(())
        })?;
        Ok(all)
    }
}

fn nsid(socket: &mut Socket, netns: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
    let mut request = Request::new();
    route::get_nsid(&mut request, netns);
    let mut found = None;
    socket.query(request, |answer| {
        found = found.take().or(route::parse_nsid(&answer)?);
        Ok(())
    })?;
    Ok(found)
}

fn nsid_given(socket: &mut Socket, netns: BorrowedFd<'_>) -> Result<i32, Error> {
    nsid(socket, netns)?.ok_or_else(|| Error::Malformed {
        operation: "find number of network namespace".into(),
        reason: "it was just given one",
    })
}

fn keep(all: &mut Vec<InterfaceCounters>, name: String, counters: [u64; 8]) {
    if all.len() < MOST || name == INTERFACE {
        all.push(told(name, counters));
    }
}

fn told(name: String, counters: [u64; 8]) -> InterfaceCounters {
    let [rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped] =
        counters;
    InterfaceCounters {
        name,
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/network/src/counters.rs: `all.len() < MOST` → `true`
    #[test]
    fn who_makes_very_many_interfaces_does_not_outgrow_lists() {
        let mut all = Vec::new();
        for number in 0..10_000 {
            keep(&mut all, format!("dummy{number}"), [number; 8]);
        }
        keep(&mut all, INTERFACE.to_owned(), [7; 8]);
        assert_eq!(all.len(), MOST + 1);
        assert_eq!((&*all[0].name, &*all[MOST].name), ("dummy0", INTERFACE));
        assert_eq!(all[MOST].rx_bytes, 7);
    }
}
