//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use berth_model::ErrorKind;
use rusqlite::ErrorCode;

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was written by a newer version.
    #[error(
        "database {} has schema {found}, newer than {known}, the newest this version knows",
        path.display()
    )]
    NewerSchema {
        /// The file, left untouched.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest schema this version knows.
        known: u32,
    },
    /// The file is not a database, or its pages contradict each other.
    #[error("database {} is damaged: {finding}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        finding: String,
    },
    /// Something other than a file has the name of a database or of its log.
    #[error("{} is not a regular file: move it away", path.display())]
    NotAFile {
        /// What is in the way.
        path: PathBuf,
    },
    /// A damaged database cannot be set aside, since too many were before.
    #[error("too many damaged databases are kept beside {}: look at them and remove some", path.display())]
    TooManyDamaged {
        /// The database that is damaged now.
        path: PathBuf,
    },
    /// A file beside the databases cannot be handled.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full.
    #[error("{action} in {}: no space left", path.display())]
    Full {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// Another process held the file longer than the busy timeout.
    #[error("{action} in {}: the database is busy", path.display())]
    Busy {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// A name that must be unique is taken.
    #[error("{action} in {}: the name is taken", path.display())]
    Taken {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// Anything else SQLite refuses.
    #[error("{action} in {}", path.display())]
    Query {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// A row holds what no version of this program writes.
    #[error("record {key:?} of {table} cannot be read")]
    Record {
        /// The table.
        table: &'static str,
        /// The row.
        key: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Every address of the range is leased.
    #[error("no address is free between {first} and {last}")]
    NoAddress {
        /// First address of the range.
        first: std::net::Ipv4Addr,
        /// Last address of the range.
        last: std::net::Ipv4Addr,
    },
}

impl Error {
    /// What a front turns into a gRPC or HTTP status.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } | Self::NoAddress { .. } => ErrorKind::ResourceExhausted,
            Self::Taken { .. } => ErrorKind::AlreadyExists,
            Self::Busy { .. } => ErrorKind::Unavailable,
            Self::NewerSchema { .. } | Self::NotAFile { .. } | Self::TooManyDamaged { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::File { source, .. } => ErrorKind::of_io(source),
            Self::Damaged { .. } | Self::Query { .. } | Self::Record { .. } => ErrorKind::Internal,
        }
    }

    /// Whether the content of the file is wrong, and not what surrounds it.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Record { .. })
    }

    /// As [`Error::query`], while a file is being opened: what SQLite cannot make sense of
    /// then is damage as well.
    pub(crate) fn opening(path: &Path, action: &'static str, source: rusqlite::Error) -> Self {
        match Self::query(path, action, source) {
            Self::Taken { path, source, .. } => Self::damaged(path, &source),
            Self::Query { path, source, action } => match source.sqlite_error_code() {
                Some(
                    ErrorCode::CannotOpen
                    | ErrorCode::PermissionDenied
                    | ErrorCode::OutOfMemory
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::FileLockingProtocolFailed
                    | ErrorCode::AuthorizationForStatementDenied,
                ) => Self::Query { path, source, action },
                // A file cut short reads as an I/O error, a broken disk as another one.
                Some(ErrorCode::SystemIoFailure) if !is_short_read(&source) => {
                    Self::Query { path, source, action }
                }
                _ => Self::damaged(path, &source),
            },
            other => other,
        }
    }

    fn damaged(path: PathBuf, source: &rusqlite::Error) -> Self {
        Self::Damaged { path, finding: source.to_string() }
    }

    pub(crate) fn query(path: &Path, action: &'static str, source: rusqlite::Error) -> Self {
        use rusqlite::Error as Sql;
        let path = path.to_owned();
        if matches!(
            source,
            Sql::Utf8Error(..)
                | Sql::FromSqlConversionFailure(..)
                | Sql::IntegralValueOutOfRange(..)
                | Sql::InvalidColumnType(..)
        ) {
            return Self::damaged(path, &source);
        }
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, finding: source.to_string() }
            }
            Some(ErrorCode::DiskFull) => Self::Full { action, path, source },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Busy { action, path, source }
            }
            Some(ErrorCode::ConstraintViolation) => Self::Taken { action, path, source },
            _ => Self::Query { action, path, source },
        }
    }
}

fn is_short_read(source: &rusqlite::Error) -> bool {
    source
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ)
}
