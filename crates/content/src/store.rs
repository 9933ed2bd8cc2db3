//! The store: what is there, and the way in and out.

use std::fs::{self, File, ReadDir};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_model::Digest;
use sha2::{Digest as _, Sha256};

use crate::layout::{Layout, create_new};
use crate::{Error, Ingest};

/// Blobs by digest, below one directory. Clones share it.
#[derive(Clone, Debug)]
pub struct Content(Arc<Store>);

#[derive(Debug)]
struct Store {
    layout: Layout,
    next: AtomicU64,
}

/// What is told of every write to the filesystem that fails after it was opened
/// (syncfs(2): each failure is reported once to each descriptor that was open).
///
/// So each writer has one of its own, opened before its first write: with a shared one,
/// whoever syncs first takes the failure away from the others.
#[derive(Debug)]
pub struct Witness {
    root: File,
    path: PathBuf,
}

impl Witness {
    /// Makes every committed blob, and all else on its filesystem, durable.
    ///
    /// # Errors
    /// [`Error::File`] if anything written to the filesystem since this was opened, or
    /// since the last call, was lost.
    pub fn sync(&self) -> Result<(), Error> {
        nix::unistd::syncfs(&self.root)
            .map_err(|errno| Error::file("sync the filesystem of", &self.path)(errno.into()))
    }
}

/// A blob that has lost its name; its bytes go when it is emptied, or at the next start.
#[derive(Debug)]
#[must_use = "its bytes stay until it is emptied, or until the next start"]
pub struct Trash(PathBuf);

impl Trash {
    /// Removes the bytes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn empty(self) -> Result<(), Error> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", self.0)(error))
            }
            _ => Ok(()),
        }
    }
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
        Ok(Self(Arc::new(Store { layout, next: AtomicU64::new(0) })))
    }

    /// What will know whether anything that is written from now on was lost.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn witness(&self) -> Result<Witness, Error> {
        let path = &self.0.layout.root;
        let root = File::open(path).map_err(Error::file("open", path))?;
        Ok(Witness { root, path: path.clone() })
    }

    /// Begins to take in the blob `expected` of exactly `size` bytes.
    ///
    /// Several ingests of one digest do not disturb each other: each commits equal bytes.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be made.
    pub fn ingest(&self, expected: &Digest, size: u64) -> Result<Ingest, Error> {
        let path = self.unused();
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

    /// Takes a blob away at once and leaves its bytes for [`Trash::empty`], which takes
    /// longer the larger it is; `None` if it is not there. Readers that have it open go on.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn detach(&self, digest: &Digest) -> Result<Option<Trash>, Error> {
        let (path, trash) = (self.0.layout.blob(digest), self.unused());
        match fs::rename(&path, &trash) {
            Ok(()) => Ok(Some(Trash(trash))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("remove", path)(error)),
        }
    }

    /// Reads a blob to its end and compares its digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`] or [`Error::File`].
    pub fn verify(&self, digest: &Digest) -> Result<(), Error> {
        let mut file = self.open_blob(digest)?.file;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
        loop {
            let read = file.read(&mut buffer);
            let read = read.map_err(Error::file("read", self.0.layout.blob(digest)))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let actual = Digest::from_sha256(hasher.finalize().into());
        match actual == *digest {
            true => Ok(()),
            false => Err(Error::Damaged { expected: *digest, actual }),
        }
    }

    /// Bytes allocated for, and number of, all files here: blobs, those on their way in
    /// and those on their way out.
    ///
    /// # Errors
    /// [`Error::File`] if a directory cannot be read.
    pub fn usage(&self) -> Result<(u64, u64), Error> {
        let (mut bytes, mut files) = (0, 0);
        for directory in [self.0.layout.blobs(), self.0.layout.ingests()] {
            let failed =
                |source| Error::File { operation: "list", path: directory.clone(), source };
            for entry in fs::read_dir(&directory).map_err(failed)? {
                match entry.and_then(|entry| entry.metadata()) {
                    Ok(found) => {
                        bytes += found.blocks() * 512;
                        files += 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok((bytes, files))
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

    /// A name in the directory of ingests that nothing has.
    fn unused(&self) -> PathBuf {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.layout.ingests().join(number.to_string())
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
