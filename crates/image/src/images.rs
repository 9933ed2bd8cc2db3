//! The image store as others see it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use berth_content::Content;
use berth_failpoint::Point;
use berth_metadata::ImageStore;
use berth_model::container::Timestamp;
use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest, Reference};
use berth_registry::{Auth, Client};
use berth_snapshot::{Snapshots, Trash};
use oci_spec::image::ImageConfiguration;
use tokio::sync::Semaphore;

use crate::document::configuration;
use crate::pins::{Pin, Pins};
use crate::pull::{Flights, NODE_LAYERS};
use crate::{Config, Error, blocking, step_blocking};

/// Any error of whoever tells which layers are in use.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The images of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Images(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: ImageStore,
    pub(crate) content: Content,
    pub(crate) snapshots: Snapshots,
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) pins: Pins,
    pub(crate) flights: Flights,
    /// A permit for each layer under way on this node.
    pub(crate) layers: Arc<Semaphore>,
}

/// Where images are and what they use (CRI `FilesystemUsage`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FsInfo {
    /// When it was read.
    pub at: Timestamp,
    /// A directory of the file system that holds the images.
    pub mountpoint: PathBuf,
    /// Bytes that blobs and unpacked layers use.
    pub used_bytes: u64,
    /// Inodes that blobs and unpacked layers use.
    pub used_inodes: u64,
}

/// An image that stays whole while this is held, even if it is removed meanwhile.
///
/// Whoever makes a container holds its image until the container is recorded, and from
/// then on names its chain among the layers in use.
#[derive(Debug)]
pub struct Hold {
    /// The image.
    pub image: ImageRecord,
    _pin: Pin,
}

/// What [`Images::recover`] found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recovered {
    /// Layers and layers in the making that no record named.
    pub layers: usize,
    /// Blobs that no record named.
    pub blobs: usize,
    /// Images that were forgotten, since a layer of theirs is gone.
    pub images: Vec<Digest>,
}

impl Images {
    /// Puts the parts together; opens nothing.
    #[must_use]
    pub fn new(
        store: ImageStore,
        content: Content,
        snapshots: Snapshots,
        client: Client,
        config: Config,
    ) -> Self {
        let (pins, flights) = (Pins::default(), Flights::default());
        let layers = Arc::new(Semaphore::new(NODE_LAYERS));
        Self(Arc::new(Inner { store, content, snapshots, client, config, pins, flights, layers }))
    }

    /// Pulls what `reference` names, or joins the pull of the same reference with the
    /// same credentials. What is here is not fetched again; a tag is always resolved.
    ///
    /// The pull goes on when the returned future is dropped, for
    /// [`Config::orphan_grace`] after its last waiter.
    ///
    /// # Errors
    /// Any [`Error`], as [`Error::Shared`].
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<ImageRecord, Error> {
        Flights::pull(&self.0, reference, auth).await
    }

    /// Every image, in the order of their ids.
    pub async fn list(&self) -> Result<Vec<ImageRecord>, Error> {
        let inner = self.0.clone();
        blocking("list images", move || inner.store.images()).await?.map_err(store("list images"))
    }

    /// The image that `name` means: an id (`sha256:…`, or enough of its digits to be the
    /// only one), or a reference. `None` if there is none, or the name is not one.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] if the digits are the start of several ids.
    pub async fn status(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        blocking("find image", move || inner.find(&name)).await?
    }

