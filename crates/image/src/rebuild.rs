//! After the records of images were lost: what is on disk is recorded again.
//!
//! A blob or layer is seen once it is complete, and its row is written once it reached the
//! disk. As long as the node has been up since, both are the same; after a power cut a
//! thing without a row may have holes, and is removed as ever.

use std::collections::{HashMap, HashSet};

use berth_metadata::{BlobRecord, SnapshotRecord};
use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest, Reference};
use berth_registry::MediaType;
use serde::Deserialize;

use crate::document::{Config, ImageManifest};
use crate::images::{Images, Inner, now, store};
use crate::{Error, blocking};

/// An image that a container stands on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InUse {
    /// Its id.
    pub image: Digest,
    /// How it was called when the container was made.
    pub name: String,
    /// Its layers.
    pub chain: Vec<ChainId>,
}

/// What says which kind of manifest a blob is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    media_type: Option<String>,
    config: Kinded,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kinded {
    media_type: String,
}

impl Images {
    /// Records again the layers that containers stand on, and, if nothing is recorded at
    /// all, every image, blob and layer that is on disk; returns how many images. Images
    /// have no tags then: a pull finds all of their parts here, and gives them back.
    ///
    /// To be called before [`Images::recover`], and only if the node has not been down
    /// since [`Images::recover`] was called last.
    pub async fn rebuild(&self, in_use: Vec<InUse>) -> Result<usize, Error> {
        let inner = self.0.clone();
        blocking("rebuild images", move || {
            let images = if inner.is_lost()? { inner.rebuild(&in_use)? } else { 0 };
            inner.keep_layers(&in_use)?;
            Ok(images)
        })
        .await?
    }
}

impl Inner {
    /// Whether there are layers or blobs, and no record of any.
    fn is_lost(&self) -> Result<bool, Error> {
        if !self.store.is_empty().map_err(store("look for records"))? {
            return Ok(false);
        }
        let listed = |source| Error::ContentStore { action: "list blobs", source };
        let blob = self.content.list().map_err(listed)?.next().transpose().map_err(listed)?;
        Ok(blob.is_some() || !self.committed()?.is_empty())
    }

    fn rebuild(&self, in_use: &[InUse]) -> Result<usize, Error> {
        let listed = |source| Error::ContentStore { action: "list blobs", source };
        let mut blobs = HashMap::new();
        for blob in self.content.list().map_err(listed)? {
            let blob = blob.map_err(listed)?;
            blobs.insert(blob.digest, blob.size);
        }
        let layers: HashSet<_> = self.committed()?.into_iter().collect();
        let found = blobs.iter().filter_map(|(digest, size)| self.image(*digest, *size, &blobs));
        // Several manifests may name one config; which of them is not known any more.
        let images: HashMap<_, _> = found
            .filter(|image| image.chain.iter().all(|chain| layers.contains(chain)))
            .map(|image| (image.id, image))
            .collect();
        let images: Vec<_> = images.into_values().map(|image| named(image, in_use)).collect();
        let mut parents = HashMap::new();
        for pair in images.iter().flat_map(|image| image.chain.windows(2)) {
            parents.insert(pair[1], pair[0]);
        }
        let layers = layers.into_iter().map(|chain| self.layer(chain, parents.get(&chain)));
        let layers: Vec<_> = layers.collect::<Result<_, _>>()?;
        let blobs: Vec<_> =
            blobs.into_iter().map(|(digest, size)| BlobRecord { digest, size }).collect();
        self.store.put_found(&images, &blobs, &layers).map_err(store("store what was found"))?;
        tracing::warn!(
            images = images.len(),
            blobs = blobs.len(),
            layers = layers.len(),
            "the records of images were lost; what is on disk is recorded anew, without tags"
        );
        Ok(images.len())
    }

    /// The image of which the blob is the manifest, if it is one and its config is here.
    fn image(&self, digest: Digest, size: u64, all: &HashMap<Digest, u64>) -> Option<ImageRecord> {
        let limits = &self.config.limits;
        if size > limits.manifest_bytes {
            return None;
        }
        let bytes = self.content.read(&digest, limits.manifest_bytes).ok()?;
        let manifest = ImageManifest::parse(&bytes, media_type(&bytes)?, limits).ok()?;
        let id = manifest.config.digest;
        let bytes = self.content.read(&id, limits.config_bytes).ok()?;
        let config = Config::parse(&bytes, manifest.layers.len(), &self.config.platform).ok()?;
        let named = manifest.layers.iter().map(|layer| layer.digest).chain([id, digest]);
        let mut blobs: Vec<Digest> = Vec::new();
        for blob in named.filter(|blob| all.contains_key(blob)) {
            if !blobs.contains(&blob) {
                blobs.push(blob);
            }
        }
        Some(ImageRecord {
            id,
            tags: Vec::new(),
            digests: Vec::new(),
            manifest: digest,
            blobs,
            chain: ChainId::chain(&config.diff_ids),
            size: manifest.total()?,
            user: config.user,
            pulled_at: now(),
        })
    }

    fn layer(&self, chain: ChainId, parent: Option<&ChainId>) -> Result<SnapshotRecord, Error> {
        let failed = |source| Error::Snapshot { action: "measure layer", source };
        let (dir, usage) = self.snapshots.committed_usage(chain).map_err(failed)?;
        let (bytes, inodes) = (usage.bytes, usage.inodes);
        Ok(SnapshotRecord { chain, parent: parent.copied(), bytes, inodes, dir })
    }

    /// A layer of a container is never swept for want of a row.
    fn keep_layers(&self, in_use: &[InUse]) -> Result<(), Error> {
        let committed: HashSet<_> = self.committed()?.into_iter().collect();
        let rows = self.store.snapshots().map_err(store("list layers"))?;
        let mut known: HashSet<_> = rows.into_iter().map(|row| row.chain).collect();
        for chain in in_use.iter().flat_map(|used| &used.chain) {
            if committed.contains(chain) && known.insert(*chain) {
                tracing::warn!(%chain, "the record of a layer in use was lost");
                let row = self.layer(*chain, None)?;
                self.store.put_snapshot(&row).map_err(store("store layer"))?;
            }
        }
        Ok(())
    }
}

/// Containers remember by which digest their image was called.
fn named(mut image: ImageRecord, in_use: &[InUse]) -> ImageRecord {
    for used in in_use.iter().filter(|used| used.image == image.id) {
        let Ok(reference) = used.name.parse::<Reference>() else { continue };
        if reference.digest().is_some() && !image.digests.contains(&used.name) {
            image.digests.push(used.name.clone());
        }
    }
    image
}

fn media_type(bytes: &[u8]) -> Option<MediaType> {
    if bytes.first() != Some(&b'{') {
        return None;
    }
    let kind: Kind = serde_json::from_slice(bytes).ok()?;
    match kind.media_type {
        Some(named) => MediaType::parse(&named),
        None if kind.config.media_type.contains("docker") => Some(MediaType::DockerManifest),
        None => Some(MediaType::OciManifest),
    }
}
