//! Blobs by digest, in an OCI image layout directory.
//!
//! ```text
//! ROOT/oci-layout            {"imageLayoutVersion":"1.0.0"}
//! ROOT/index.json            an index that names nothing: what is kept, `metadata` knows
//! ROOT/blobs/sha256/<hex>    content: verified, complete, never written again
//! ROOT/ingest/<number>       on its way in, becomes content by rename, on commit; or on
//!                            its way out
//! ```
//!
//! Every call blocks: async callers use a blocking thread. An [`Ingest`] hashes and counts
//! while it is written and stops at the first byte too many; write-back starts as bytes
//! arrive, so the one [`Witness::sync`] per image finds little left to do (design
//! decision 10).
//!
//! Invariants: a file below `blobs` had the digest of its name when it was put there; it
//! is *durable* only after a later [`Witness::sync`], so a row that names a blob is
//! written after that; a path is made of a parsed digest or a number of ours, never of
//! foreign text; one process at a time has `ROOT` open, within it clones share freely. Not
//! here: which blobs are still needed (`image`), the network (`registry`).

mod error;
mod ingest;
mod layout;
mod store;

pub use error::Error;
pub use ingest::Ingest;
pub use store::{Blob, BlobInfo, Blobs, Content, Trash, Witness};
