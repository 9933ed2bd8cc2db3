//! The plain types every part of Berth shares: ids, digests, image references,
//! lifecycle states, and what a client wants of a sandbox or a container.
//!
//! Invariants: no I/O, no syscalls, no clock; a value that exists is valid (ids,
//! digests and references are checked when they are made). Not here: the OCI
//! runtime specification (`spec`), stored records (`metadata`).

pub mod container;
pub mod digest;
pub mod error;
pub mod id;
pub mod ids;
pub mod image;
pub mod mount;
pub mod profile;
pub mod reference;
pub mod sandbox;
pub mod stats;
pub mod task;

pub use container::{ContainerSpec, ContainerState};
pub use digest::{ChainId, DiffId, Digest};
pub use error::{ErrorKind, chain};
pub use id::{ContainerId, ExecId, SandboxId};
pub use ids::{IdMappings, IdRange};
pub use reference::Reference;
pub use sandbox::{SandboxSpec, SandboxState};
