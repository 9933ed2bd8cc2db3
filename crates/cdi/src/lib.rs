//! Container Device Interface: devices by name, from the specifications of their vendors.
//!
//! ```text
//! /etc/cdi/*.{json,yaml}      ─┐
//! /var/run/cdi/*.{json,yaml}  ─┼─▶ Catalogue ── resolve("vendor/class=device") ─▶ Edits
//! ```
//!
//! The directories are looked at when a device is asked for, and files that changed since
//! (another inode, size or ctime) are read again. They are not watched: inotify(7) tells late,
//! loses what overflows its queue and does not cross a directory that comes to be later, so a
//! device whose file was just written — drivers write one for each claim, right before the
//! container that needs it — could be missing. Looking costs a container with devices one
//! readdir for each directory and one stat for each file, and any other container nothing. Invariants:
//! a file that cannot be read or understood costs its own devices and no others; every
//! read is bounded; of two files with one device that of the later directory counts, and
//! in one directory neither does. No annotation is read: who may label a pod may not
//! give it devices. Not here: making any of it (`spec` and the runtime do).
//!
//! What a specification may ask for and Berth does not do — hooks after the start, resctrl,
//! network devices that move — is refused by name when one of its devices is asked for.

mod catalogue;
mod document;
mod error;
mod name;

pub use catalogue::{Catalogue, Overview};
pub use document::{DeviceNode, Hook, HookPoint, Mount, NodeKind};
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
    /// Programs that run while the container is made.
    pub hooks: Vec<Hook>,
}
