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

impl ErrorKind {
    /// What a failed call of the kernel on a file is to a client.
    ///
    /// A file system that went read-only (ext4 after an error, an operator) is a state of
    /// the node; what it refuses is no fault of the request, and no permission of the
    /// client's is meant by any of them.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::StorageFull
            | Io::QuotaExceeded
            | Io::FileTooLarge
            | Io::TooManyLinks
            | Io::OutOfMemory => Self::ResourceExhausted,
            Io::ReadOnlyFilesystem => Self::FailedPrecondition,
            _ => Self::Internal,
        }
    }
}

/// An error and its causes on one line for people, outermost first, joined by colons.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_takes_no_more_is_exhausted_and_a_broken_one_is_not() {
        for (errno, expected) in [
            (28, ErrorKind::ResourceExhausted),  // ENOSPC
            (122, ErrorKind::ResourceExhausted), // EDQUOT
            (27, ErrorKind::ResourceExhausted),  // EFBIG
            (31, ErrorKind::ResourceExhausted),  // EMLINK
            (12, ErrorKind::ResourceExhausted),  // ENOMEM
            (30, ErrorKind::FailedPrecondition), // EROFS
            (5, ErrorKind::Internal),            // EIO
            (13, ErrorKind::Internal),           // EACCES
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            assert_eq!(ErrorKind::of_io(&error), expected, "{error}");
        }
    }
}
