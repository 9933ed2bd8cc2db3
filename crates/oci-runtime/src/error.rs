//! Why a container could not be made, started or entered.

use std::borrow::Cow;
use std::path::PathBuf;

use berth_model::ErrorKind;
use berth_sys::process::ForkError;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Why a container could not be made, started or entered.
///
/// A worker or a container's init meets most of these; they cross the socket as JSON.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// The spec contradicts itself or the OCI runtime specification.
    #[error("spec field {field}: {reason}")]
    InvalidSpec {
        /// The field, as the specification calls it.
        field: Cow<'static, str>,
        /// What is wrong with it.
        reason: String,
    },
    /// The spec asks for something that Berth does not do.
    #[error("spec field {field} asks for something not supported: {feature}")]
    Unsupported {
        /// The field, as the specification calls it.
        field: Cow<'static, str>,
        /// What it asks for.
        feature: String,
    },
    /// The seccomp profile was refused.
    #[error("compile the seccomp profile")]
    Seccomp(#[source] Reported),
    /// A process could not be forked.
    #[error("fork {what}")]
    Fork {
        /// Which process.
        what: Cow<'static, str>,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// The calling process has several threads.
    #[error("the runtime needs a caller with one thread, this one has {0}")]
    Threads(u64),
    /// The container's cgroup could not be made, limited or joined.
    #[error("prepare cgroup {path}")]
    Cgroup {
        /// The cgroup's path.
        path: String,
        /// Why not.
        source: Reported,
    },
    /// A namespace could not be opened or entered.
    #[error("join {kind} namespace {}", path.display())]
    Namespace {
        /// `network`, `ipc`, …
        kind: Cow<'static, str>,
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// The source of a bind mount cannot be opened.
    #[error("open mount source {}", path.display())]
    MountSource {
        /// The source.
        path: PathBuf,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// A mount cannot show ids as a user namespace maps them.
    #[error("map the ids of {}, which its file system must allow", path.display())]
    UnmappedMount {
        /// What is mounted.
        path: PathBuf,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// The root file system cannot be mounted.
    #[error("mount the root file system: {step}")]
    Rootfs {
        /// What was being done.
        step: Cow<'static, str>,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// Something cannot be mounted in the container.
    #[error("mount {fs_type} at {}{}", destination.display(), explained(.explanation))]
    Mount {
        /// Its type.
        fs_type: String,
        /// Where, in the container.
        destination: PathBuf,
        /// What the kernel says beside the errno; may be empty.
        explanation: String,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// A path in the container's root leads where it must not, or cannot be made.
    #[error("path {} in the container: {step}", path.display())]
    Path {
        /// The path, in the container.
        path: PathBuf,
        /// What was being done.
        step: Cow<'static, str>,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// What a mount would hide or replace must not be hidden or replaced.
    #[error("mount at {} is refused: {reason}", destination.display())]
    Refused {
        /// Where, in the container.
        destination: PathBuf,
        /// Why.
        reason: Cow<'static, str>,
    },
    /// A device node cannot be made.
    #[error("device {}: {step}", path.display())]
    Device {
        /// Its path, in the container.
        path: PathBuf,
        /// What was being done.
        step: Cow<'static, str>,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// A kernel parameter cannot be set.
    #[error("set sysctl {name}")]
    Sysctl {
        /// Its name, with dots or slashes.
        name: String,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// A security module of the kernel does not take a label.
    #[error("set {what} {label:?}")]
    Label {
        /// AppArmor's or SELinux's.
        what: Cow<'static, str>,
        /// The label.
        label: String,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// The working directory cannot be entered, or is not inside the container.
    #[error("enter working directory {}", path.display())]
    Cwd {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// Any other step of setting up a process.
    #[error("{step}")]
    Setup {
        /// What was being done.
        step: Cow<'static, str>,
        /// Why not.
        #[serde(with = "errno")]
        source: Errno,
    },
    /// A hook of the spec failed.
    #[error("{point} hook {path}: {problem}")]
    Hook {
        /// The list it is in, as the specification calls it.
        point: Cow<'static, str>,
        /// Its program.
        path: String,
        /// How it ended, and what it said.
        problem: String,
    },
    /// The program cannot be executed; the text starts as callers expect it.
    #[error("exec {program}: {}", exec_reason(*.errno))]
    Exec {
        /// `process.args[0]`.
        program: String,
        /// Why not; in the text already, hence no source.
        #[serde(with = "errno")]
        errno: Errno,
    },
    /// The process ended before it answered.
    #[error("{what} ended before it answered ({outcome})")]
    Gone {
        /// Which process.
        what: Cow<'static, str>,
        /// How it ended, as far as known.
        outcome: String,
    },
    /// A deadline passed.
    #[error("{what} did not answer in time")]
    Timeout {
        /// Which process.
        what: Cow<'static, str>,
    },
    /// What came over the socket is not of our protocol.
    #[error("unexpected message from {0}")]
    Protocol(Cow<'static, str>),
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidSpec { .. } | Self::Refused { .. } | Self::Sysctl { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Unsupported { .. } => ErrorKind::Unimplemented,
            Self::Seccomp(reported) | Self::Cgroup { source: reported, .. } => reported.kind(),
            Self::Exec { errno, .. } => exec_kind(*errno),
            Self::MountSource { source: Errno::ENOENT | Errno::ENOTDIR, .. } => ErrorKind::NotFound,
            // What was to be joined has ended (setns(2)).
            Self::Setup { source: Errno::ESRCH, .. }
            | Self::Label { .. }
            | Self::Namespace { .. }
            | Self::Gone { .. }
            | Self::Cwd { .. }
            | Self::Hook { .. }
            | Self::UnmappedMount { .. } => ErrorKind::FailedPrecondition,
            Self::Mount { source, .. }
            | Self::Path { source, .. }
            | Self::Device { source, .. } => place_kind(*source),
            Self::Timeout { .. } => ErrorKind::DeadlineExceeded,
            Self::Fork { source, .. }
            | Self::MountSource { source, .. }
            | Self::Rootfs { source, .. }
            | Self::Setup { source, .. } => exhausted_or_internal(*source),
            Self::Threads(_) | Self::Protocol(_) => ErrorKind::Internal,
        }
    }

    /// The shell's exit code for a program that could not be executed: 127 not found, 126
    /// found but not executable; `None` for every other error.
    #[must_use]
    pub fn shell_code(&self) -> Option<u8> {
        match self {
            Self::Exec { errno: Errno::ENOENT | Errno::ENOTDIR, .. } => Some(127),
            Self::Exec { .. } => Some(126),
            _ => None,
        }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidSpec { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(field: &'static str, feature: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), feature: feature.into() }
    }

    /// For `map_err`: an [`Error::Setup`] at `step`.
    pub(crate) fn setup<E: Into<AnyErrno>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Setup { step: step.into(), source: source.into().0 }
    }
}

/// The errno of any of the crates that have one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnyErrno(pub(crate) Errno);

impl From<Errno> for AnyErrno {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl From<rustix::io::Errno> for AnyErrno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(Errno::from_raw(errno.raw_os_error()))
    }
}

impl From<std::io::Error> for AnyErrno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

impl Error {
    pub(crate) fn fork(what: &'static str) -> impl FnOnce(ForkError) -> Self {
        move |error| match error {
            ForkError::Threads(threads) => Self::Threads(threads),
            error => Self::Fork { what: what.into(), source: error.errno() },
        }
    }
}

/// An error of another crate as it crosses from the worker to the caller.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reported {
    kind: u8,
    /// The error's text, then those of its sources.
    chain: Vec<String>,
}

impl Reported {
    /// Takes down `error` and its sources.
    pub(crate) fn new(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        let first: Option<&dyn std::error::Error> = Some(error);
        let chain = std::iter::successors(first, |error| error.source());
        Self {
            kind: KINDS.iter().position(|known| *known == kind).map_or(0, to_u8),
            chain: chain.map(ToString::to_string).collect(),
        }
    }

    fn kind(&self) -> ErrorKind {
        KINDS.get(usize::from(self.kind)).copied().unwrap_or(ErrorKind::Internal)
    }
}

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl std::error::Error for Reported {}

/// The order is the wire format between two forks of one program.
const KINDS: [ErrorKind; 11] = [
    ErrorKind::Internal,
    ErrorKind::NotFound,
    ErrorKind::InvalidArgument,
    ErrorKind::AlreadyExists,
    ErrorKind::FailedPrecondition,
    ErrorKind::ResourceExhausted,
    ErrorKind::DeadlineExceeded,
    ErrorKind::Unavailable,
    ErrorKind::PermissionDenied,
    ErrorKind::Unimplemented,
    ErrorKind::Cancelled,
];

fn to_u8(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(0)
}

/// Why something could not be put at a path in the container: a matter of the request and of
/// the image, where the kernel says so in one of these ways.
fn place_kind(source: Errno) -> ErrorKind {
    match source {
        // What is there is something else than the request needs.
        Errno::ELOOP
        | Errno::EXDEV
        | Errno::ENOTDIR
        | Errno::EISDIR
        | Errno::EEXIST
        | Errno::ENAMETOOLONG => ErrorKind::InvalidArgument,
        // The kernel does not make it, or not there (mount(2), mknod(2), mkdir(2)).
        Errno::EINVAL
        | Errno::ENOENT
        | Errno::EPERM
        | Errno::EACCES
        | Errno::EROFS
        | Errno::EBUSY
        | Errno::ENODEV
        | Errno::ENXIO
        | Errno::EOPNOTSUPP => ErrorKind::FailedPrecondition,
        other => exhausted_or_internal(other),
    }
}

fn exec_kind(source: Errno) -> ErrorKind {
    match source {
        Errno::ENOENT | Errno::ENOTDIR => ErrorKind::NotFound,
        Errno::EACCES | Errno::EPERM => ErrorKind::PermissionDenied,
        Errno::ENOMEM | Errno::EAGAIN => ErrorKind::ResourceExhausted,
        // More arguments than the kernel takes, or a path that cannot be followed.
        Errno::E2BIG | Errno::ENAMETOOLONG | Errno::ELOOP => ErrorKind::InvalidArgument,
        _ => ErrorKind::FailedPrecondition,
    }
}

/// What people know these failures as.
fn exec_reason(source: Errno) -> &'static str {
    match source {
        Errno::ENOENT | Errno::ENOTDIR => "no such file or directory",
        Errno::EACCES | Errno::EPERM => "permission denied",
        Errno::ENOEXEC => "exec format error",
        other => other.desc(),
    }
}

fn exhausted_or_internal(source: Errno) -> ErrorKind {
    match source {
        Errno::ENOSPC
        | Errno::EDQUOT
        | Errno::ENOMEM
        | Errno::EAGAIN
        | Errno::EMFILE
        | Errno::ENFILE => ErrorKind::ResourceExhausted,
        _ => ErrorKind::Internal,
    }
}

fn explained(explanation: &str) -> String {
    if explanation.is_empty() { String::new() } else { format!(" ({explanation})") }
}

/// Errnos as their numbers.
mod errno {
    use nix::errno::Errno;
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(errno: &Errno, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i32(*errno as i32)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Errno, D::Error> {
        i32::deserialize(from).map(Errno::from_raw)
    }
}
