//! What went through an interface.

use std::os::fd::BorrowedFd;

use crate::error::Error;

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

/// Reads the counters of `interface` (`eth0`) in a network namespace.
///
/// # Errors
/// [`Error::NoInterface`]; the namespace cannot be entered; the kernel's refusal.
pub fn interface_counters(
    netns: BorrowedFd<'_>,
    interface: &str,
) -> Result<InterfaceCounters, Error> {
    todo!()
}
