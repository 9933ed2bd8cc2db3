//! What all sandboxes share: the bridge, forwarding, and the nftables table.

use nix::errno::Errno;

use crate::address::MacAddr;
use crate::error::Error;
use crate::link;
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::network::Network;
use crate::{firewall, route, sysctl};

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
        let bridge_made = self.ensure_bridge(&mut self.route())?;
        let forwarding_enabled = enable_forwarding()?;
        firewall::ensure(&mut self.netfilter(), &self.config)?;
        Ok(Base { bridge_made, forwarding_enabled })
    }

    fn ensure_bridge(&self, route: &mut Socket) -> Result<bool, Error> {
        let name = self.config.bridge.as_str();
        let found = link::find(route, name)?;
        if found.as_ref().is_some_and(|link| link.kind != "bridge") {
            return Err(Error::NotABridge(name.to_owned()));
        }
        self.refuse_overlap(route, found.as_ref().map(|link| link.index))?;
        let made = found.is_none();
        let mut request = Request::new();
        if made {
            let mac = MacAddr::of(self.config.subnet.gateway());
            route::add_bridge(&mut request, name, self.config.mtu, mac);
        } else {
            route::set_link_up(&mut request, name, self.config.mtu);
        }
        route.run(request)?;
        let index = self.find_bridge(route)?;
        if made {
            // Without IPv6 the node does not obey router advertisements of sandboxes.
            sysctl::set_if_present(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        }
        let (subnet, mut request) = (&self.config.subnet, Request::new());
        route::add_address(&mut request, index, subnet.gateway(), subnet);
        route.run(request)?;
        Ok(made)
    }

    /// An address of the subnet on another interface would make both unreachable in part.
    fn refuse_overlap(&self, socket: &mut Socket, bridge: Option<u32>) -> Result<(), Error> {
        let mut request = Request::new();
        route::list_addresses(&mut request);
        let mut addresses = Vec::new();
        socket.query(request, |answer| {
            addresses.extend(route::parse_address(&answer)?);
            Ok(())
        })?;
        let subnet = self.config.subnet;
        let others = addresses.iter().filter(|other| Some(other.index) != bridge);
        let overlap = others.into_iter().find(|other| subnet.overlaps(other.address, other.prefix));
        let Some(&route::InterfaceAddress { index, address, prefix }) = overlap else {
            return Ok(());
        };
        let links = link::list(socket, None)?;
        let link = links.into_iter().find(|link| link.index == index);
        let interface = link.map_or_else(|| index.to_string(), |link| link.name);
        Err(Error::SubnetInUse { subnet, interface, address, prefix })
    }

    /// Whether sandboxes can be attached now: the bridge is up, and the table is there.
    ///
    /// # Errors
    /// What is missing, or the kernel's refusal to say.
    pub fn ready(&self) -> Result<(), Error> {
        let name = &self.config.bridge;
        let bridge = link::find(&mut self.route(), name)?;
        let bridge = bridge.ok_or_else(|| Error::NoInterface(name.clone()))?;
        if !bridge.up {
            return Err(Error::BridgeDown(name.clone()));
        }
        firewall::check(&mut self.netfilter(), &self.config.table)
    }

    /// Removes the table, our links, and the bridge unless it has links of others.
    /// Forwarding stays as it is, since others may have come to need it. Leases are not
    /// touched.
    ///
    /// # Errors
    /// The first failure; all steps are tried.
    pub fn teardown(&self) -> Result<(), Error> {
        let table = firewall::remove(&mut self.netfilter(), &self.config.table);
        let bridge = self.remove_bridge(&mut self.route());
        table.and(bridge)
    }

    fn remove_bridge(&self, route: &mut Socket) -> Result<(), Error> {
        let bridge = match self.find_bridge(route) {
            Err(Error::NoInterface(_)) => return Ok(()),
            bridge => bridge?,
        };
        let (ours, others): (Vec<_>, Vec<_>) = link::ports(route, bridge)?
            .into_iter()
            .partition(|port| link::is_host_name(&port.name));
        let names: Vec<&str> = ours.iter().map(|port| port.name.as_str()).collect();
        link::delete(route, &names)?;
        if others.is_empty() {
            link::delete(route, &[&self.config.bridge])?;
            self.set_bridge(0);
        }
        Ok(())
    }

    /// Lets processes of the node reach mapped ports at 127.0.0.1: once per bridge, when
    /// the first such mapping comes.
    pub(crate) fn ensure_localnet(&self) -> Result<(), Error> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.localnet.load(Relaxed) {
            return Ok(());
        }
        let mut request = Request::new();
        route::set_route_localnet(&mut request, &self.config.bridge);
        match self.route().run(request) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => {
                Err(Error::NoInterface(self.config.bridge.clone()))
            }
            result => result.map(|()| self.localnet.store(true, Relaxed)),
        }
    }
}

/// Turns IPv4 forwarding on; says whether it was off.
fn enable_forwarding() -> Result<bool, Error> {
    const FORWARDING: &str = "net/ipv4/ip_forward";
    let was_off = sysctl::get(FORWARDING)? == "0";
    if was_off {
        sysctl::set(FORWARDING, "1")?;
    }
    Ok(was_off)
}
