//! Images as the store knows them.

use serde::{Deserialize, Serialize};

use crate::container::Timestamp;
use crate::digest::{ChainId, Digest};

/// An image that was pulled and unpacked.
///
/// Its id is the digest of its config blob, as the CRI and docker have it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the config blob.
    pub id: Digest,
    /// Normalised references with a tag (`docker.io/library/busybox:latest`).
    pub tags: Vec<String>,
    /// Normalised references with a digest (`docker.io/library/busybox@sha256:…`).
    pub digests: Vec<String>,
    /// The platform manifest that was unpacked.
    pub manifest: Digest,
    /// Every blob of the image that the store holds: indexes, manifest, config, layers.
    pub blobs: Vec<Digest>,
    /// The chain of each layer, lowest first; empty for an image without layers.
    pub chain: Vec<ChainId>,
    /// Size on the wire: config and compressed layers, bytes.
    pub size: u64,
    /// The `User` of the image config, as written.
    pub user: String,
    /// When it was pulled.
    pub pulled_at: Timestamp,
}
