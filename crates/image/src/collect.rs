//! Taking away what nothing needs, and telling what is not whole.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use berth_failpoint::Point;
use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest};

use crate::cleaner::Trash;
use crate::error::Defect;
use crate::images::{BoxError, Inner, store};
use crate::pins::Gate;
use crate::{Error, step_blocking};

/// What a collection takes away.
struct Garbage {
    chains: Vec<ChainId>,
    blobs: Vec<Digest>,
}

impl Inner {
    /// What of the image is not there or not as it was, if anything is: cheap enough to
    /// be asked before each container.
    pub(crate) fn defect(&self, image: &ImageRecord) -> Result<Option<Defect>, Error> {
        for chain in &image.chain {
            let committed = self.snapshots.is_committed(*chain);
            if !committed.map_err(|source| Error::Snapshot { action: "find layer", source })? {
                return Ok(Some(Defect::Layer(*chain)));
            }
        }
        for digest in &image.blobs {
            let found = |source| Error::Content { action: "find", digest: *digest, source };
            let size = self.content.size(digest).map_err(found)?;
            let row = self.store.blob(digest).map_err(store("find blob"))?;
            match (size, row) {
                (None, _) => return Ok(Some(Defect::Blob(*digest))),
                (Some(size), Some(row)) if size != row.size => {
                    return Ok(Some(Defect::Damaged(*digest)));
                }
                _ => {}
            }
        }
        match self.content.read(&image.id, self.config.limits.config_bytes) {
            Ok(_) => Ok(None),
            Err(berth_content::Error::NotFound(digest)) => Ok(Some(Defect::Blob(digest))),
            Err(berth_content::Error::Damaged { expected, .. }) => {
                Ok(Some(Defect::Damaged(expected)))
            }
            Err(source) => Err(Error::Content { action: "read", digest: image.id, source }),
        }
    }

    /// Whether some image relies on this blob, and it is not there or not as it was.
    pub(crate) fn is_missed(&self, digest: &Digest) -> Result<bool, Error> {
        let row = self.store.blob(digest).map_err(store("find blob"))?;
        let size = self.content.size(digest);
        let size =
            size.map_err(|source| Error::Content { action: "find", digest: *digest, source })?;
        Ok(row.is_some_and(|row| size != Some(row.size)))
    }

    /// Forgets the image if it is not whole, so that it is pulled again rather than fail
    /// at each start of a container; says whether it was not.
    pub(crate) fn forget_if_broken(&self, image: &ImageRecord) -> Result<bool, Error> {
        if self.defect(image)?.is_none() {
            return Ok(false);
        }
        let gate = self.pins.close();
        // A pull that mends it has it pinned until it is recorded anew; then it is whole.
        let mending = image.chain.iter().any(|chain| gate.pinned.has_chain(chain))
            || gate.pinned.has_blob(&image.id);
        if mending {
            return Ok(true);
        }
        let Some(defect) = self.defect(image)? else { return Ok(false) };
        tracing::warn!(
            image.id = %image.id,
            error = &defect as &dyn std::error::Error,
            "image is not whole and has to be pulled again"
        );
        self.store.remove_image(&image.id).map_err(store("remove image"))?;
        Ok(true)
    }

    pub(crate) fn forget_broken(&self) -> Result<Vec<Digest>, Error> {
        let mut forgotten = Vec::new();
        for image in self.store.images().map_err(store("list images"))? {
            if self.forget_if_broken(&image)? {
                forgotten.push(image.id);
            }
        }
        Ok(forgotten)
    }

    /// Takes away what no row names, and the rows that name nothing; returns how many
    /// layers and blobs went.
    pub(crate) fn sweep(&self) -> Result<(usize, usize), Error> {
        let (mut rows, mut gone) = (HashSet::new(), Vec::new());
        for row in self.store.snapshots().map_err(store("list layers"))? {
            let committed = self.snapshots.is_committed(row.chain);
            if committed.map_err(|source| Error::Snapshot { action: "find layer", source })? {
                rows.insert(row.chain);
            } else {
                gone.push(row.chain);
            }
        }
        self.store.forget(None, &gone, &[]).map_err(store("remove layer records"))?;
        step_blocking(Point::RECOVER_LAYER_ROWS)?;
        let swept = self.snapshots.sweep_committed(&rows);
        let swept = swept.map_err(|source| Error::Snapshot { action: "sweep layers", source })?;
        let layers = swept.len();
        self.cleaner.take(swept.into_iter().map(Trash::Layer).collect());
        step_blocking(Point::RECOVER_LAYERS_SWEPT)?;
        let blobs = self.sweep_blobs()?;
        step_blocking(Point::RECOVER_BLOBS_SWEPT)?;
        Ok((layers, blobs))
    }

    fn sweep_blobs(&self) -> Result<usize, Error> {
        let rows = self.store.blobs().map_err(store("list blobs"))?;
        let rows: HashSet<_> = rows.into_iter().map(|blob| blob.digest).collect();
        let (mut present, mut trash) = (HashSet::new(), Vec::new());
        for digest in self.blobs()? {
            if rows.contains(&digest) {
                present.insert(digest);
            } else {
                trash.extend(self.detach_blob(digest)?);
            }
        }
        let gone: Vec<_> = rows.difference(&present).copied().collect();
        self.store.forget(None, &[], &gone).map_err(store("remove blob records"))?;
        let removed = trash.len();
        self.cleaner.take(trash);
        Ok(removed)
    }