    /// Finds the image that `name` means and keeps it whole as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none.
    pub async fn hold(&self, name: &str) -> Result<Hold, Error> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        blocking("hold image", move || {
            let absent = || Error::NotFound(name.clone());
            let first = inner.find(&name)?.ok_or_else(absent)?;
            let pin = inner.pins.pin();
            pin.chains(&first.chain);
            pin.blobs(first.blobs.iter().copied());
            // A removal may have come between.
            let read = inner.store.image_by_id(&first.id).map_err(store("find image"))?;
            let image = read.filter(|image| image.chain == first.chain).ok_or_else(absent)?;
            Ok(Hold { image, _pin: pin })
        })
        .await?
    }

    /// Forgets the image that `name` means, with all of its names, and removes what
    /// neither another image, nor a pull, nor a [`Hold`], nor `in_use` needs. An unknown
    /// one is success.
    ///
    /// `in_use` names the chains of all containers; it is called on a blocking thread at
    /// the right moment. Layers it names stay until the next removal or restart.
    pub async fn remove(
        &self,
        name: &str,
        in_use: impl FnOnce() -> Result<HashSet<ChainId>, BoxError> + Send + 'static,
    ) -> Result<(), Error> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        let span = tracing::info_span!("image.remove", "image.ref" = %name);
        blocking("remove image", move || {
            let _span = span.entered();
            let Some(image) = inner.find(&name)? else { return Ok(()) };
            step_blocking(Point::REMOVE_IMAGE_FOUND)?;
            inner.store.remove_image(&image.id).map_err(store("remove image"))?;
            step_blocking(Point::REMOVE_IMAGE_FORGOTTEN)?;
            let removed = inner.collect(in_use)?;
            tracing::info!(image.id = %image.id, layers = removed.0, blobs = removed.1, "image removed");
            Ok(())
        })
        .await?
    }

    /// Brings disk and records together after a start, before anything else is asked:
    /// removes what no record names, forgets what is not there, and collects.
    ///
    /// Since rows are written when all they name is on disk, this also undoes whatever a
    /// crash interrupted.
    pub async fn recover(
        &self,
        in_use: impl FnOnce() -> Result<HashSet<ChainId>, BoxError> + Send + 'static,
    ) -> Result<Recovered, Error> {
        let inner = self.0.clone();
        blocking("recover images", move || {
            let images = inner.forget_broken()?;
            step_blocking(Point::RECOVER_IMAGES_CHECKED)?;
            let (mut layers, mut blobs) = inner.sweep()?;
            let collected = inner.collect(in_use)?;
            layers += collected.0;
            blobs += collected.1;
            Ok(Recovered { layers, blobs, images })
        })
        .await?
    }

    /// The image's own configuration: entry point, environment, user …
    ///
    /// # Errors
    /// [`Error::Content`] if its blob is gone or damaged.
    pub async fn config(&self, image: &ImageRecord) -> Result<ImageConfiguration, Error> {
        let (inner, digest) = (self.0.clone(), image.id);
        blocking("read config", move || {
            let limit = inner.config.limits.config_bytes;
            let bytes = inner.content.read(&digest, limit);
            let bytes =
                bytes.map_err(|source| Error::Content { action: "read", digest, source })?;
            configuration(&bytes).map_err(|source| Error::Document {
                what: "config",
                digest,
                source,
            })
        })
        .await?
    }

    /// What images use, by the records of blobs and layers.
    pub async fn fs_info(&self) -> Result<FsInfo, Error> {
        let inner = self.0.clone();
        blocking("measure images", move || {
            let blobs = inner.store.blobs().map_err(store("measure images"))?;
            let snapshots = inner.store.snapshots().map_err(store("measure images"))?;
            let sizes = blobs.iter().map(|blob| blob.size.next_multiple_of(4096));
            let bytes = sizes.chain(snapshots.iter().map(|snapshot| snapshot.bytes)).sum();
            let inodes = snapshots.iter().map(|snapshot| snapshot.inodes).sum::<u64>();
            Ok(FsInfo {
                at: now(),
                mountpoint: inner.snapshots.root().to_owned(),
                used_bytes: bytes,
                used_inodes: inodes + u64::try_from(blobs.len()).unwrap_or(u64::MAX),
            })
        })
        .await?
    }

    /// The snapshots that the images are unpacked to.
    #[must_use]
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// Stops every pull; later ones are refused.
    pub async fn shutdown(&self) {
        self.0.flights.shutdown().await;
    }
}

