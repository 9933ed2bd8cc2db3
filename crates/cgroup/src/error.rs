//! Why a cgroup operation failed.

use std::path::PathBuf;

use berth_model::ErrorKind;
use nix::errno::Errno;

use crate::hierarchy::Controller;

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A cgroup path that is not absolute, leaves its root, or is too long.
    #[error("invalid cgroup path {0:?}")]
    InvalidPath(String),
    /// No cgroup file system is mounted.
    #[error("no cgroup hierarchy is mounted on this host")]
    NoHierarchy,
    /// The cgroup exists in no hierarchy.
    #[error("cgroup {0} not found")]
    NotFound(String),
    /// A limit is wanted of a controller that this host does not have.
    #[error("cgroup controller {0} is not available on this host, but a limit needs it")]
    MissingController(Controller),
    /// The controller is there, but its file for this limit is not (swap accounting, a page size).
    #[error("cgroup file {} does not exist: the kernel has no such limit", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A limit that contradicts itself or the host's cgroup version.
    #[error("invalid cgroup limit {name}: {reason}")]
    InvalidLimit {
        /// The limit, as the OCI runtime specification calls it.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A memory limit below what is in use and cannot be reclaimed.
    #[error("memory limit {limit} is below the {usage} bytes in use")]
    MemoryInUse {
        /// The limit, bytes.
        limit: i64,
        /// Memory in use, bytes.
        usage: u64,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why not.
        source: Errno,
    },
    /// A cgroup file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// A cgroup file does not look as the kernel documents it.
    #[error("cgroup file {} has an unexpected form", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A cgroup directory cannot be made.
    #[error("create cgroup directory {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// A cgroup could not be made, and what had been made of it could not be removed.
    #[error("create cgroup {cgroup}; left behind: {left:?}")]
    LeftBehind {
        /// The cgroup.
        cgroup: String,
        /// Directories that are still there.
        left: Vec<PathBuf>,
        /// Why it could not be made.
        source: Box<Error>,
    },
    /// A cgroup directory cannot be opened.
    #[error("open {}", path.display())]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// The cgroup still has processes.
    #[error("cgroup directory {} is still in use", path.display())]
    Busy {
        /// The directory that could not be removed.
        path: PathBuf,
    },
    /// A cgroup directory cannot be removed.
    #[error("remove cgroup directory {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// A process of the cgroup cannot be signalled.
    #[error("signal process {pid} of cgroup {cgroup}")]
    Kill {
        /// The process.
        pid: u32,
        /// Its cgroup.
        cgroup: String,
        /// Why not.
        source: Errno,
    },
    /// This host can neither freeze nor thaw.
    #[error("this host has no cgroup freezer")]
    NoFreezer,
    /// A device rule that the host's device controller cannot express.
    #[error("device rule {0:?} cannot be expressed by this host's device controller")]
    DeviceRule(String),
    /// The device program cannot be loaded or attached.
    #[error("{operation} the device program of cgroup {cgroup}")]
    DeviceProgram {
        /// `load`, `attach` or `query`.
        operation: &'static str,
        /// The cgroup.
        cgroup: String,
        /// Why not.
        source: Errno,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidPath(_) | Self::InvalidLimit { .. } | Self::DeviceRule(_) => {
                ErrorKind::InvalidArgument
            }
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::MissingController(_)
            | Self::MissingFile { .. }
            | Self::MemoryInUse { .. }
            | Self::NoHierarchy
            | Self::NoFreezer
            | Self::Busy { .. } => ErrorKind::FailedPrecondition,
            // `EOVERFLOW` is a processor or node beyond all numbers.
            Self::Write {
                source: Errno::EINVAL | Errno::ERANGE | Errno::EOVERFLOW | Errno::E2BIG,
                ..
            }
            | Self::Kill { source: Errno::EINVAL, .. } => ErrorKind::InvalidArgument,
            // Beyond what the cgroups above allow, or what the kernel can take away now.
            Self::Write { source: Errno::EACCES | Errno::EPERM | Errno::EBUSY, .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Create { source: Errno::ENOSPC, .. } => ErrorKind::ResourceExhausted,
            Self::LeftBehind { source, .. } => source.kind(),
            Self::Write { .. }
            | Self::Read { .. }
            | Self::Malformed { .. }
            | Self::Create { .. }
            | Self::Open { .. }
            | Self::Remove { .. }
            | Self::Kill { .. }
            | Self::DeviceProgram { .. } => ErrorKind::Internal,
        }
    }
}
