//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::{ChainId, DiffId, Digest, ErrorKind};
use nix::errno::Errno;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No image has that id or reference.
    #[error("image {0:?} not found")]
    NotFound(String),
    /// Several images have an id that starts so.
    #[error("image {0:?} is the start of several ids")]
    Ambiguous(String),
    /// The registry, or the way to it.
    #[error("{action}")]
    Registry {
        /// What was fetched.
        action: &'static str,
        /// Why it failed; it names the reference and the host.
        source: Box<berth_registry::Error>,
    },
    /// The blob store.
    #[error("{action} blob {digest}")]
    Content {
        /// What was tried.
        action: &'static str,
        /// Which blob.
        digest: Digest,
        /// Why it failed.
        source: berth_content::Error,
    },
    /// The blob store as a whole.
    #[error("{action}")]
    ContentStore {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: berth_content::Error,
    },
    /// The store of records.
    #[error("{action}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: Box<berth_metadata::Error>,
    },
    /// The snapshots.
    #[error("{action}")]
    Snapshot {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: berth_snapshot::Error,
    },
    /// The image is not whole any more; it is forgotten, so that the next pull mends it.
    #[error("image {id} has to be pulled again")]
    Broken {
        /// Which image.
        id: Digest,
        /// What is wrong with it.
        source: Defect,
    },
    /// A manifest, index or config that breaks its specification, or a limit.
    #[error("{what} {digest}")]
    Document {
        /// `manifest`, `index` or `config`.
        what: &'static str,
        /// Which one.
        digest: Digest,
        /// What is wrong with it.
        source: BadDocument,
    },
    /// The image has nothing for the platform that is wanted.
    #[error("{reference} has no manifest for {platform}, only for {found}")]
    NoPlatform {
        /// What was pulled.
        reference: String,
        /// What is wanted.
        platform: String,
        /// What there is.
        found: String,
    },
    /// A layer that cannot be unpacked.
    #[error("unpack layer {digest} below {}", root.display())]
    Layer {
        /// Digest of its blob.
        digest: Digest,
        /// Where layers are.
        root: Box<Path>,
        /// Why.
        source: LayerError,
    },
    /// A layer in a form that is not unpacked.
    #[error("layer {digest} has media type {media_type:?}, which is not supported")]
    MediaType {
        /// Digest of its blob.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The disk has lost what was written.
    #[error("sync the file system of {}", path.display())]
    Sync {
        /// A directory on it.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// It cannot be told which layers containers use.
    #[error("list the layers in use")]
    InUse {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pull took too long.
    #[error("pull of {reference} took longer than {} s", limit.as_secs())]
    Deadline {
        /// What was pulled.
        reference: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The daemon is shutting down, or nobody waits for the pull any more.
    #[error("pull of {0} was stopped")]
    Stopped(String),
    /// No thread could be started.
    #[error("start a thread to {what}")]
    Thread {
        /// What it was to do.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A task of ours panicked; the panic was logged.
    #[error("{0} panicked")]
    Panicked(&'static str),
    /// The same failure as that of the pull this request joined.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// Whether the registry, or the way to it, is what failed.
    #[must_use]
    pub fn is_of_registry(&self) -> bool {
        match self {
            Self::Registry { .. } => true,
            Self::Shared(error) => error.is_of_registry(),
            _ => false,
        }
    }

    /// As if the content store had failed at `point`.
    pub(crate) fn failpoint(point: Point, source: io::Error) -> Self {
        Self::ContentStore { action: "use the content store", source: failed_at(point, source) }
    }

    /// The digest that a blob came with instead of its own.
    pub(crate) fn wrong_digest(&self) -> Option<Digest> {
        match self {
            Self::Content { source: berth_content::Error::WrongDigest { actual, .. }, .. } => {
                Some(*actual)
            }
            _ => None,
        }
    }

    /// Whether a disk of this node is full, or lost what was written to it.
    pub(crate) fn wants_space(&self) -> bool {
        match self {
            Self::Sync { .. } => true,
            Self::Content { .. }
            | Self::ContentStore { .. }
            | Self::Store { .. }
            | Self::Snapshot { .. }
            | Self::Layer { .. } => self.kind() == ErrorKind::ResourceExhausted,
            _ => false,
        }
    }

    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::NoPlatform { .. } | Self::Broken { .. } => {
                ErrorKind::NotFound
            }
            Self::Ambiguous(_) => ErrorKind::InvalidArgument,
            Self::Registry { source, .. } => source.kind(),
            Self::Content { source, .. } | Self::ContentStore { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Snapshot { source, .. } => source.kind(),
            Self::Document { .. } => ErrorKind::InvalidArgument,
            Self::Layer { source, .. } => source.kind(),
            Self::MediaType { .. } => ErrorKind::Unimplemented,
            Self::Sync { source, .. } => errno_kind(*source),
            Self::Thread { .. } => ErrorKind::ResourceExhausted,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Stopped(_) => ErrorKind::Cancelled,
            Self::InUse { .. } | Self::Panicked(_) => ErrorKind::Internal,
            Self::Shared(error) => error.kind(),
        }
    }
}

/// What of an image is not there, or not as it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Defect {
    /// A layer that it stands on.
    #[error("layer {0} is gone")]
    Layer(ChainId),
    /// A blob.
    #[error("blob {0} is gone")]
    Blob(Digest),
    /// A blob that is not what it was.
    #[error("blob {0} is damaged")]
    Damaged(Digest),
}

/// What is wrong with a manifest, index or config.
#[derive(Debug, thiserror::Error)]
pub enum BadDocument {
    /// It is not JSON, or not of the shape it must have.
    #[error("it cannot be parsed")]
    Json(#[source] serde_json::Error),
    /// It has more bytes than are read.
    #[error("it has {size} bytes, more than {limit}")]
    TooLarge {
        /// Its size, bytes.
        size: u64,
        /// The most that is read, bytes.
        limit: u64,
    },
    /// It has another size than its descriptor says.
    #[error("it has {found} bytes where its descriptor says {wanted}")]
    Size {
        /// What the descriptor says.
        wanted: u64,
        /// What came.
        found: u64,
    },
    /// It is of a type that is no manifest and no index.
    #[error("media type {0:?} is not that of an image")]
    MediaType(String),
    /// It says it is one thing and was served as another.
    #[error("it says its media type is {inside:?} but was named as {outside:?}")]
    MediaTypeMismatch {
        /// What it says.
        inside: String,
        /// What its descriptor or the registry says.
        outside: String,
    },
    /// It has the fields of a manifest and those of an index.
    #[error("it has {0:?}, which its media type does not have")]
    Ambiguous(&'static str),
    /// Another schema than 2.
    #[error("schema version {0} is not supported")]
    Schema(u64),
    /// More layers than are unpacked.
    #[error("it has {layers} layers, more than {limit}")]
    Layers {
        /// How many.
        layers: usize,
        /// How many are unpacked.
        limit: usize,
    },
    /// Manifest and config disagree.
    #[error("the manifest has {layers} layers but the config {diff_ids} diff IDs")]
    DiffIds {
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the config.
        diff_ids: usize,
    },
    /// One blob is named with two sizes or as two layers with different content.
    #[error("it names blob {0} twice, differently")]
    Contradiction(Digest),
    /// The file system is not made of layers.
    #[error("its root file system is of type {0:?}, not \"layers\"")]
    RootFs(String),
    /// Indexes within indexes beyond all bounds.
    #[error("indexes are nested deeper than {0}")]
    Depth(usize),
    /// More entries than are looked at.
    #[error("indexes have more than {0} entries")]
    Nodes(usize),
    /// The sizes do not fit a number.
    #[error("its sizes add up to more than any disk holds")]
    Sizes,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive breaks its format.
    #[error("the archive is damaged")]
    Archive(#[source] BadArchive),
    /// An entry may not be what it is.
    #[error("entry {path:?}")]
    Entry {
        /// Its path, as written.
        path: String,
        /// What is wrong.
        source: BadEntry,
    },
    /// An entry could not be made.
    #[error("entry {path:?}: {action}")]
    Apply {
        /// Its path, as written.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The layer's directory.
    #[error("use the layer's directory")]
    Snapshot(#[source] berth_snapshot::Error),
    /// The compressed stream is damaged, or ended early.
    #[error("read the layer's stream")]
    Stream(#[source] io::Error),
    /// The archive is not the one the config names.
    #[error("its archive has diff ID {found}, not {wanted}")]
    DiffId {
        /// What the config says.
        wanted: DiffId,
        /// What came.
        found: DiffId,
    },
    /// More entries than are unpacked.
    #[error("it has more than {0} entries")]
    Entries(u64),
    /// More bytes than are unpacked.
    #[error("it has more than {0} bytes when uncompressed")]
    Size(u64),
    /// It grows beyond measure when uncompressed.
    #[error("it is more than {0} times larger uncompressed than compressed")]
    Expansion(u64),
    /// Too much must be remembered of it.
    #[error("its whiteouts and implied directories take more than {0} bytes to remember")]
    Bookkeeping(usize),
}

/// As if a file had failed at `point`.
pub(crate) fn failed_at(point: Point, source: io::Error) -> berth_content::Error {
    berth_content::Error::File { operation: "pass failpoint", path: point.name.into(), source }
}

impl LayerError {
    /// As if an entry had failed at `point`.
    pub(crate) fn failpoint(point: Point, source: &io::Error) -> Self {
        let source = source.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        Self::Apply { path: String::new(), action: point.name, source }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Apply { source, .. } => errno_kind(*source),
            Self::Snapshot(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadArchive {
    /// A header's checksum is wrong.
    #[error("a header has a wrong checksum")]
    Checksum,
    /// A number that is none, or out of range.
    #[error("a header has an invalid {0}")]
    Number(&'static str),
    /// An extended header that is not made of records.
    #[error("an extended header has an invalid record")]
    Pax,
    /// A global header that would change entries.
    #[error("a global header changes entries")]
    Global,
    /// A name with NUL in it.
    #[error("a name has a NUL byte")]
    Nul,
    /// The archive ends in the middle of an entry.
    #[error("it is cut short")]
    Truncated,
    /// Something follows a block of zeros.
    #[error("an entry follows a block of zeros")]
    AfterEnd,
    /// Sparse files are not unpacked.
    #[error("sparse files are not supported")]
    Sparse,
    /// An entry of unknown type.
    #[error("an entry has type {0:#04x}, which is not supported")]
    Type(u8),
    /// Programs would read different things.
    #[error("an entry means different things to different programs")]
    Ambiguous,
    /// An extended header beyond all bounds.
    #[error("an extended header has {0} bytes")]
    ExtendedTooLarge(u64),
}

/// What is wrong with one entry of a layer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadEntry {
    /// `..` in its path.
    #[error("its path has \"..\"")]
    ParentReference,
    /// A path beyond all bounds.
    #[error("its path is too long")]
    PathTooLong,
    /// A path with too many components.
    #[error("its path has too many components")]
    PathTooDeep,
    /// The root of the layer, but not as a directory.
    #[error("the root is not a directory")]
    Root,
    /// Something that is no directory is on the way to it.
    #[error("its parent {0:?} is not a directory")]
    Parent(String),
    /// Symbolic links of the layer that lead to each other are on the way to it.
    #[error("its parent is behind too many symbolic links")]
    Loop,
    /// A hard link to what this layer does not have.
    #[error("it is a hard link to {0:?}, which is not in its layer")]
    HardLinkOutside(String),
    /// A hard link to a directory.
    #[error("it is a hard link to {0:?}, which is a directory")]
    HardLinkDirectory(String),
    /// A symbolic link to nothing, or beyond all bounds.
    #[error("its link target is empty or too long")]
    LinkTarget,
    /// A whiteout without a name, or of `.` or `..`.
    #[error("it is a whiteout of no name")]
    Whiteout,
    /// An extended attribute beyond all bounds.
    #[error("its extended attribute {0:?} is too large")]
    Xattr(String),
    /// A device number that the kernel has not.
    #[error("its device number is out of range")]
    Device,
}

fn errno_kind(errno: Errno) -> ErrorKind {
    ErrorKind::of_io(&errno.into())
}
