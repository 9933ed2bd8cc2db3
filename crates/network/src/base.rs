//! What all sandboxes share: the bridge, forwarding, and the nftables table.

use crate::error::Error;
use crate::network::Network;

/// What [`Network::ensure_base`] found and did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Base {
    /// Whether the bridge was made (and not there already).
    pub bridge_made: bool,
    /// Whether IPv4 forwarding of the node was off before, and turned on.
    pub forwarding_enabled: bool,
}

impl Network {
    /// Makes the bridge, the table and forwarding, or mends them. Safe to repeat: port
    /// maps and links that exist stay as they are.
    ///
    /// Call it on a thread in the node's network namespace (kernel parameters go by the
    /// thread's).
    ///
    /// # Errors
    /// [`Error::SubnetInUse`], [`Error::NotABridge`]; the kernel's refusals.
    pub fn ensure_base(&self) -> Result<Base, Error> {
        todo!()
    }

    /// Whether sandboxes can be attached now: the bridge is up, and the table is there.
    ///
    /// # Errors
    /// What is missing, or the kernel's refusal to say.
    pub fn ready(&self) -> Result<(), Error> {
        todo!()
    }

    /// Removes the table, our links, and the bridge unless it has links of others.
    /// Forwarding stays as it is, since others may have come to need it. Leases are not
    /// touched.
    ///
    /// # Errors
    /// The first failure; all steps are tried.
    pub fn teardown(&self) -> Result<(), Error> {
        todo!()
    }
}
