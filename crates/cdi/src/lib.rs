//! Container Device Interface: devices by name, from the specifications of their vendors.
//!
//! ```text
//! /etc/cdi/*.{json,yaml}      ─┐
//! /var/run/cdi/*.{json,yaml}  ─┼─▶ Catalogue ── resolve("vendor/class=device") ─▶ Edits
//! ```
//!
//! The directories are looked at when a device is asked for, and files that changed since
//! are read again: nothing has to be watched, and nothing is ever out of date. Invariants:
//! a file that cannot be read or understood costs its own devices and no others; every
//! read is bounded; of two files with one device that of the later directory counts, and
//! in one directory neither does. No annotation is read: who may label a pod may not
//! give it devices. Not here: making any of it (`spec` and the runtime do).
//!
//! What a specification may ask for and Berth does not do — hooks, resctrl, network devices
//! that move — is refused by name when one of its devices is asked for.

mod catalogue;
mod document;
mod error;
mod name;

pub use catalogue::Catalogue;
pub use document::{DeviceNode, Mount, NodeKind};
pub use error::Error;
pub use name::DeviceName;

/// What a container gets with its devices, in the order asked for: first what all devices
/// of a specification have in common, once, then what each has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Edits {
    /// Environment: names and values; of two for one name the later counts.
    pub env: Vec<(String, String)>,
    /// Device nodes.
    pub nodes: Vec<DeviceNode>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Groups of the first process, beside those it has.
    pub groups: Vec<u32>,
}
