//! What went through an interface.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use crate::error::Error;
use crate::inside::visit;
use crate::netlink::request::Request;
use crate::route;

/// What went through an interface since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InterfaceCounters {
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

/// Reads the counters of `interface` (`eth0`) in a network namespace. Starts a thread and
/// waits for it.
///
/// # Errors
/// [`Error::NoInterface`]; the namespace cannot be entered; the kernel's refusal.
pub fn interface_counters(
    netns: BorrowedFd<'_>,
    interface: &str,
) -> Result<InterfaceCounters, Error> {
    // The kernel compares names of up to 15 bytes; a longer one is no interface's.
    if interface.is_empty() || interface.len() > 15 {
        return Err(Error::NoInterface(interface.chars().take(64).collect()));
    }
    let mut inside = visit(netns)?;
    let mut request = Request::new();
    route::get_link_counters(&mut request, interface);
    let mut found = None;
    let result = inside.socket.query(request, |answer| {
        found = found.take().or(route::parse_counters(&answer)?);
        Ok(())
    });
    let missing = || Error::NoInterface(interface.to_owned());
    match result {
        Err(error) if error.errno() == Some(Errno::ENODEV) => return Err(missing()),
        result => result?,
    }
    let [rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped] =
        found.ok_or_else(missing)?;
    Ok(InterfaceCounters {
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}
