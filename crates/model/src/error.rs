//! The kinds of failure a front must tell apart.

/// What a front turns into a gRPC or HTTP status.
///
/// Every crate's `Error` has a `kind()`; the text of an error is for people only.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ErrorKind {
    /// The object named in the request does not exist.
    NotFound,
    /// The request itself is wrong, whatever the state of the node.
    InvalidArgument,
    /// The object named in the request exists already and differs.
    AlreadyExists,
    /// The object is in a state that forbids the request.
    FailedPrecondition,
    /// A disk, quota or limit of this node is used up.
    ResourceExhausted,
    /// A deadline passed before the work was done.
    DeadlineExceeded,
    /// A remote party (a registry, a shim) could not be reached.
    Unavailable,
    /// The remote party refused the credentials.
    PermissionDenied,
    /// Berth does not do this, and says so.
    Unimplemented,
    /// The client went away, or the daemon is shutting down.
    Cancelled,
    /// Anything else: a failed syscall, a damaged file, a bug.
    Internal,
}
