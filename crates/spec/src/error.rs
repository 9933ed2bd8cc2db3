//! Why a specification cannot be built.

use std::path::PathBuf;

use berth_model::ErrorKind;

/// Why a specification cannot be built: a fault of the request or of the image, or
/// something that this node does not have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the request nor the image says what to execute.
    #[error("neither the request nor the image has a command")]
    NoCommand,
    /// What is passed to execve(2) holds a NUL byte.
    #[error("{0} holds a NUL byte")]
    NulByte(&'static str),
    /// The name of an environment variable is empty or holds `=`.
    #[error("environment variable name {0:?} is empty or holds '='")]
    EnvName(String),
    /// The working directory is not absolute.
    #[error("working directory {} is not absolute", .0.display())]
    RelativeCwd(PathBuf),
    /// A user or group id is beyond 2147483647.
    #[error("{what} {value:?} is out of range (0 to 2147483647)")]
    IdRange {
        /// User or group.
        what: &'static str,
        /// As it was written.
        value: String,
    },
    /// A user or group name that cannot be one.
    #[error("{what} name {value:?} is invalid")]
    IdName {
        /// User or group.
        what: &'static str,
        /// As it was written.
        value: String,
    },
    /// The image's `/etc/passwd` or `/etc/group` does not have it.
    #[error("{what} {value:?} is not in the image's {file}")]
    NoSuchId {
        /// User or group.
        what: &'static str,
        /// As it was written.
        value: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// No such capability.
    #[error("capability {0:?} is unknown")]
    Capability(String),
    /// The daemon does not have a capability, so it cannot give it to anybody.
    #[error("capability {0} is not among those that this node's daemon has")]
    CapabilityUnavailable(String),
    /// A mount or device goes where none can.
    #[error("{what} {} must be an absolute path other than \"/\", without NUL", path.display())]
    ContainerPath {
        /// Mount or device.
        what: &'static str,
        /// The path in the container.
        path: PathBuf,
    },
    /// Recursive read-only without its conditions.
    #[error(
        "recursive read-only mount {} must be read-only, with private propagation",
        .0.display()
    )]
    RecursiveReadOnly(PathBuf),
    /// A device permission other than `r`, `w` and `m`.
    #[error("device permissions {0:?} must be made of 'r', 'w' and 'm'")]
    DevicePermissions(String),
    /// A limit that the kernel cannot take.
    #[error("{field} {value} is out of range")]
    Limit {
        /// Name of the field in the request.
        field: &'static str,
        /// As it was given.
        value: i128,
    },
    /// A limit in words that the kernel does not read.
    #[error("{field} {value:?} is not {form}")]
    LimitForm {
        /// Name of the field in the request.
        field: &'static str,
        /// As it was given, its beginning.
        value: String,
        /// What it should be.
        form: &'static str,
    },
    /// A kernel parameter that a sandbox may not set.
    #[error("sysctl {name:?}: {problem}")]
    Sysctl {
        /// Its dotted name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// A cgroup file that may not be named directly.
    #[error("unified resource {0:?} is not a cgroup v2 file name")]
    Unified(String),
    /// No such signal.
    #[error("signal {0:?} is unknown")]
    Signal(String),
    /// The profile is not what the runtime specification or docker describe.
    #[error("read seccomp profile {name:?}")]
    SeccompSyntax {
        /// Its name in the request.
        name: String,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// The profile's JSON is fine and its meaning is not.
    #[error("seccomp profile {name:?}: {problem}")]
    SeccompProfile {
        /// Its name in the request.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A localhost profile was asked for and its bytes were not given.
    #[error("seccomp profile {0:?} was not read")]
    SeccompMissing(String),
    /// A mount names an image, and how it is mounted was not given.
    #[error("image {0:?} of a mount was not found")]
    ImageMissing(String),
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::SeccompMissing(_) | Self::ImageMissing(_) => ErrorKind::Internal,
            Self::CapabilityUnavailable(_) => ErrorKind::FailedPrecondition,
            _ => ErrorKind::InvalidArgument,
        }
    }
}
