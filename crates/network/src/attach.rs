//! Sandboxes come and go.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use berth_failpoint::Point;
use berth_model::SandboxId;
use berth_model::sandbox::PortMapping;
use nix::errno::Errno;

use crate::address::MacAddr;
use crate::error::Error;
use crate::inside::Inside;
use crate::leases::LeaseError;
use crate::link;
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::network::Network;
use crate::reclaim::{Draining, LINK_GRACE};
use crate::route::{Link, Veth};
use crate::{conntrack, firewall, route};

/// The interface of a sandbox.
pub(crate) const INTERFACE: &str = "eth0";

/// How a sandbox is attached. All of it is needed to detach it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// Address of the sandbox's `eth0`.
    pub address: Ipv4Addr,
    /// Length of its prefix, bits.
    pub prefix: u8,
    /// Where its default route leads: the bridge.
    pub gateway: Ipv4Addr,
    /// Hardware address of its `eth0`.
    pub mac: MacAddr,
    /// Name of its link on the node.
    pub host_interface: String,
    /// Index of its link on the node.
    pub host_index: u32,
    /// Ports of the node that lead to it.
    pub ports: Vec<PortMapping>,
}

impl Network {
    /// Gives the sandbox whose network namespace is `netns` an address, an `eth0`, a
    /// default route, `lo`, and its ports of the node. All or nothing. `inside` was made by
    /// [`Inside::here`], on the thread that made the namespace.
    ///
    /// # Errors
    /// [`Error::AddressesExhausted`], [`Error::PortInUse`] and others about the request;
    /// the kernel's refusals. After an error nothing is left.
    pub fn attach(
        &self,
        sandbox: &SandboxId,
        netns: BorrowedFd<'_>,
        inside: Inside,
        ports: &[PortMapping],
    ) -> Result<Attachment, Error> {
        firewall::port_elements(sandbox, Ipv4Addr::UNSPECIFIED, ports)?;
        let address = self.lease(sandbox)?;
        if let Err(error) = step(Point::RUN_ADDRESS_LEASED) {
            self.undo_lease(sandbox, address);
            return Err(error);
        }
        let link = match self.add_link(sandbox, netns, address) {
            Ok(link) => link,
            Err(error @ Error::AlreadyAttached { .. }) => {
                self.undo_lease(sandbox, address);
                return Err(error);
            }
            Err(error) => {
                self.undo_link(sandbox, address);
                return Err(error);
            }
        };
        let result = self.configure(sandbox, &link, inside, address, ports);
        result.inspect_err(|_| self.undo_link(sandbox, address))?;
        let subnet = &self.config.subnet;
        Ok(Attachment {
            address,
            prefix: subnet.prefix(),
            gateway: subnet.gateway(),
            mac: MacAddr::of(address),
            host_interface: link.name,
            host_index: link.index,
            ports: ports.to_vec(),
        })
    }

    fn lease(&self, sandbox: &SandboxId) -> Result<Ipv4Addr, Error> {
        let subnet = &self.config.subnet;
        self.leases.lease(sandbox, subnet).map_err(|error| match error {
            LeaseError::Exhausted => Error::AddressesExhausted(*subnet),
            LeaseError::Store(source) => {
                Error::Lease { operation: "lease address", sandbox: sandbox.clone(), source }
            }
        })
    }

    /// Gives back an address that no link has; the reclaimer does when the store does not
    /// take it now.
    fn undo_lease(&self, sandbox: &SandboxId, address: Ipv4Addr) {
        if let Err(error) = self.leases.release(sandbox, address) {
            tracing::warn!(sandbox.id = %sandbox, %address, error, "release address; tried again");
            let lease = Some((sandbox.clone(), address));
            let delete_at = Instant::now();
            self.reclaimer.drain(Draining { name: None, index: None, lease, delete_at });
        }
    }

