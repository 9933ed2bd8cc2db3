//! Why a request fails, and what the client is told.

use berth_model::ErrorKind;
use berth_model::id::InvalidId;
use berth_model::reference::InvalidReference;
use tonic::{Code, Status};

/// Longest message sent, bytes: it travels in a header, escaped.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A message or string that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field makes no sense.
    #[error("{field} {problem}")]
    Invalid {
        /// The field, by its path in the request.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field asks for what Berth does not do.
    #[error("{field}: {what} not supported")]
    Unsupported {
        /// The field, by its path in the request.
        field: String,
        /// What it asks for, with its verb.
        what: &'static str,
    },
    /// An id has the wrong form.
    #[error("{field} is invalid")]
    Id {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidId,
    },
    /// An image name has the wrong form.
    #[error("{field} is invalid")]
    Reference {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidReference,
    },
    /// Kernel parameters a sandbox may not set.
    #[error("config.linux.sysctls is invalid")]
    Sysctls(#[source] berth_spec::Error),
    /// Nothing has that id, nor an id that starts so.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// Sandbox or container.
        what: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// Several ids start so.
    #[error("{what} {id:?} is the start of several ids")]
    Ambiguous {
        /// Sandbox or container.
        what: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// A registry cannot be reached. kubelet knows this word as a prefix.
    #[error("RegistryUnavailable")]
    RegistryUnavailable(#[source] berth_engine::Error),
    /// No event comes any more.
    #[error("container events end")]
    Events(#[source] berth_engine::EventsEnd),
    /// Checkpoints hold what containers know, and restoring them trusts an archive more than
    /// a request.
    #[error("checkpoints of containers are switched off: Berth takes none and restores none")]
    CheckpointsOff,
    /// An image cannot be mounted as a volume. kubelet knows this word as a prefix.
    #[error("ImageVolumeMountFailed")]
    ImageVolumeMountFailed(#[source] berth_engine::Error),
    /// No client can be sent elsewhere for its streams.
    #[error(transparent)]
    Streams(#[from] berth_streaming::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] berth_engine::Error),
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, what: &'static str) -> Self {
        Self::Unsupported { field: field.into(), what }
    }

    /// What is told to clients; the text is for people only.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing(_)
            | Self::Invalid { .. }
            | Self::Id { .. }
            | Self::Reference { .. }
            | Self::Ambiguous { .. } => ErrorKind::InvalidArgument,
            Self::Sysctls(source) => source.kind(),
            Self::Streams(source) => source.kind(),
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Events(berth_engine::EventsEnd::Missed) => ErrorKind::ResourceExhausted,
            Self::Events(berth_engine::EventsEnd::Closed) => ErrorKind::Unavailable,
            Self::Unsupported { .. } | Self::CheckpointsOff => ErrorKind::Unimplemented,
            Self::RegistryUnavailable(source)
            | Self::ImageVolumeMountFailed(source)
            | Self::Engine(source) => source.kind(),
        }
    }

    fn code(&self) -> Code {
        // kubelet looks for the prefix only in errors whose code is Unknown.
        if matches!(self, Self::RegistryUnavailable(_)) {
            return Code::Unknown;
        }
        match self.kind() {
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::InvalidArgument => Code::InvalidArgument,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::FailedPrecondition => Code::FailedPrecondition,
            ErrorKind::ResourceExhausted => Code::ResourceExhausted,
            ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
            ErrorKind::Unavailable => Code::Unavailable,
            ErrorKind::PermissionDenied => Code::PermissionDenied,
            ErrorKind::Unimplemented => Code::Unimplemented,
            ErrorKind::Cancelled => Code::Cancelled,
            ErrorKind::Internal => Code::Internal,
        }
    }

    /// The answer: a code, and the error with all of its causes.
    pub(crate) fn status(&self) -> Status {
        let mut text = berth_model::chain(self);
        if text.len() > MAX_MESSAGE_BYTES {
            text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
            text.push('…');
        }
        Status::new(self.code(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_code_of_the_kind_and_every_cause() {
        let source = berth_model::SandboxId::new("..").unwrap_err();
        let status = Error::Id { field: "pod_sandbox_id", source }.status();
        assert_eq!(status.code(), Code::InvalidArgument);
        let start = "pod_sandbox_id is invalid: identifier \"..\" must be";
        assert!(status.message().starts_with(start), "{status}");

        let status = Error::unsupported("config.windows", "windows containers are").status();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.message(), "config.windows: windows containers are not supported");
        let missing = Error::NotFound { what: "container", id: "x".to_owned() };
        assert_eq!(missing.status().code(), Code::NotFound);
    }

    #[test]
    fn kubelet_finds_its_prefix() {
        let down = berth_engine::Error::Deadline {
            what: "reach r.example".to_owned(),
            limit: std::time::Duration::from_secs(1),
        };
        let status = Error::RegistryUnavailable(down).status();
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.message().starts_with("RegistryUnavailable: reach"), "{status}");
    }

    #[test]
    fn a_message_is_bounded() {
        let status = Error::invalid("field", "ä".repeat(100_000)).status();
        assert!(status.message().len() <= MAX_MESSAGE_BYTES + 3);
    }
}
