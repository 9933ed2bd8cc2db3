//! Why a request was not done, and the one place that makes a ttrpc status of it.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use berth_model::ErrorKind;
use nix::errno::Errno;
use ttrpc::Code;

/// Why the shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id:?} exists already")]
    Exists { what: &'static str, id: String },
    #[error("{id:?} is {state}")]
    State { id: String, state: &'static str },
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error("{0} is not implemented by this shim")]
    Unimplemented(&'static str),
    #[error("read {}", path.display())]
    Spec { path: PathBuf, source: serde_json::Error },
    #[error("{what} {}", path.display())]
    Path { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Syscall(&'static str, #[source] Errno),
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    #[error(transparent)]
    Runtime(#[from] berth_oci_runtime::Error),
    #[error(transparent)]
    Cgroup(#[from] berth_cgroup::Error),
    #[error("{what} did not happen within {seconds} s")]
    Timeout { what: &'static str, seconds: u64 },
    #[error("fork")]
    Fork(#[from] berth_sys::process::ForkError),
}

impl Error {
    pub(crate) fn container(id: &str) -> Self {
        Self::NotFound { what: "container", id: id.to_owned() }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::State { .. } => ErrorKind::FailedPrecondition,
            Self::Invalid { .. } | Self::Spec { .. } => ErrorKind::InvalidArgument,
            Self::Unimplemented(_) => ErrorKind::Unimplemented,
            Self::Path { source, .. } | Self::Io(_, source) => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    ErrorKind::ResourceExhausted
                }
                _ => ErrorKind::Internal,
            },
            Self::Runtime(error) => error.kind(),
            Self::Cgroup(error) => error.kind(),
            Self::Timeout { .. } => ErrorKind::DeadlineExceeded,
            Self::Syscall(..) | Self::Fork(_) => ErrorKind::Internal,
        }
    }

    /// The error and its sources on one line: a status has no other place for them.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        // The reason of a program that cannot be executed is in its text, which callers parse.
        if matches!(self, Self::Runtime(berth_oci_runtime::Error::Exec { .. })) {
            return text;
        }
        let mut next = self.source();
        while let Some(source) = next {
            text = format!("{text}: {source}");
            next = source.source();
        }
        text
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound => Code::NOT_FOUND,
            ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
            ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
            ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
            ErrorKind::ResourceExhausted => Code::RESOURCE_EXHAUSTED,
            ErrorKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
            ErrorKind::Unavailable => Code::UNAVAILABLE,
            ErrorKind::PermissionDenied => Code::PERMISSION_DENIED,
            ErrorKind::Unimplemented => Code::UNIMPLEMENTED,
            ErrorKind::Cancelled => Code::CANCELLED,
            ErrorKind::Internal => Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.chain()))
    }
}
