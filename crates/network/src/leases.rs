//! Who has which address: kept by whoever stores sandboxes.

use std::net::Ipv4Addr;

use berth_model::SandboxId;

use crate::address::Subnet;
use crate::error::StoreError;

/// Why no address could be leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every address of the subnet is leased.
    #[error("every address is leased")]
    Exhausted,
    /// The store failed.
    #[error("store of leases")]
    Store(#[source] StoreError),
}

/// The store of leased addresses.
///
/// Called from the threads that call [`crate::Network`] and from its own reclaiming
/// thread; a call may block as long as a small database transaction does. Leases outlive
/// the daemon: an address whose lease is kept is never given again.
pub trait Leases: Send + Sync {
    /// Leases to `sandbox` an address from [`Subnet::first`] to [`Subnet::last`]: the first
    /// free one after the one leased last, round robin ([`Subnet::next_free`]).
    ///
    /// # Errors
    /// [`LeaseError::Exhausted`] when all are leased; [`LeaseError::Store`] otherwise.
    fn lease(&self, sandbox: &SandboxId, from: &Subnet) -> Result<Ipv4Addr, LeaseError>;

    /// Gives `address` back if `sandbox` has it; success when it has not.
    ///
    /// # Errors
    /// What the store says; the address then stays leased until the next
    /// [`crate::Network::sweep`].
    fn release(&self, sandbox: &SandboxId, address: Ipv4Addr) -> Result<(), StoreError>;

    /// Every lease there is.
    ///
    /// # Errors
    /// What the store says.
    fn leased(&self) -> Result<Vec<(SandboxId, Ipv4Addr)>, StoreError>;
}
