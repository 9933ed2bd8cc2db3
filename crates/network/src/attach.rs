//! Sandboxes come and go.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use berth_model::SandboxId;
use berth_model::sandbox::PortMapping;

use crate::address::MacAddr;
use crate::error::Error;
use crate::inside::Inside;
use crate::network::Network;

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
    /// default route, `lo`, and its ports of the node. All or nothing.
    ///
    /// # Errors
    /// [`Error::AddressesExhausted`], [`Error::PortInUse`] and others about the request;
    /// the kernel's refusals. After an error nothing is left but, for a moment, a lease
    /// whose link is being deleted.
    pub fn attach(
        &self,
        sandbox: &SandboxId,
        netns: BorrowedFd<'_>,
        ports: &[PortMapping],
    ) -> Result<Attachment, Error> {
        todo!()
    }

    /// Like [`Network::attach`], with the namespace already prepared by [`Inside::here`]
    /// on the thread that made it; spares a change of threads (some 60 µs here).
    ///
    /// # Errors
    /// Those of [`Network::attach`].
    pub fn attach_prepared(
        &self,
        sandbox: &SandboxId,
        netns: BorrowedFd<'_>,
        inside: &mut Inside,
        ports: &[PortMapping],
    ) -> Result<Attachment, Error> {
        todo!()
    }

    /// Takes the sandbox's ports of the node away and releases its address as soon as its
    /// host link is gone; waits for neither. The caller drops the namespace.
    ///
    /// Safe to repeat, and for a sandbox that another daemon process attached.
    ///
    /// # Errors
    /// The kernel's refusals; the address is still released in time.
    pub fn detach(&self, sandbox: &SandboxId, attachment: &Attachment) -> Result<(), Error> {
        todo!()
    }

    /// Puts the ports of an attached sandbox back if something flushed them.
    ///
    /// # Errors
    /// Those of [`Network::attach`] about ports.
    pub fn restore_ports(&self, sandbox: &SandboxId, attachment: &Attachment) -> Result<(), Error> {
        todo!()
    }
}
