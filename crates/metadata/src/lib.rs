//! The stores of record: what exists on this node, kept in two SQLite files.
//!
//! - [`ImageStore`] (`images.db`): images, the names that lead to them, blobs and
//!   committed snapshots. Every commit reaches the disk (`synchronous=FULL`).
//! - [`PodStore`] (`pods.db`): sandboxes, containers, leased addresses. A commit
//!   survives the death of the daemon; a power cut may lose the last moments
//!   (`synchronous=NORMAL`), which recovery reconciles.
//!
//! Both are WAL files that `sqlite3` opens: what an operator asks for (names, states,
//! times) has its own column, the rest is one JSON column.
//!
//! A record of a sandbox or container has a copy beside what it describes ([`Copies`]),
//! from which `pods.db` is made anew. Each row carries a checksum.
//!
//! Invariants: a file of a newer schema is refused and left as it is; a damaged file is a
//! typed error or, by `recover`, set aside and replaced, never a panic and never believed;
//! a copy exists only while its row does; a full disk is `ResourceExhausted`, and what
//! exists can still be changed and removed. Calls block (the
//! engine puts them on a thread of their own) and are short: no call holds a transaction
//! open between two calls. Not here: what a state means (`engine`), the files that the
//! records name (`content`, `snapshot`).

mod check;
mod copies;
mod database;
mod error;
mod images;
mod leases;
mod pods;
mod quarantine;
mod reconcile;
mod records;
mod reserve;
#[cfg(test)]
mod tests;
mod unread;

pub use copies::Copies;
pub use error::Error;
pub use images::ImageStore;
pub use pods::{PodStore, Pods};
pub use records::{
    AttachmentRecord, BlobRecord, ContainerRecord, Lease, SandboxPhase, SandboxRecord, ShimRecord,
    SnapshotRecord,
};
