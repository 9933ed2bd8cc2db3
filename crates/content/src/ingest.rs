//! A blob on its way in.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use berth_model::Digest;
use nix::errno::Errno;
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Write-back is asked for in pieces of this many bytes: large enough for the disk to
/// stream, small enough that little is left at the end.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// A blob on its way in, verified as it is written.
///
/// Dropping it instead of calling [`Ingest::commit`] removes what was written.
pub struct Ingest {
    file: File,
    path: PathBuf,
    target: PathBuf,
    expected: Digest,
    size: u64,
    hasher: Sha256,
    written: u64,
    /// Up to here the kernel was asked to write.
    started: u64,
    committed: bool,
}

impl Ingest {
    pub(crate) fn new(
        file: File,
        path: PathBuf,
        target: PathBuf,
        expected: Digest,
        size: u64,
    ) -> Self {
        let hasher = Sha256::new();
        Self {
            file,
            path,
            target,
            expected,
            size,
            hasher,
            written: 0,
            started: 0,
            committed: false,
        }
    }

    /// The digest the blob must have.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.expected
    }

    /// The size the blob must have, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes accepted so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::TooLong`] as soon as more bytes come than the descriptor promised: none of
    /// `bytes` is stored then. [`Error::File`] if they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = u64::try_from(bytes.len()).expect("a length fits 64 bits");
        if length > self.size - self.written {
            return Err(Error::TooLong { digest: self.expected, expected: self.size });
        }
        self.file.write_all(bytes).map_err(Error::file("write", &self.path))?;
        self.hasher.update(bytes);
        self.written += length;
        if self.written - self.started >= WRITEBACK_BYTES {
            self.start_writeback()?;
        }
        Ok(())
    }

    /// Checks size and digest and makes the blob visible, replacing an equal one.
    ///
    /// It is durable after the next [`crate::Witness::sync`].
    ///
    /// # Errors
    /// [`Error::TooShort`], [`Error::WrongDigest`], or [`Error::File`]; nothing becomes
    /// visible and nothing is left behind then.
    pub fn commit(mut self) -> Result<(), Error> {
        if self.written < self.size {
            let (digest, expected, actual) = (self.expected, self.size, self.written);
            return Err(Error::TooShort { digest, expected, actual });
        }
        let actual = Digest::from_sha256(self.hasher.clone().finalize().into());
        if actual != self.expected {
            return Err(Error::WrongDigest { expected: self.expected, actual });
        }
        self.start_writeback()?;
        fs::rename(&self.path, &self.target).map_err(Error::file("commit", &self.target))?;
        self.committed = true;
        Ok(())
    }

    fn start_writeback(&mut self) -> Result<(), Error> {
        let length = self.written - self.started;
        match berth_sys::writeback::start_writeback(self.file.as_fd(), self.started, length) {
            // A filesystem that cannot start early is merely slower at the sync.
            Ok(()) | Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(Error::file("write back", &self.path)(errno.into())),
        }
        self.started = self.written;
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now is swept when the store is opened next.
            fs::remove_file(&self.path).ok();
        }
    }
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest")
            .field("digest", &self.expected)
            .field("size", &self.size)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}
