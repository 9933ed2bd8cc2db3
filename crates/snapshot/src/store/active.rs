//! Active snapshots that are mounted a second time.

use berth_model::ChainId;
use berth_model::mount::Mount;
use nix::errno::Errno;

use super::{ACTIVE, Durability, Snapshots};
use crate::{Error, SnapshotKey};

impl Snapshots {
    /// How to mount the active snapshot `key` for a program that has not run yet. What is
    /// there of an earlier mount, whose program never ran, is thrown away: overlayfs mounts
    /// what was mounted `volatile` only once. It must not be mounted any more.
    pub fn mounts_unused(
        &self,
        key: &SnapshotKey,
        chain: &[ChainId],
        durability: Durability,
    ) -> Result<Vec<Mount>, Error> {
        if self.is_unused(key)? {
            return self.mounts(key, chain, durability);
        }
        self.remove(key)?;
        self.prepare(key, chain, durability)
    }

    /// Whether it is whole and was never mounted: its work directory is made last, and a
    /// mount makes one of its own in there.
    fn is_unused(&self, key: &SnapshotKey) -> Result<bool, Error> {
        let work = format!("{ACTIVE}/{key}/work");
        let missing = |path: &str| match self.0.open_directory(path) {
            Ok(_) => Ok(false),
            Err(Error::Io { source: Errno::ENOENT, .. }) => Ok(true),
            Err(error) => Err(error),
        };
        Ok(!missing(&work)? && missing(&format!("{work}/work"))?)
    }
}
