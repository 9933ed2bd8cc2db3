//! What can go wrong with snapshots.

use std::path::PathBuf;

use berth_model::{ChainId, ErrorKind};
use nix::errno::Errno;

use crate::SnapshotKey;

/// Why a snapshot operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No active snapshot has that key.
    #[error("snapshot {0} not found")]
    NotFound(SnapshotKey),
    /// An active snapshot has that key already.
    #[error("snapshot {0} exists")]
    Exists(SnapshotKey),
    /// No committed snapshot has that chain ID.
    #[error("layer {0} is not committed")]
    MissingLayer(ChainId),
    /// The link of a committed snapshot leads elsewhere than this program makes it lead.
    #[error("link of layer {chain} leads to {target:?}")]
    BadLink {
        /// Which layer.
        chain: ChainId,
        /// Where the link leads.
        target: String,
    },
    /// The root's path holds a character with a meaning in overlay's options, or is not
    /// absolute UTF-8.
    #[error("snapshot root {} must be absolute UTF-8 without ':', ',' and '\\'", .0.display())]
    BadRoot(PathBuf),
    /// More layers than overlayfs can stack.
    #[error("{layers} layers, more than the {limit} that overlayfs can stack")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Something else than a regular file was to be read.
    #[error("{} in the snapshot is a {what}, not a regular file", path.display())]
    NotAFile {
        /// Path in the snapshot.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A file to be read is larger than its reader takes.
    #[error("{} in the snapshot has {size} bytes, more than {limit}", path.display())]
    TooLarge {
        /// Path in the snapshot.
        path: PathBuf,
        /// Its size, bytes.
        size: u64,
        /// The most its reader takes, bytes.
        limit: u64,
    },
    /// Symbolic links that lead to each other, or a path beyond all bounds.
    #[error("{} in the snapshot has too many symbolic links or components", path.display())]
    Loop {
        /// Path in the snapshot.
        path: PathBuf,
    },
    /// A tree has more entries than are counted.
    #[error("directory tree has more than {0} entries")]
    TooManyEntries(u64),
    /// A directory was moved while its tree was walked.
    #[error("directory tree changed while it was walked")]
    Changed,
    /// The kernel refuses.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::MissingLayer(_) => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::TooManyLayers { .. }
            | Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::Loop { .. } => ErrorKind::InvalidArgument,
            Self::BadRoot(_) => ErrorKind::FailedPrecondition,
            Self::TooManyEntries(_) => ErrorKind::ResourceExhausted,
            Self::Io { source, .. } => ErrorKind::of_io(&(*source).into()),
            Self::Changed | Self::BadLink { .. } => ErrorKind::Internal,
        }
    }

    /// The same failure, where only a descriptor was known, of `path`.
    pub(crate) fn at(self, path: impl Into<PathBuf>) -> Self {
        match self {
            Self::Io { action, source, .. } => Self::Io { action, path: path.into(), source },
            other => other,
        }
    }

    /// The same failure, where only the path in the directory `place` was known.
    pub(crate) fn below(self, place: impl Into<PathBuf>) -> Self {
        match self {
            Self::Io { action, path, source } => {
                let mut whole = place.into();
                whole.extend(path.iter());
                Self::Io { action, path: whole, source }
            }
            other => other,
        }
    }

    pub(crate) fn io<E: IntoErrno>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source: source.into_errno() }
    }
}

/// An error that is an errno at heart: nix's, rustix's, or the standard library's.
pub(crate) trait IntoErrno {
    fn into_errno(self) -> Errno;
}

impl IntoErrno for Errno {
    fn into_errno(self) -> Errno {
        self
    }
}

impl IntoErrno for rustix::io::Errno {
    fn into_errno(self) -> Errno {
        Errno::from_raw(self.raw_os_error())
    }
}

impl IntoErrno for std::io::Error {
    fn into_errno(self) -> Errno {
        self.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
    }
}
