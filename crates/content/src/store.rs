//! The store: what is there, and the way in and out.

use std::fs::{self, File, ReadDir};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_model::Digest;

use crate::layout::{Layout, create_new};
use crate::{Error, Ingest};

/// Blobs by digest, below one directory. Clones share it.
#[derive(Clone, Debug)]
pub struct Content(Arc<Store>);

#[derive(Debug)]
struct Store {
    layout: Layout,
    /// Held from the start, so that [`Content::sync`] reports every failed write-back of
    /// the filesystem since (syncfs(2): errors are those since the descriptor was opened).
    root: File,
    next: AtomicU64,
}

/// A stored blob, open for reading from its first byte.
#[derive(Debug)]
pub struct Blob {
    /// Its bytes; they stay readable while it is open, even if the blob is removed.
    pub file: File,
    /// Its size, bytes.
    pub size: u64,
}

/// One entry of [`Content::list`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlobInfo {
    /// The blob.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
}

impl Content {
    /// Opens the layout below `root`, making what is missing.
    ///
    /// Ingests that an earlier process left are removed.
    ///
    /// # Errors
    /// [`Error::File`] if a file or directory of the layout cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let layout = Layout::open(root.into())?;
        let root = File::open(&layout.root).map_err(Error::file("open", &layout.root))?;
        Ok(Self(Arc::new(Store { layout, root, next: AtomicU64::new(0) })))
    }

    /// Begins to take in the blob `expected` of exactly `size` bytes.
    ///
    /// Several ingests of one digest do not disturb each other: each commits equal bytes.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be made.
    pub fn ingest(&self, expected: &Digest, size: u64) -> Result<Ingest, Error> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let path = self.0.layout.ingests().join(number.to_string());
        let file = create_new(&path).map_err(Error::file("create", &path))?;
        Ok(Ingest::new(file, path, self.0.layout.blob(expected), *expected, size))
    }

    /// Stores `bytes` under their own digest, which is returned.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        let size = u64::try_from(bytes.len()).expect("a length fits 64 bits");
        let mut ingest = self.ingest(&digest, size)?;
        ingest.write(bytes)?;
        ingest.commit()?;
        Ok(digest)
    }

    /// Opens a blob for streaming; its bytes are not verified again.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::File`].
    pub fn open_blob(&self, digest: &Digest) -> Result<Blob, Error> {
        let path = self.0.layout.blob(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(*digest));
            }
            opened => opened.map_err(Error::file("open", &path))?,
        };
        let size = file.metadata().map_err(Error::file("inspect", &path))?.len();
        Ok(Blob { file, size })
    }

    /// Reads a blob of at most `limit` bytes, and verifies it again.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OverLimit`], [`Error::Damaged`] or [`Error::File`].
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let Blob { file, size } = self.open_blob(digest)?;
        if size > limit {
            return Err(Error::OverLimit { digest: *digest, size, limit });
        }
        let mut bytes = Vec::new();
        file.take(size)
            .read_to_end(&mut bytes)
            .map_err(Error::file("read", self.0.layout.blob(digest)))?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(Error::Damaged { expected: *digest, actual });
        }
        Ok(bytes)
    }

    /// The size of a blob in bytes; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let path = self.0.layout.blob(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("inspect", path)(error)),
        }
    }

    /// Whether a blob is there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn exists(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.size(digest)?.is_some())
    }

    /// Removes a blob; answers whether it was there. Readers that have it open go on.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self, digest: &Digest) -> Result<bool, Error> {
        let path = self.0.layout.blob(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::file("remove", path)(error)),
        }
    }

    /// Every blob, one directory entry at a time, in no order; foreign files are left out.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be read.
    pub fn list(&self) -> Result<Blobs, Error> {
        let path = self.0.layout.blobs();
        let entries = fs::read_dir(&path).map_err(Error::file("list", &path))?;
        Ok(Blobs { entries, path })
    }

    /// Makes every committed blob, and all else on its filesystem, durable.
    ///
    /// # Errors
    /// [`Error::File`] if anything written to the filesystem since the last call was lost.
    pub fn sync(&self) -> Result<(), Error> {
        nix::unistd::syncfs(&self.0.root).map_err(|errno| {
            Error::file("sync the filesystem of", &self.0.layout.root)(errno.into())
        })
    }
}

/// Iterator of [`Content::list`].
#[derive(Debug)]
pub struct Blobs {
    entries: ReadDir,
    path: PathBuf,
}

impl Blobs {
    /// `None` for what is no blob, or no longer there.
    fn info(entry: &fs::DirEntry) -> io::Result<Option<BlobInfo>> {
        let name = entry.file_name();
        let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
        let Some(digest) = digest else { return Ok(None) };
        match entry.metadata() {
            Ok(found) => Ok(found.is_file().then_some(BlobInfo { digest, size: found.len() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Iterator for Blobs {
    type Item = Result<BlobInfo, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let info = self.entries.next()?.and_then(|entry| Self::info(&entry));
            match info {
                Ok(None) => {}
                Ok(Some(info)) => return Some(Ok(info)),
                Err(error) => return Some(Err(Error::file("list", &self.path)(error))),
            }
        }
    }
}
