//! After a restart: whatever no record names goes.

use std::collections::HashSet;
use std::time::Instant;

use berth_model::SandboxId;

use crate::error::Error;
use crate::network::Network;
use crate::reclaim::Draining;
use crate::{firewall, link};

/// What [`Network::sweep`] removed or began to remove.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Host links; they are being deleted.
    pub links: usize,
    /// Elements of the port maps.
    pub ports: usize,
    /// Leases; each is released when its link is gone.
    pub leases: usize,
}

impl Network {
    /// Removes the links, ports and leases of ours that no sandbox in `live` has.
    ///
    /// To be called before sandboxes are attached: one that is being attached and not yet
    /// in `live` would be taken for a leftover.
    ///
    /// # Errors
    /// The first failure; all steps are tried.
    pub fn sweep(&self, live: &HashSet<SandboxId>) -> Result<Swept, Error> {
        let links = self.sweep_links(live);
        let ports = self.sweep_ports(live);
        let leases = self.sweep_leases(live);
        Ok(Swept { links: links?, ports: ports?, leases: leases? })
    }

    fn sweep_links(&self, live: &HashSet<SandboxId>) -> Result<usize, Error> {
        let named: HashSet<String> = live.iter().map(link::host_name).collect();
        let mut route = self.route();
        let bridge = match self.find_bridge(&mut route) {
            Err(Error::NoInterface(_)) => return Ok(0),
            bridge => bridge?,
        };
        let mut stale = link::ports(&mut route, bridge)?;
        stale.retain(|port| link::is_host_name(&port.name) && !named.contains(&port.name));
        let count = stale.len();
        for port in stale {
            let (name, index) = (Some(port.name), Some(port.index));
            self.reclaimer.drain(Draining { name, index, lease: None, delete_at: Instant::now() });
        }
        Ok(count)
    }

    fn sweep_ports(&self, live: &HashSet<SandboxId>) -> Result<usize, Error> {
        let live: HashSet<&str> = live.iter().map(SandboxId::as_str).collect();
        let (table, mut netfilter) = (&self.config.table, self.netfilter());
        firewall::remove_port_elements(&mut netfilter, table, |owner| !live.contains(owner))
    }

    fn sweep_leases(&self, live: &HashSet<SandboxId>) -> Result<usize, Error> {
        let mut leases = self.leases.leased().map_err(Error::ListLeases)?;
        leases.retain(|(sandbox, _)| !live.contains(sandbox));
        let count = leases.len();
        for lease in leases {
            self.reclaimer.drain(Draining {
                name: Some(link::host_name(&lease.0)),
                index: None,
                lease: Some(lease),
                delete_at: Instant::now(),
            });
        }
        Ok(count)
    }
}