    /// Deletes the link, if it came to be, and then gives the address back.
    ///
    /// Both before it returns, since whoever tries again uses the same name; only a link
    /// that does not go is left to the reclaimer.
    fn undo_link(&self, sandbox: &SandboxId, address: Ipv4Addr) {
        let name = link::host_name(sandbox);
        match link::delete(&mut self.route(), &[&name]) {
            Ok(()) => return self.undo_lease(sandbox, address),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(sandbox.id = %sandbox, error, "delete link {name}");
            }
        }
        self.reclaimer.drain(Draining {
            name: Some(name),
            index: None,
            lease: Some((sandbox.clone(), address)),
            delete_at: Instant::now(),
        });
    }

    fn add_link(
        &self,
        sandbox: &SandboxId,
        netns: BorrowedFd<'_>,
        address: Ipv4Addr,
    ) -> Result<Link, Error> {
        let name = link::host_name(sandbox);
        let mut route = self.route();
        let bridge_index = self.bridge_index(&mut route)?;
        let mut veth = Veth {
            host_name: &name,
            bridge_index,
            peer_name: INTERFACE,
            peer_netns: netns,
            peer_mac: MacAddr::of(address),
            mtu: self.config.mtu,
        };
        match add_veth(&mut route, &veth) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                if link::find(&mut route, &name)?.is_some() {
                    return Err(Error::AlreadyAttached { sandbox: sandbox.clone(), link: name });
                }
                Err(error) // The sandbox has an `eth0`.
            }
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ENODEV)) => {
                veth.bridge_index = self.find_bridge(&mut route)?;
                if veth.bridge_index == bridge_index {
                    return Err(error);
                }
                add_veth(&mut route, &veth) // The bridge was made anew by somebody.
            }
            result => result,
        }
    }

    fn configure(
        &self,
        sandbox: &SandboxId,
        link: &Link,
        mut inside: Inside,
        address: Ipv4Addr,
        ports: &[PortMapping],
    ) -> Result<(), Error> {
        let eth0 = link.peer.ok_or_else(|| Error::Malformed {
            operation: format!("add veth {}", link.name),
            reason: "a veth without its other end",
        })?;
        step(Point::RUN_LINK_MADE)?;
        inside.configure(eth0, address, &self.config.subnet)?;
        step(Point::RUN_LINK_CONFIGURED)?;
        self.add_ports(sandbox, address, ports, firewall::add_port_elements)
    }

    fn add_ports(
        &self,
        sandbox: &SandboxId,
        address: Ipv4Addr,
        ports: &[PortMapping],
        add: impl FnOnce(&mut Socket, &str, &[firewall::PortElement]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if ports.is_empty() {
            return Ok(());
        }
        let elements = firewall::port_elements(sandbox, address, ports)?;
        if elements.iter().any(firewall::PortElement::serves_loopback) {
            self.ensure_localnet()?;
        }
        let mut netfilter = self.netfilter();
        add(&mut netfilter, &self.config.table, &elements)?;
        if conntrack::concerns(ports) {
            note(conntrack::forget_unanswered(&mut netfilter, ports));
        }
        Ok(())
    }

    /// Takes the sandbox's ports of the node away and releases its address as soon as its
    /// host link is gone; waits for neither. The caller drops the namespace.
    ///
    /// Safe to repeat, and for a sandbox that another daemon process attached.
    ///
    /// # Errors
    /// The kernel's refusals; the address is still released in time.
    pub fn detach(&self, sandbox: &SandboxId, attachment: &Attachment) -> Result<(), Error> {
        // Before the address can be another's: its ports must not lead there. As long as
        // they do, the lease is kept for whoever detaches again.
        let unmapped = self.remove_ports(sandbox, attachment);
        let unmapped = unmapped.and_then(|()| step(Point::STOP_PORTS_REMOVED));
        self.reclaimer.drain(Draining {
            name: Some(attachment.host_interface.clone()),
            index: Some(attachment.host_index),
            lease: unmapped.is_ok().then(|| (sandbox.clone(), attachment.address)),
            delete_at: Instant::now() + LINK_GRACE,
        });
        unmapped
    }

    fn remove_ports(&self, sandbox: &SandboxId, attachment: &Attachment) -> Result<(), Error> {
        if attachment.ports.is_empty() {
            return Ok(());
        }
        let (table, mut netfilter) = (&self.config.table, self.netfilter());
        let ours = |owner: &str| owner == sandbox.as_str();
        firewall::remove_port_elements(&mut netfilter, table, ours)?;
        if conntrack::concerns(&attachment.ports) {
            note(conntrack::forget_served(&mut netfilter, attachment.address));
        }
        Ok(())
    }

    /// Puts an attached sandbox back on a bridge and a table that were made again: its link,
    /// and its ports of the node. Safe to repeat.
    ///
    /// # Errors
    /// Those of [`Network::attach`] about links and ports.
    pub fn reattach(&self, sandbox: &SandboxId, attachment: &Attachment) -> Result<(), Error> {
        let Attachment { address, ports, host_interface, .. } = attachment;
        let mut route = self.route();
        let mut request = Request::new();
        route::set_master(&mut request, host_interface, self.bridge_index(&mut route)?);
        route.run(request)?;
        drop(route);
        self.add_ports(sandbox, *address, ports, firewall::restore_port_elements)
    }
}

fn add_veth(socket: &mut Socket, veth: &Veth<'_>) -> Result<Link, Error> {
    let mut request = Request::new();
    route::add_veth(&mut request, veth);
    let mut made = None;
    socket.query(request, |answer| {
        made = made.take().or(route::parse_link(&answer)?);
        Ok(())
    })?;
    made.ok_or_else(|| Error::NoInterface(veth.host_name.to_owned()))
}

/// Flows that could not be forgotten end by themselves after 30 to 120 silent seconds:
/// worth a word, not a failure.
fn note(forgotten: Result<(), Error>) {
    if let Err(error) = forgotten {
        tracing::warn!(error = &error as &dyn std::error::Error, "forget UDP flows");
    }
}

/// Passes a point at which a test may stop the work; nothing in what ships.
fn step(point: Point) -> Result<(), Error> {
    berth_failpoint::pass(point).map_err(|error| Error::Netlink {
        operation: point.name.to_owned(),
        source: error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw),
    })
}
