//! What has lost its name: it is out of sight at once, and gone when its files are.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::str::FromStr as _;

use berth_model::{ChainId, Digest};
use nix::errno::Errno;

use crate::store::{ACTIVE, COMMITTED, INGEST, LAYERS, TRASH};
use crate::{Error, SnapshotKey, Snapshots, tree};

/// Allocated bytes, and inodes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Size {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Something that has lost its name and waits to be removed; what is dropped instead is
/// swept at the next start.
#[derive(Debug)]
#[must_use = "its files stay until it is emptied, or until the next start"]
pub struct Trash {
    snapshots: Snapshots,
    /// Relative to the root.
    path: String,
}

impl Trash {
    /// Removes the files.
    pub fn empty(self) -> Result<(), Error> {
        let inner = &self.snapshots.0;
        let path =
            CString::new(self.path.as_str()).expect("names come from directories and from numbers");
        tree::remove(inner.root.as_fd(), &path)
            .map_err(|error| error.below(self.snapshots.root()))?;
        inner.sizes().remove(&self.path);
        Ok(())
    }

    /// Finds out how much it holds, if that is not known: until it is emptied it counts
    /// among [`Snapshots::sizes`].
    pub fn measure(&self) -> Result<(), Error> {
        let inner = &self.snapshots.0;
        if inner.sizes().contains_key(&self.path) {
            return Ok(());
        }
        let size = match inner.open_directory(&self.path) {
            // A link that led to a layer, or whatever had a layer's name.
            Err(Error::Io { source: Errno::ENOTDIR | Errno::ELOOP, .. }) => {
                Size { bytes: 0, inodes: 1 }
            }
            directory => {
                let found = tree::usage(directory?.as_fd())
                    .map_err(|error| error.below(self.snapshots.root().join(&self.path)))?;
                Size { bytes: found.bytes, inodes: found.inodes }
            }
        };
        inner.sizes().insert(self.path.clone(), size);
        Ok(())
    }
}

impl Snapshots {
    /// Removes every active snapshot whose key is not in `live`; returns their keys.
    ///
    /// For the start of the daemon: nothing may be preparing one meanwhile.
    pub fn sweep_active(&self, live: &HashSet<SnapshotKey>) -> Result<Vec<SnapshotKey>, Error> {
        let mut removed = Vec::new();
        for name in self.0.names(ACTIVE)? {
            match name.parse::<SnapshotKey>() {
                Ok(key) if live.contains(&key) => continue,
                Ok(key) => removed.push(key),
                Err(_) => {}
            }
            self.discard(ACTIVE, &name)?;
        }
        Ok(removed)
    }

    /// Everything that has lost its name and is not removed, whoever has taken it away.
    pub fn trash(&self) -> Result<Vec<Trash>, Error> {
        let paths = self.0.names(TRASH)?.into_iter().map(|name| format!("{TRASH}/{name}"));
        Ok(paths.map(|path| Trash { snapshots: self.clone(), path }).collect())
    }

    /// Takes away every committed snapshot that is not in `live`, and every layer in the
    /// making; returns them with what an earlier removal left, for [`Trash::empty`].
    ///
    /// For the start of the daemon: nothing may be unpacking meanwhile.
    pub fn sweep_committed(&self, live: &HashSet<ChainId>) -> Result<Vec<Trash>, Error> {
        let mut trash = self.trash()?;
        let mut kept = HashSet::new();
        for name in self.0.names(COMMITTED)? {
            let chain = Digest::from_str(&format!("sha256:{name}")).ok().map(ChainId);
            let dir = match chain.filter(|chain| live.contains(chain)) {
                Some(chain) => self.directory_of(chain)?,
                None => None,
            };
            match dir {
                Some(dir) => drop(kept.insert(dir)),
                None => trash.extend(self.detach(&format!("{COMMITTED}/{name}"))?),
            }
        }
        for place in [LAYERS, INGEST] {
            for name in self.0.names(place)? {
                let path = format!("{place}/{name}");
                if !kept.contains(&path) {
                    trash.extend(self.detach(&path)?);
                }
            }
        }
        Ok(trash)
    }

    /// Takes `name` away from `place` at once, then removes what it holds.
    pub(crate) fn discard(&self, place: &str, name: &str) -> Result<(), Error> {
        self.detach(&format!("{place}/{name}"))?.map_or(Ok(()), Trash::empty)
    }

    pub(crate) fn detach(&self, path: &str) -> Result<Option<Trash>, Error> {
        let trash = format!("{TRASH}/{}", self.0.number());
        match self.0.rename(path, &trash) {
            Err(Error::Io { source: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(Some(Trash { snapshots: self.clone(), path: trash })),
        }
    }
}
