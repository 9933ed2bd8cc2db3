//! After a restart: whatever no record names goes.

use std::collections::HashSet;

use berth_model::SandboxId;

use crate::error::Error;
use crate::network::Network;

/// What [`Network::sweep`] removed or began to remove.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Host links.
    pub links: usize,
    /// Elements of the port maps.
    pub ports: usize,
    /// Leases; those of links that still exist are released when these are gone.
    pub leases: usize,
}

impl Network {
    /// Removes the links, ports and leases of ours that no sandbox in `live` has.
    ///
    /// # Errors
    /// The first failure; all steps are tried.
    pub fn sweep(&self, live: &HashSet<SandboxId>) -> Result<Swept, Error> {
        todo!()
    }
}
