//! Addresses are given back only when the link that had them is gone (decision 8).

use std::time::Duration;

use crate::network::Network;

/// How long a host link may outlive its sandbox's detachment before it is deleted.
pub const LINK_GRACE: Duration = Duration::from_secs(30);

impl Network {
    /// How many detached sandboxes still have a host link, and so a lease.
    #[must_use]
    pub fn draining(&self) -> usize {
        todo!()
    }

    /// Waits until no detached sandbox has a host link; says whether that came to be.
    #[must_use]
    pub fn wait_drained(&self, limit: Duration) -> bool {
        todo!()
    }
}
