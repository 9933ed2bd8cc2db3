//! Sandbox networks in process: a bridge, a veth pair per sandbox, addresses, masquerade
//! and port maps, made by netlink; no program is executed and no rule is made per sandbox.
//!
//! ```text
//!  node                          ╎  sandbox
//!  berth0 (gateway .0.1) ── b<id> ╎ eth0 (address, default route), lo
//!     │ forwarding, table "berth": masquerade, two port maps
//! ```
//!
//! [`Network`] is the entry: [`Network::ensure_base`] once, then [`Network::attach`] and
//! [`Network::detach`] per sandbox, [`Network::sweep`] after a restart. All of it blocks
//! (briefly); callers in async code use a thread that is in the node's network namespace.
//!
//! Life of an address: leased by `attach`; after `detach` it stays leased until the host
//! side of the veth is seen gone (it goes with the sandbox's namespace, which the caller
//! drops); after [`LINK_GRACE`] the link is deleted explicitly. Only then is it released.
//!
//! Invariants: every object of ours is found again by name alone (the bridge, the table,
//! host links by their master and a name derived from the sandbox id, port map elements
//! by a comment that is the sandbox id), so nothing is lost with the daemon; two daemons
//! with other bridge and table names never touch each other's objects.
//! Not here: IPv6 addresses, CNI, and namespaces' making (the engine's).

mod address;
mod attach;
mod base;
mod config;
mod conntrack;
mod counters;
mod error;
mod firewall;
mod inside;
mod leases;
mod link;
mod netlink;
mod network;
mod nft;
mod reclaim;
mod route;
mod sweep;
mod sysctl;

pub use address::{InvalidMac, InvalidSubnet, MacAddr, Subnet};
pub use attach::Attachment;
pub use base::Base;
pub use config::{InvalidConfig, NetworkConfig};
pub use counters::{InterfaceCounters, Watched};
pub use error::{Detail, Error, HostPort, StoreError};
pub use inside::Inside;
pub use leases::{LeaseError, Leases};
pub use network::Network;
pub use reclaim::LINK_GRACE;
pub use sweep::Swept;

#[cfg(test)]
mod tests;
