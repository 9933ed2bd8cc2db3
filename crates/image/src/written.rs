//! Whether what a pull has written is on disk.
//!
//! Each pull has descriptors of its own, opened before it writes or finds anything, since
//! a failed write-back is reported once to each. A pull also relies on what others have
//! written without a record; hence a count of losses for all of them.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use crate::Error;
use crate::images::Inner;

/// What knows of every loss since it was made.
#[derive(Debug)]
pub(crate) struct Written {
    blobs: berth_content::Witness,
    layers: File,
    root: PathBuf,
    losses: u64,
}

impl Inner {
    /// From now on losses are known.
    pub(crate) fn written(&self) -> Result<Written, Error> {
        // Before anything is opened: what is lost in between is reported by the count.
        let losses = self.losses.load(Ordering::Acquire);
        let failed = |source| Error::ContentStore { action: "watch blobs", source };
        let blobs = self.content.witness().map_err(failed)?;
        let root = self.snapshots.root().to_owned();
        let layers = File::open(&root).map_err(|error| {
            let source = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
            Error::Sync { path: root.clone(), source }
        })?;
        Ok(Written { blobs, layers, root, losses })
    }

    /// Makes everything written so far durable. Where that fails, nothing that has no
    /// record stays for others to rely on: it reads well from memory, and may be lost.
    pub(crate) fn sync(&self, written: &Written) -> Result<(), Error> {
        let blobs = written.blobs.sync();
        let blobs = blobs.map_err(|source| Error::ContentStore { action: "sync blobs", source });
        let layers = nix::unistd::syncfs(&written.layers);
        let lost = |source| Error::Sync { path: written.root.clone(), source };
        if let Err(error) = blobs.and(layers.map_err(lost)) {
            if let Err(failure) = self.distrust() {
                let error = &failure as &dyn std::error::Error;
                tracing::warn!(error, "remove what the disk may have lost");
            }
            return Err(error);
        }
        match self.losses.load(Ordering::Acquire) == written.losses {
            true => Ok(()),
            false => Err(lost(Errno::EIO)),
        }
    }
}
