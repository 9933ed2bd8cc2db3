//! Space set aside, so that what exists can be changed and removed on a full disk.
//!
//! A removal writes pages to the log and, at the next checkpoint, to the database. So
//! blocks for a whole log ([`LOG`]) and for what the log holds are allocated beyond the
//! ends of both files (fallocate(2), `FALLOC_FL_KEEP_SIZE`): they belong to the files, and
//! no other writer can take them. Nothing new is stored while that is not so; then a
//! change needs no block that is not there. The log stays when the database is closed,
//! empty, with its blocks: a start on a full disk needs none either.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use rusqlite::Connection;

use crate::Error;

/// The log with room to spare: SQLite writes it back when it has 1,000 frames, 4.1 MB.
pub(crate) const LOG: i64 = 6 << 20;

/// The index of a log of up to 4,062 frames (SQLite, "WAL-Index Format").
const INDEX: i64 = 32 << 10;

/// Most that one more record may add to the database before it is looked at again, bytes.
const STEP: u64 = 256 << 10;

/// What is set aside for one database.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// Open as long as the connection is: to close any descriptor of the file would drop
    /// SQLite's locks on it (fcntl(2)).
    database: File,
    /// The index of the log, for the same reason. SQLite maps it, and allocates but one
    /// block of each page: where blocks are smaller, a full disk would be a SIGBUS.
    index: File,
    /// Up to where blocks of the database are allocated.
    allocated: AtomicU64,
}

impl Reserve {
    /// For the database at `path`, which is open. On a full disk, nothing is set aside yet.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let open = |path: PathBuf| {
            let opened = OpenOptions::new().write(true).open(&path);
            opened.map_err(|source| Error::File { action: "open", path, source })
        };
        let (database, index) = (open(path.to_owned())?, open(beside(path, "-shm"))?);
        Ok(Self { path: path.to_owned(), database, index, allocated: AtomicU64::new(0) })
    }

    /// Sets aside what is missing; must succeed before something new is stored.
    pub(crate) fn ensure(&self, connection: &Connection) -> Result<(), Error> {
        let pages = |pragma| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
        let size = pages("PRAGMA page_count")
            .and_then(|count| Ok(count * pages("PRAGMA page_size")?))
            .map_err(|source| Error::query(&self.path, "count pages", source))?;
        let size = u64::try_from(size).unwrap_or(0);
        if self.allocated.load(Ordering::Relaxed) >= size + STEP {
            return Ok(());
        }
        allocate(&self.index, INDEX, &beside(&self.path, "-shm"))?;
        let wanted = size + 2 * STEP;
        allocate(&self.database, i64::try_from(wanted).unwrap_or(i64::MAX), &self.path)?;
        self.set_log_aside()?;
        self.allocated.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    /// Sets a whole log aside. Nobody has locks on that file.
    pub(crate) fn set_log_aside(&self) -> Result<(), Error> {
        let path = beside(&self.path, "-wal");
        let opened = OpenOptions::new().write(true).open(&path);
        match opened {
            Ok(file) => allocate(&file, LOG, &path),
            // Until the first change there is none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::File { action: "open", path, source }),
        }
    }
}

/// Has the first `length` bytes of the file allocated, whatever its size.
fn allocate(file: &File, length: i64, path: &Path) -> Result<(), Error> {
    loop {
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
            // A file system without the call (NFS, ZFS) can set nothing aside.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                let (path, source) = (path.to_owned(), errno.into());
                return Err(Error::File { action: "set space aside in", path, source });
            }
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
