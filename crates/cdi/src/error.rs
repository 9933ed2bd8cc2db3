//! Why devices cannot be given.

use std::path::PathBuf;

use berth_model::ErrorKind;

/// Why devices cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not of the form `vendor/class=device`.
    #[error("CDI device name {0:?} is not of the form vendor/class=device")]
    Name(String),
    /// No specification has it.
    #[error("CDI device {name} is in no specification of this node{}", hint(.broken))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Files that could not be understood, and why: it may be in one of them.
        broken: Vec<(PathBuf, String)>,
    },
    /// Two files of one directory have it.
    #[error("CDI device {name} is in {} and in {}", first.display(), second.display())]
    Conflict {
        /// What was asked for.
        name: String,
        /// One file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// Its specification asks for what Berth does not do.
    #[error("CDI device {name} needs {what}, which is not supported")]
    Unsupported {
        /// What was asked for.
        name: String,
        /// Part of the specification.
        what: &'static str,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) | Self::Unknown { .. } => ErrorKind::InvalidArgument,
            Self::Conflict { .. } => ErrorKind::FailedPrecondition,
            Self::Unsupported { .. } => ErrorKind::Unimplemented,
        }
    }
}

fn hint(files: &[(PathBuf, String)]) -> String {
    match files {
        [] => String::new(),
        [(path, why), ..] => format!(" ({} is not understood: {why})", path.display()),
    }
}