impl Inner {
    /// The image that `name` means.
    fn find(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let failed = store("find image");
        if let Ok(id) = name.parse::<Digest>() {
            return self.store.image_by_id(&id).map_err(failed);
        }
        if let Ok(reference) = name.parse::<Reference>() {
            let reference = match reference.digest() {
                Some(digest) => reference.with_digest(*digest),
                None => reference,
            };
            let found = self.store.image_by_tag(&reference.to_string()).map_err(failed)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let hexadecimal = |c: u8| c.is_ascii_digit() || matches!(c, b'a'..=b'f');
        if digits.is_empty() || !digits.bytes().all(hexadecimal) {
            return Ok(None);
        }
        let images = self.store.images().map_err(store("find image"))?;
        let mut matching = images.into_iter().filter(|image| image.id.hex().starts_with(digits));
        let only = matching.next();
        match matching.next() {
            Some(_) => Err(Error::Ambiguous(name.to_owned())),
            None => Ok(only),
        }
    }

    /// The image with this very name, if all of its layers and its config are there.
    pub(crate) fn complete_by_name(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let found = self.store.image_by_tag(name).map_err(store("find image"))?;
        let Some(image) = found else { return Ok(None) };
        Ok(self.is_complete(&image)?.then_some(image))
    }

    /// Stores the image; returns it with all of its names, which may be more.
    pub(crate) fn put_image(&self, image: &ImageRecord) -> Result<ImageRecord, Error> {
        self.store.put_image(image).map_err(store("store image"))?;
        let stored = self.store.image_by_id(&image.id).map_err(store("store image"))?;
        Ok(stored.unwrap_or_else(|| image.clone()))
    }

    fn is_complete(&self, image: &ImageRecord) -> Result<bool, Error> {
        for chain in &image.chain {
            let committed = self.snapshots.is_committed(*chain);
            if !committed.map_err(|source| Error::Snapshot { action: "find layer", source })? {
                return Ok(false);
            }
        }
        let digest = image.id;
        let exists = self.content.exists(&digest);
        exists.map_err(|source| Error::Content { action: "find", digest, source })
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let failed = |source| Error::ContentStore { action: "sync blobs", source };
        self.content.sync().map_err(failed)?;
        let root = self.snapshots.root_fd();
        nix::unistd::syncfs(root)
            .map_err(|source| Error::Sync { path: self.snapshots.root().to_owned(), source })
    }

    /// Forgets images that are not whole, so that they are pulled again rather than fail
    /// at each start of a container.
    fn forget_broken(&self) -> Result<Vec<Digest>, Error> {
        let mut forgotten = Vec::new();
        for image in self.store.images().map_err(store("list images"))? {
            if !self.is_complete(&image)? {
                tracing::warn!(image.id = %image.id, "a layer or the config of an image is gone");
                self.store.remove_image(&image.id).map_err(store("remove image"))?;
                forgotten.push(image.id);
            }
        }
        Ok(forgotten)
    }

    /// Removes what no row names and the rows that name nothing; returns how many layers
    /// and blobs went.
    fn sweep(&self) -> Result<(usize, usize), Error> {
        let mut rows = HashSet::new();
        for row in self.store.snapshots().map_err(store("list layers"))? {
            let committed = self.snapshots.is_committed(row.chain);
            if committed.map_err(|source| Error::Snapshot { action: "find layer", source })? {
                rows.insert(row.chain);
            } else {
                self.store.remove_snapshot(&row.chain).map_err(store("remove layer record"))?;
            }
        }
        step_blocking(Point::RECOVER_LAYER_ROWS)?;
        let swept = self.snapshots.sweep_committed(&rows);
        let layers = swept.map_err(|source| Error::Snapshot { action: "sweep layers", source })?;
        step_blocking(Point::RECOVER_LAYERS_SWEPT)?;
        let blobs = self.sweep_blobs()?;
        step_blocking(Point::RECOVER_BLOBS_SWEPT)?;
        Ok((layers, blobs))
    }

    fn sweep_blobs(&self) -> Result<usize, Error> {
        let listed = |source| Error::ContentStore { action: "list blobs", source };
        let rows: HashSet<_> = self
            .store
            .blobs()
            .map_err(store("list blobs"))?
            .into_iter()
            .map(|blob| blob.digest)
            .collect();
        let (mut present, mut removed) = (HashSet::new(), 0);
        for blob in self.content.list().map_err(listed)? {
            let digest = blob.map_err(listed)?.digest;
            if rows.contains(&digest) {
                present.insert(digest);
            } else {
                self.remove_blob(digest)?;
                removed += 1;
            }
        }
        for gone in rows.difference(&present) {
            self.store.remove_blob(gone).map_err(store("remove blob record"))?;
        }
        Ok(removed)
    }

    /// Removes the blobs and layers that nothing needs; returns how many layers and blobs.
    ///
    /// Names go while the gate is closed, files after it has opened again. What is pinned
    /// is read before what containers use: whoever lets go of a pin has recorded its
    /// container before.
    fn collect(
        &self,
        in_use: impl FnOnce() -> Result<HashSet<ChainId>, BoxError>,
    ) -> Result<(usize, usize), Error> {
        let gate = self.pins.close();
        step_blocking(Point::COLLECT_CLOSED)?;
        let used = in_use().map_err(|source| Error::InUse { source })?;
        let images = self.store.images().map_err(store("list images"))?;
        let blobs: HashSet<_> = images.iter().flat_map(|image| &image.blobs).collect();
        let chains: HashSet<_> = images.iter().flat_map(|image| &image.chain).collect();
        let mut trash: Vec<Trash> = Vec::new();
        let committed = self.snapshots.committed();
        let failed = |source| Error::Snapshot { action: "remove layer", source };
        for chain in committed.map_err(failed)? {
            if chains.contains(&chain) || used.contains(&chain) || gate.pinned.has_chain(&chain) {
                continue;
            }
            self.store.remove_snapshot(&chain).map_err(store("remove layer record"))?;
            step_blocking(Point::COLLECT_LAYER_FORGOTTEN)?;
            trash.extend(self.snapshots.detach_committed(chain).map_err(failed)?);
            step_blocking(Point::COLLECT_LAYER_DETACHED)?;
        }
        let mut removed = 0;
        let listed = |source| Error::ContentStore { action: "list blobs", source };
        for blob in self.content.list().map_err(listed)? {
            let digest = blob.map_err(listed)?.digest;
            if blobs.contains(&digest) || gate.pinned.has_blob(&digest) {
                continue;
            }
            self.store.remove_blob(&digest).map_err(store("remove blob record"))?;
            step_blocking(Point::COLLECT_BLOB_FORGOTTEN)?;
            self.remove_blob(digest)?;
            step_blocking(Point::COLLECT_BLOB_REMOVED)?;
            removed += 1;
        }
        drop(gate);
        step_blocking(Point::COLLECT_DETACHED)?;
        let layers = trash.len();
        for tree in trash {
            tree.empty().map_err(failed)?;
            step_blocking(Point::COLLECT_LAYER_EMPTIED)?;
        }
        Ok((layers, removed))
    }

    fn remove_blob(&self, digest: Digest) -> Result<(), Error> {
        let removed = self.content.remove(&digest).map(drop);
        removed.map_err(|source| Error::Content { action: "remove", digest, source })
    }
}

pub(crate) fn store(action: &'static str) -> impl FnOnce(berth_metadata::Error) -> Error {
    move |source| Error::Store { action, source: Box::new(source) }
}

pub(crate) fn now() -> Timestamp {
    berth_failpoint::now().into()
}
