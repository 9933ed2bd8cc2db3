//! Why plugins did not do, or did not allow, what was asked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berth_model::ErrorKind;

/// Why plugins did not do, or did not allow, what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plugin refused a request.
    #[error("plugin {plugin} refused {verb}: {message}")]
    Refused {
        /// Index and name.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// Its own words, bounded.
        message: String,
    },
    /// A plugin objects to what others adjusted, or died when it was asked.
    #[error("plugin {plugin} rejected the adjustment of container {container}: {reason}")]
    Rejected {
        /// Index and name.
        plugin: String,
        /// The container.
        container: String,
        /// Its own words, bounded.
        reason: String,
    },
    /// Two plugins want different things.
    #[error("plugins {first} and {second} both set {what} of container {container}")]
    Conflict {
        /// Who asked first.
        first: String,
        /// Who asked too.
        second: String,
        /// The field, and its entry.
        what: String,
        /// The container.
        container: String,
    },
    /// A plugin answered a creation with an update of what is being created.
    #[error("plugin {plugin} asked for an update of container {container}, which is being made")]
    UpdateInCreation {
        /// Index and name.
        plugin: String,
        /// The container.
        container: String,
    },
    /// Something of the plugins' socket or directories could not be used.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another runtime listens for plugins there.
    #[error("another runtime listens for plugins at {}", .0.display())]
    InUse(PathBuf),
    /// The interface is shutting down.
    #[error("the plugin interface is shutting down")]
    ShuttingDown,
}

impl Error {
    /// What a front turns into a status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. }
            | Self::Rejected { .. }
            | Self::Conflict { .. }
            | Self::UpdateInCreation { .. }
            | Self::InUse(_) => ErrorKind::FailedPrecondition,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::ShuttingDown => ErrorKind::Cancelled,
        }
    }
}

/// Why a call of a plugin has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the connection is closed")]
    Closed,
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("an answer that cannot be read")]
    Unreadable(#[from] prost::DecodeError),
    #[error("a message of {0} bytes is larger than any may be")]
    TooLarge(usize),
    #[error("{message} (code {code})")]
    Status { code: i32, message: String },
}

/// gRPC's code for a method that is not there.
const UNIMPLEMENTED: i32 = 12;

impl CallError {
    /// Whether the plugin broke the protocol: it is dropped.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::Closed | Self::Deadline(_) | Self::Unreadable(_))
    }

    pub(crate) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Status { code: UNIMPLEMENTED, .. })
    }

    /// In a plugin's own words, if it had any; bounded.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Status { message, .. } => bounded(message),
            other => other.to_string(),
        }
    }
}

/// What others wrote goes into our messages and logs in part only.
pub(crate) fn bounded(text: &str) -> String {
    const MOST: usize = 1024;
    text.chars().filter(|c| !c.is_control()).take(MOST).collect()
}
