//! Further ways to mount: what was mounted before, and layers that nothing is written to.

use std::os::fd::AsFd as _;

use berth_model::mount::Mount;
use berth_model::{ChainId, IdMappings};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, fchown};

use super::{ACTIVE, Durability, EMPTY, MAX_LAYERS, Snapshots};
use crate::meta::is_opaque;
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

    /// How to mount the layers of `chain` for reading alone. Whoever does must see to it
    /// that the layers stay.
    pub fn mount_readonly(&self, chain: &[ChainId]) -> Result<Mount, Error> {
        let mut lower = self.lower(chain)?;
        let empty = format!("{}/{EMPTY}", self.0.path);
        if chain.is_empty() {
            let options = ["bind", "ro"].map(str::to_owned).to_vec();
            return Ok(Mount { fs_type: "bind".to_owned(), source: empty, options });
        }
        if lower.len() == 1 {
            // Without an upper directory overlayfs wants two lower ones.
            lower.push(empty);
        }
        let options = vec![format!("lowerdir={}", lower.join(":")), "ro".to_owned()];
        Ok(Mount { fs_type: "overlay".to_owned(), source: "overlay".to_owned(), options })
    }

    /// The directories of `chain`, top first; an empty one if it has no layer.
    pub(super) fn lower(&self, chain: &[ChainId]) -> Result<Vec<String>, Error> {
        if chain.len() > MAX_LAYERS {
            return Err(Error::TooManyLayers { layers: chain.len(), limit: MAX_LAYERS });
        }
        let root = &self.0.path;
        let mut lower = Vec::with_capacity(chain.len());
        for chain in chain.iter().rev() {
            let dir = self.directory_of(*chain)?.ok_or(Error::MissingLayer(*chain))?;
            lower.push(format!("{root}/{dir}"));
            if is_opaque(self.layer(*chain)?.as_fd()) {
                break; // overlayfs itself never asks whether a root is opaque
            }
        }
        if lower.is_empty() {
            lower.push(format!("{root}/{EMPTY}"));
        }
        Ok(lower)
    }

    /// Gives the writable root of the active snapshot `key` to whom the root of the layers
    /// below belongs in a user namespace whose ids lie as `ids` says; to its root if they map
    /// nobody to that. May be repeated.
    pub fn map_root(
        &self,
        key: &SnapshotKey,
        chain: &[ChainId],
        ids: &IdMappings,
    ) -> Result<(), Error> {
        let path = format!("{ACTIVE}/{key}/upper");
        let failed = |step| {
            let path = path.clone();
            move |errno| self.0.io(step, &path)(errno)
        };
        let (uid, gid) = match chain.last() {
            Some(top) => {
                let stat = fstat(self.layer(*top)?).map_err(failed("read metadata below"))?;
                (stat.st_uid, stat.st_gid)
            }
            None => (0, 0),
        };
        let uid = ids.host_uid(uid).or_else(|| ids.host_uid(0)).map(Uid::from_raw);
        let gid = ids.host_gid(gid).or_else(|| ids.host_gid(0)).map(Gid::from_raw);
        let upper = self.0.open_directory(&path)?;
        fchown(upper, uid, gid).map_err(failed("change owner of"))
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
