//! The inside of a sandbox's network namespace.

use std::os::fd::BorrowedFd;

use crate::error::Error;

/// A netlink socket of a sandbox's network namespace, wherever it is used.
#[derive(Debug)]
pub struct Inside {}

impl Inside {
    /// Prepares the calling thread's network namespace, which must be a new sandbox's:
    /// turns IPv6 off for interfaces made later and opens a socket.
    ///
    /// # Errors
    /// No socket to be had; the kernel parameter cannot be set.
    pub fn here() -> Result<Self, Error> {
        todo!()
    }

    /// Brings `lo` up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn loopback_up(&mut self) -> Result<(), Error> {
        todo!()
    }
}

/// Brings `lo` up in a network namespace. Starts a thread and waits for it.
///
/// # Errors
/// The namespace cannot be entered; the kernel's refusal.
pub fn loopback_up(netns: BorrowedFd<'_>) -> Result<(), Error> {
    todo!()
}