    /// Takes away the blobs and layers that nothing needs, and the image `gone` if one is
    /// named; returns how many layers and blobs.
    ///
    /// Names go while the gate is closed, files after it has opened again. What is pinned
    /// is read before what containers use: whoever lets go of a pin has recorded its
    /// container before. Until the rows go, any failure leaves everything as it was; what
    /// is interrupted later has no row, and goes at the next collection, or start.
    pub(crate) fn collect(&self, gone: Option<&Digest>) -> Result<(usize, usize), Error> {
        let gate = self.pins.close();
        step_blocking(Point::COLLECT_CLOSED)?;
        let garbage = self.garbage(&gate, gone)?;
        let forgotten = self.store.forget(gone, &garbage.chains, &garbage.blobs);
        forgotten.map_err(store("remove records"))?;
        if gone.is_some() {
            step_blocking(Point::REMOVE_IMAGE_FORGOTTEN)?;
        }
        self.discard(gate, &garbage)
    }

    /// After the disk has lost what was written: takes away everything that has no record,
    /// whoever has made it. Pulls under way that have used any of it fail by themselves:
    /// they began before `losses` grew.
    pub(crate) fn distrust(&self) -> Result<(usize, usize), Error> {
        let gate = self.pins.close();
        self.losses.fetch_add(1, Ordering::AcqRel);
        let (mut chains, mut blobs) = (Vec::new(), Vec::new());
        for chain in self.committed()? {
            if self.store.snapshot(&chain).map_err(store("find layer record"))?.is_none() {
                chains.push(chain);
            }
        }
        for digest in self.blobs()? {
            if self.store.blob(&digest).map_err(store("find blob record"))?.is_none() {
                blobs.push(digest);
            }
        }
        self.discard(gate, &Garbage { chains, blobs })
    }

    fn garbage(&self, gate: &Gate<'_>, gone: Option<&Digest>) -> Result<Garbage, Error> {
        let unknown = || -> BoxError { "the store of containers is not open yet".into() };
        let in_use = self.in_use.get().ok_or_else(unknown).and_then(|in_use| in_use());
        let used = in_use.map_err(|source| Error::InUse { source })?;
        let mut images = self.store.images().map_err(store("list images"))?;
        images.retain(|image| Some(&image.id) != gone);
        let named: HashSet<_> = images.iter().flat_map(|image| &image.blobs).collect();
        let stood_on: HashSet<_> = images.iter().flat_map(|image| &image.chain).collect();
        let mut chains = self.committed()?;
        chains.retain(|chain| {
            !(stood_on.contains(chain) || used.contains(chain) || gate.pinned.has_chain(chain))
        });
        let mut blobs = self.blobs()?;
        blobs.retain(|digest| !(named.contains(digest) || gate.pinned.has_blob(digest)));
        Ok(Garbage { chains, blobs })
    }

    /// Of what no row names any more: names first, then the gate opens, then files go.
    fn discard(&self, gate: Gate<'_>, garbage: &Garbage) -> Result<(usize, usize), Error> {
        let mut trash = Vec::with_capacity(garbage.chains.len() + garbage.blobs.len());
        let taken = self.take_away(garbage, &mut trash);
        drop(gate);
        let taken = taken.and_then(|()| step_blocking(Point::COLLECT_DETACHED));
        if taken.is_err()
            && let Ok(lost) = self.snapshots.trash()
        {
            // What had lost its name when this failed.
            trash.extend(lost.into_iter().map(Trash::Layer));
        }
        let layers = trash.iter().filter(|trash| matches!(trash, Trash::Layer(_))).count();
        let counts = (layers, trash.len() - layers);
        self.cleaner.take(trash);
        taken.map(|()| counts)
    }

    fn take_away(&self, garbage: &Garbage, trash: &mut Vec<Trash>) -> Result<(), Error> {
        for chain in &garbage.chains {
            step_blocking(Point::COLLECT_LAYER_FORGOTTEN)?;
            let detached = self.snapshots.detach_committed(*chain);
            let failed = |source| Error::Snapshot { action: "remove layer", source };
            trash.extend(detached.map_err(failed)?.map(Trash::Layer));
            step_blocking(Point::COLLECT_LAYER_DETACHED)?;
        }
        for digest in &garbage.blobs {
            step_blocking(Point::COLLECT_BLOB_FORGOTTEN)?;
            trash.extend(self.detach_blob(*digest)?);
            step_blocking(Point::COLLECT_BLOB_DETACHED)?;
        }
        Ok(())
    }

    pub(crate) fn committed(&self) -> Result<Vec<ChainId>, Error> {
        let committed = self.snapshots.committed();
        committed.map_err(|source| Error::Snapshot { action: "list layers", source })
    }

    fn blobs(&self) -> Result<Vec<Digest>, Error> {
        let listed = |source| Error::ContentStore { action: "list blobs", source };
        let blobs = self.content.list().map_err(listed)?;
        blobs.map(|blob| Ok(blob.map_err(listed)?.digest)).collect()
    }

    fn detach_blob(&self, digest: Digest) -> Result<Option<Trash>, Error> {
        let detached = self.content.detach(&digest);
        let failed = |source| Error::Content { action: "remove", digest, source };
        Ok(detached.map_err(failed)?.map(Trash::Blob))
    }
}
