//! Manifests and indexes as they come over the wire.

use std::fmt;

use berth_model::Digest;
use bytes::Bytes;

/// Largest manifest or index that is read, bytes: what registries accept at least
/// (OCI distribution specification, "Pushing manifests").
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// A manifest or index, verified against its digest and otherwise uninterpreted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// By the `Content-Type` of the response; the document may say otherwise.
    pub media_type: MediaType,
    /// The SHA-256 of `bytes`.
    pub digest: Digest,
    /// The document, at most [`MAX_MANIFEST_BYTES`].
    pub bytes: Bytes,
}

/// The documents that can stand for an image.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MediaType {
    /// OCI image index.
    OciIndex,
    /// OCI image manifest.
    OciManifest,
    /// Docker manifest list.
    DockerList,
    /// Docker image manifest, version 2, schema 2.
    DockerManifest,
}

impl MediaType {
    /// Every one, in the order of preference.
    pub const ALL: [Self; 4] =
        [Self::OciIndex, Self::OciManifest, Self::DockerList, Self::DockerManifest];

    /// Its registered name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OciIndex => "application/vnd.oci.image.index.v1+json",
            Self::OciManifest => "application/vnd.oci.image.manifest.v1+json",
            Self::DockerList => "application/vnd.docker.distribution.manifest.list.v2+json",
            Self::DockerManifest => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    /// The type with this name, without parameters and in any case of letters (RFC 9110).
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.split(';').next().unwrap_or_default().trim();
        Self::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(name))
    }

    /// Whether it lists manifests rather than layers.
    #[must_use]
    pub const fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_survives_its_name_and_parameters() {
        for known in MediaType::ALL {
            assert_eq!(MediaType::parse(known.as_str()), Some(known));
            assert_eq!(MediaType::parse(&format!("{known} ; charset=utf-8")), Some(known));
        }
    }

    #[test]
    fn other_documents_are_not_images() {
        let schema_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        for other in ["", ";", "application/json", schema_1] {
            assert_eq!(MediaType::parse(other), None, "{other}");
        }
    }
}
