//! The files and directories that make a directory an OCI image layout.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use berth_model::Digest;

use crate::Error;

/// OCI image specification, "Image Layout": the marker file and its only content so far.
const MARKER: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
/// Which tags exist is `metadata`'s to know; the specification wants the file nevertheless.
const INDEX: (&str, &[u8]) = (
    "index.json",
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
);

#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    /// Makes what is missing, and drops the ingests of a process that is gone.
    pub(crate) fn open(root: PathBuf) -> Result<Self, Error> {
        let layout = Self { root };
        for directory in [layout.blobs(), layout.ingests()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::file("create directory", &directory))?;
        }
        layout.sweep()?;
        layout.write_if_absent(MARKER)?;
        layout.write_if_absent(INDEX)?;
        Ok(layout)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn ingests(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn sweep(&self) -> Result<(), Error> {
        let directory = self.ingests();
        let failed = |source| Error::File {
            operation: "sweep stale ingests in",
            path: directory.clone(),
            source,
        };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    /// An empty file is what a crash may leave of one that was being written.
    fn write_if_absent(&self, (name, bytes): (&str, &[u8])) -> Result<(), Error> {
        let path = self.root.join(name);
        if fs::metadata(&path).is_ok_and(|found| found.len() > 0) {
            return Ok(());
        }
        let next = self.ingests().join(name);
        write_new(&next, bytes)
            .and_then(|()| fs::rename(&next, &path))
            .map_err(Error::file("write", &path))
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_new(path)?.write_all(bytes)
}

/// A new file that only its owner may read; it is an error if the name is taken.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
