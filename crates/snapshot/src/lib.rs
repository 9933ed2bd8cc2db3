//! Snapshots: the directories that become the root file systems of containers.
//!
//! A *committed* snapshot is one unpacked layer, named by its chain ID and never changed
//! again. An *active* one is the writable part of a container, named by a key, on top of
//! a chain of committed ones; overlayfs merges them.
//!
//! ```text
//! ROOT/l/N               a layer; the number keeps overlay's option string short
//! ROOT/committed/HEX     symbolic link to ../l/N, HEX being the chain ID's digits
//! ROOT/active/KEY/upper  what a container wrote (and work, which overlayfs needs)
//! ROOT/ingest/N          a layer in the making
//! ROOT/trash/N           something on its way out
//! ROOT/empty             the lower directory of images without layers
//! ```
//!
//! Invariants: directories are the only state here, records are `metadata`'s; a name
//! appears and disappears by one atomic call; nothing below a layer is ever reached by a
//! path that the layer's content can bend (single components, no symbolic link followed
//! by the kernel); no tree, however deep, costs more than [`tree::OPEN_DIRECTORIES`]
//! descriptors. Nothing here mounts anything but the probe of [`Snapshots::open`], which
//! is never attached. Not here: durability (`image` syncs before it records), tar.

mod error;
mod key;
mod link;
mod meta;
mod probe;
mod store;
mod trash;
mod tree;
mod view;

pub use error::Error;
pub use key::SnapshotKey;
pub use meta::{MAX_XATTR_BYTES, OPAQUE_XATTR, copy_metadata, is_overlay_xattr};
pub use probe::volatile_supported;
pub use store::{Committed, Durability, LayerDir, MAX_LAYERS, Snapshots};
pub use trash::{Size, Trash};
pub use tree::{OPEN_DIRECTORIES, remove as remove_tree, usage};
pub use view::{Found, MergedView};
