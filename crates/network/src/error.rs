//! Why a network operation failed.

use std::fmt;
use std::io;
use std::net::IpAddr;

use berth_model::sandbox::Protocol;
use berth_model::{ErrorKind, SandboxId};
use nix::errno::Errno;

use crate::address::Subnet;
use crate::config::InvalidConfig;

/// What the store of leases answered; its own error is kept as the source.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error("invalid network configuration")]
    Config(#[source] InvalidConfig),
    /// Another interface of the node has addresses of the subnet.
    #[error("subnet {subnet} overlaps {address}/{prefix} of interface {interface}")]
    SubnetInUse {
        /// The configured subnet.
        subnet: Subnet,
        /// The other interface.
        interface: String,
        /// Its address.
        address: std::net::Ipv4Addr,
        /// Length of its prefix, bits.
        prefix: u8,
    },
    /// The configured bridge name is that of something else.
    #[error("interface {0} exists and is not a bridge")]
    NotABridge(String),
    /// The bridge is there, and down.
    #[error("bridge {0} is down")]
    BridgeDown(String),
    /// Every address of the subnet is leased.
    #[error("no free address in subnet {0}")]
    AddressesExhausted(Subnet),
    /// The store of leases failed.
    #[error("{operation} of sandbox {sandbox}")]
    Lease {
        /// What was asked of it.
        operation: &'static str,
        /// For which sandbox.
        sandbox: SandboxId,
        /// Its answer.
        source: StoreError,
    },
    /// The store of leases could not list them.
    #[error("list leased addresses")]
    ListLeases(#[source] StoreError),
    /// A port of the node leads to another sandbox already.
    #[error("host port {port} is already mapped to sandbox {holder}")]
    PortInUse {
        /// The port.
        port: HostPort,
        /// Where it leads.
        holder: String,
    },
    /// A request names one port of the node twice.
    #[error("host port {0} is named twice")]
    PortRepeated(HostPort),
    /// A mapping without a port of the node, or without one of the sandbox.
    #[error("port mapping {host_port}:{container_port} has a port 0")]
    PortZero {
        /// Port on the node.
        host_port: u16,
        /// Port in the sandbox.
        container_port: u16,
    },
    /// A mapping of an IPv6 address of the node; sandboxes have IPv4 addresses only.
    #[error("host port {0} needs IPv6, which sandboxes do not have")]
    PortIpv6(HostPort),
    /// More mappings than one sandbox may have.
    #[error("sandbox {sandbox} has {count} port mappings, more than {limit}")]
    TooManyPorts {
        /// The sandbox.
        sandbox: SandboxId,
        /// How many it has.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A sandbox that has a host link already.
    #[error("sandbox {sandbox} is attached already: link {link} exists")]
    AlreadyAttached {
        /// The sandbox.
        sandbox: SandboxId,
        /// Its host link.
        link: String,
    },
    /// The kernel refused a request.
    #[error("{operation}{detail}")]
    Kernel {
        /// What was asked, with the name of the object.
        operation: String,
        /// The kernel's own words, when it gave some (netlink extended ACK).
        detail: Detail,
        /// Its error number.
        source: Errno,
    },
    /// A netlink socket failed.
    #[error("{operation} over netlink")]
    Netlink {
        /// What was to be asked, with the name of the object.
        operation: String,
        /// Why it could not be.
        source: Errno,
    },
    /// An answer of the kernel that is not of its form: netlink(7), proc(5).
    #[error("{operation}: malformed answer of the kernel ({reason})")]
    Malformed {
        /// What was asked.
        operation: String,
        /// What is wrong with the answer.
        reason: &'static str,
    },
    /// A kernel parameter could not be read or set.
    #[error("{operation} kernel parameter {path}")]
    Sysctl {
        /// `read` or `set`.
        operation: &'static str,
        /// Its file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file could not be opened in the sandbox's network namespace.
    #[error("open {path} in network namespace of sandbox")]
    Open {
        /// The file.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A file of the sandbox's network namespace could not be read.
    #[error("read {path} in network namespace of sandbox")]
    Read {
        /// The file.
        path: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The sandbox's network namespace could not be entered.
    #[error("enter network namespace of sandbox")]
    EnterNetns(#[source] Errno),
    /// A thread could not be started.
    #[error("start thread {name}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The thread that enters namespaces ended without an answer.
    #[error("the thread that enters network namespaces is gone")]
    ThreadGone,
    /// The namespace has no such interface.
    #[error("interface {0} not found")]
    NoInterface(String),
}

impl Error {
    /// What a front turns into a gRPC or HTTP status; the text is for people only.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::PortRepeated(_) | Self::PortZero { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::TooManyPorts { .. } => ErrorKind::InvalidArgument,
            Self::SubnetInUse { .. } | Self::NotABridge(_) => ErrorKind::FailedPrecondition,
            Self::PortInUse { .. } | Self::BridgeDown(_) => ErrorKind::FailedPrecondition,
            Self::AlreadyAttached { .. } => ErrorKind::AlreadyExists,
            Self::AddressesExhausted(_) => ErrorKind::ResourceExhausted,
            Self::PortIpv6(_) => ErrorKind::Unimplemented,
            Self::NoInterface(_) => ErrorKind::NotFound,
            Self::Kernel { source: Errno::ENOSPC, .. }
            | Self::Netlink { source: Errno::ENOSPC, .. } => ErrorKind::ResourceExhausted,
            Self::Kernel { .. }
            | Self::Lease { .. }
            | Self::ListLeases(_)
            | Self::Netlink { .. }
            | Self::Malformed { .. }
            | Self::Sysctl { .. }
            | Self::Open { .. }
            | Self::Read { .. }
            | Self::EnterNetns(_)
            | Self::Thread { .. }
            | Self::ThreadGone => ErrorKind::Internal,
        }
    }

    /// The kernel's error number, when it was the kernel that refused.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// The kernel's own words about a refusal; nothing when it gave none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Detail(pub(crate) Option<String>);

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(words) => write!(f, " ({words})"),
            None => Ok(()),
        }
    }
}

/// A port of the node, as an error names it: `tcp 127.0.0.1:8080`, `udp *:53`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct HostPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address; `None` is every address of the node.
    pub address: Option<IpAddr>,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "{protocol} [{address}]:{}", self.port),
            Some(address) => write!(f, "{protocol} {address}:{}", self.port),
            None => write!(f, "{protocol} *:{}", self.port),
        }
    }
}
