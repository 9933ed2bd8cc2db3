//! What can go wrong with a store.

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
            Self::NewerSchema { .. } => ErrorKind::FailedPrecondition,
            Self::Damaged { .. } | Self::Query { .. } | Self::Record { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn query(path: &Path, action: &'static str, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
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
