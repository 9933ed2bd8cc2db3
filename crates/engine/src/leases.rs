//! The network's leases, kept in `pods.db`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use berth_metadata::PodStore;
use berth_model::SandboxId;
use berth_network::{LeaseError, Leases, StoreError, Subnet};

/// Addresses are rows of the pod store.
pub(crate) struct StoredLeases(pub(crate) Arc<PodStore>);

impl Leases for StoredLeases {
    fn lease(&self, sandbox: &SandboxId, from: &Subnet) -> Result<Ipv4Addr, LeaseError> {
        self.0.lease_address(sandbox, from.first(), from.last()).map_err(|error| match error {
            berth_metadata::Error::NoAddress { .. } => LeaseError::Exhausted,
            other => LeaseError::Store(Box::new(other)),
        })
    }

    fn release(&self, sandbox: &SandboxId, address: Ipv4Addr) -> Result<(), StoreError> {
        Ok(self.0.release_address(sandbox, address).map(drop)?)
    }

    fn leased(&self) -> Result<Vec<(SandboxId, Ipv4Addr)>, StoreError> {
        let leases = self.0.leases()?;
        Ok(leases.into_iter().map(|lease| (lease.sandbox, lease.address)).collect())
    }
}
