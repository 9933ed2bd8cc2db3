//! Why talking to a shim failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berth_model::ErrorKind;
use nix::errno::Errno;
use ttrpc::Code;

/// Why a shim could not be started or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The shim's binary could not be executed.
    #[error("execute shim {}", path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A file, pipe or socket on this side could not be made or used.
    #[error("{what} for shim {id}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The shim's id.
        id: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The shim's `start` or `delete` command failed.
    #[error("shim {id} refused to {action} (status {status}): {output}")]
    Refused {
        /// The shim's id.
        id: String,
        /// The command.
        action: &'static str,
        /// Exit code, or 128 and a signal's number.
        status: i32,
        /// What it printed, bounded.
        output: String,
    },
    /// The kernel does not have a parameter, or not that value for it.
    #[error("set kernel parameter {name}")]
    Sysctl {
        /// Its path below `/proc/sys`.
        name: String,
        /// What the kernel said.
        source: Errno,
    },
    /// The shim's `start` command did not end in time.
    #[error("shim {id} did not {action} within {deadline:?}")]
    Unanswered {
        /// The shim's id.
        id: String,
        /// The command.
        action: &'static str,
        /// How long it was given.
        deadline: Duration,
    },
    /// The answer of the `start` command is none of the known forms.
    #[error("shim answered its start with {0:?}, which is neither address, JSON nor protobuf")]
    Bootstrap(String),
    /// The shim speaks something else than ttrpc over a unix socket.
    #[error("shim speaks {protocol} at {address:?}, which berth does not")]
    Protocol {
        /// The protocol it named.
        protocol: String,
        /// The address it named.
        address: String,
    },
    /// Nobody answers at the shim's address.
    #[error("connect to shim at {address}")]
    Connect {
        /// The address.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket is served by somebody who is neither root nor this daemon's user.
    #[error("shim at {address} is served by user {uid}")]
    Peer {
        /// The address.
        address: String,
        /// The user.
        uid: u32,
    },
    /// The connection broke while the request was under way.
    #[error("connection to shim at {address} was lost during {method}: {cause}")]
    Lost {
        /// The address.
        address: String,
        /// The request.
        method: &'static str,
        /// What ttrpc said; it has no typed errors.
        cause: String,
    },
    /// No answer came in time.
    #[error("shim at {address} did not answer {method} within {deadline:?}")]
    Deadline {
        /// The address.
        address: String,
        /// The request.
        method: &'static str,
        /// How long it was given.
        deadline: Duration,
    },
    /// The shim answered with an error.
    #[error("shim: {method}: {message}")]
    Rpc {
        /// The request.
        method: &'static str,
        /// The status code, as gRPC numbers them.
        code: Code,
        /// The shim's words.
        message: String,
    },
    /// The shim is of a release without that verb, or not ours.
    #[error(
        "shim at {address} speaks protocol {protocol}, which cannot {verb} (protocol {needed} can)"
    )]
    Unsupported {
        /// The address.
        address: String,
        /// What it speaks beside containerd's protocol; 0 if it is not ours.
        protocol: u32,
        /// What it cannot do.
        verb: &'static str,
        /// The protocol that brought it.
        needed: u32,
    },
    /// The answer of our extension is not what its protocol says.
    #[error("answer of {method}")]
    Extension {
        /// The request.
        method: &'static str,
        /// What is wrong.
        source: prost::DecodeError,
    },
    /// The shim's answer, or our request, is not what the protocol says.
    #[error("message of {method}")]
    Message {
        /// The request.
        method: &'static str,
        /// What is wrong.
        source: protobuf::Error,
    },
    /// A process could not be examined or signalled.
    #[error("process {pid}")]
    Process {
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: Errno,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status; the text is for people only.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Spawn { source: Errno::ENOENT, .. } => ErrorKind::FailedPrecondition,
            Self::Io { source, .. } if is_full(source) => ErrorKind::ResourceExhausted,
            Self::Unanswered { .. } | Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::Connect { .. } | Self::Lost { .. } => ErrorKind::Unavailable,
            Self::Peer { .. } => ErrorKind::PermissionDenied,
            Self::Protocol { .. } | Self::Unsupported { .. } => ErrorKind::Unimplemented,
            Self::Sysctl { .. } => ErrorKind::InvalidArgument,
            Self::Process { source: Errno::ESRCH, .. } => ErrorKind::NotFound,
            Self::Rpc { code, .. } => kind_of(*code),
            Self::Spawn { .. }
            | Self::Io { .. }
            | Self::Refused { .. }
            | Self::Bootstrap(_)
            | Self::Extension { .. }
            | Self::Message { .. }
            | Self::Process { .. } => ErrorKind::Internal,
        }
    }

    /// Whether nobody listens at the shim's address: it is dead, and not only busy.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
    }

    /// The shim's words when it could not execute the container's program
    /// (`exec <program>: <reason>`), which is a container that ended with
    /// [`StartError`](berth_model::container::ExitReason::StartError), not a failed request.
    #[must_use]
    pub fn exec_failure(&self) -> Option<&str> {
        match self {
            Self::Rpc { message, .. } if message.starts_with("exec ") => Some(message),
            _ => None,
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// The kind a ttrpc status stands for.
fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::NOT_FOUND => ErrorKind::NotFound,
        Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => ErrorKind::InvalidArgument,
        Code::ALREADY_EXISTS => ErrorKind::AlreadyExists,
        Code::FAILED_PRECONDITION | Code::ABORTED => ErrorKind::FailedPrecondition,
        Code::RESOURCE_EXHAUSTED => ErrorKind::ResourceExhausted,
        Code::DEADLINE_EXCEEDED => ErrorKind::DeadlineExceeded,
        Code::UNAVAILABLE => ErrorKind::Unavailable,
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => ErrorKind::PermissionDenied,
        Code::UNIMPLEMENTED => ErrorKind::Unimplemented,
        Code::CANCELLED => ErrorKind::Cancelled,
        _ => ErrorKind::Internal,
    }
}
