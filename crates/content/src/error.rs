//! Why a content operation failed.

use std::io;
use std::path::PathBuf;

use berth_model::{Digest, ErrorKind};

/// Why a content operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such blob.
    #[error("blob {0} is not in the content store")]
    NotFound(Digest),
    /// The bytes that arrived are not the bytes that were asked for.
    #[error("blob {expected} arrived with digest {actual}")]
    WrongDigest {
        /// What the descriptor promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// Fewer bytes arrived than the descriptor promised.
    #[error("blob {digest} ended after {actual} of {expected} bytes")]
    TooShort {
        /// The blob.
        digest: Digest,
        /// Size by its descriptor, bytes.
        expected: u64,
        /// What came, bytes.
        actual: u64,
    },
    /// More bytes arrived than the descriptor promised; the surplus was not stored.
    #[error("blob {digest} is longer than the {expected} bytes of its descriptor")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Size by its descriptor, bytes.
        expected: u64,
    },
    /// A stored blob is larger than its reader accepts.
    #[error("blob {digest} has {size} bytes, more than the {limit} allowed here")]
    OverLimit {
        /// The blob.
        digest: Digest,
        /// Its size, bytes.
        size: u64,
        /// What the caller allows, bytes.
        limit: u64,
    },
    /// A stored blob no longer has the digest of its name.
    #[error("stored blob {expected} is damaged, its digest is now {actual}")]
    Damaged {
        /// The blob's name.
        expected: Digest,
        /// What its bytes hash to.
        actual: Digest,
    },
    /// A file operation failed; a full disk or quota is this too, with its own kind.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status; the text is for people only.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::WrongDigest { .. } | Self::TooShort { .. } | Self::TooLong { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::OverLimit { .. } => ErrorKind::InvalidArgument,
            Self::File { source, .. } => ErrorKind::of_io(source),
            Self::Damaged { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }
}
