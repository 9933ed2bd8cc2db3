//! The image store as others see it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use berth_content::Content;
use berth_failpoint::Point;
use berth_metadata::ImageStore;
use berth_model::container::Timestamp;
use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest, Reference};
use berth_registry::{Auth, Client};
use berth_snapshot::Snapshots;
use oci_spec::image::ImageConfiguration;
use tokio::sync::Semaphore;

use crate::cleaner::Cleaner;
use crate::document::configuration;
use crate::leftovers::Leftovers;
use crate::pins::{Pin, Pins};
use crate::pull::{Flights, NODE_LAYERS};
use crate::{Config, Error, blocking, step_blocking};

/// Any error of whoever tells which layers are in use.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Names the chains of all containers.
pub(crate) type UsedChains = dyn Fn() -> Result<HashSet<ChainId>, BoxError> + Send + Sync;

/// The images of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Images(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) store: ImageStore,
    pub(crate) content: Content,
    pub(crate) snapshots: Snapshots,
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) pins: Pins,
    pub(crate) flights: Flights,
    pub(crate) leftovers: Leftovers,
    pub(crate) cleaner: Cleaner,
    /// A permit for each layer under way on this node.
    pub(crate) layers: Arc<Semaphore>,
    /// How many times the disk has lost what was written to it. What is here without a
    /// record since before such a loss may be damaged.
    pub(crate) losses: AtomicU64,
    /// Known from the start on; nothing is collected before.
    pub(crate) in_use: OnceLock<Box<UsedChains>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("root", &self.snapshots.root()).finish_non_exhaustive()
    }
}

/// Where images are and what they use (CRI `FilesystemUsage`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FsInfo {
    /// When it was read.
    pub at: Timestamp,
    /// A directory of the file system that holds the images.
    pub mountpoint: PathBuf,
    /// Bytes that blobs and unpacked layers use, with those on their way in and those on
    /// their way out.
    pub used_bytes: u64,
    /// Inodes that they use.
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
        Self(Arc::new(Inner {
            store,
            content,
            snapshots,
            client,
            config,
            pins: Pins::default(),
            flights: Flights::default(),
            leftovers: Leftovers::default(),
            cleaner: Cleaner::default(),
            layers: Arc::new(Semaphore::new(NODE_LAYERS)),
            losses: AtomicU64::new(0),
            in_use: OnceLock::new(),
        }))
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
    /// One that is not whole any more is forgotten, and so `None`: whoever asks pulls it
    /// again, which fetches what is missing, rather than fail at each container.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] if the digits are the start of several ids.
    pub async fn status(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        blocking("find image", move || match inner.find(&name)? {
            Some(image) if inner.forget_if_broken(&image)? => Ok(None),
            found => Ok(found),
        })
        .await?
    }

    /// Finds the image that `name` means and keeps it whole as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none; [`Error::Broken`] if it is not whole.
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
            match inner.defect(&image)? {
                None => Ok(Hold { image, _pin: pin }),
                Some(defect) => {
                    drop(pin);
                    inner.forget_if_broken(&image)?;
                    Err(Error::Broken { id: image.id, source: defect })
                }
            }
        })
        .await?
    }

    /// Forgets the image that `name` means, with all of its names, and takes away what
    /// neither another image, nor a pull, nor a [`Hold`], nor a container needs. An unknown
    /// one is success.
    ///
    /// Files are removed afterwards, out of the caller's sight; until they are gone
    /// [`Images::fs_info`] counts them. Layers of containers stay until a later removal,
    /// or restart.
    ///
    /// # Errors
    /// Any; then the image is still there.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let (inner, name) = (self.0.clone(), name.to_owned());
        let span = tracing::info_span!("image.remove", "image.ref" = %name);
        blocking("remove image", move || {
            let _span = span.entered();
            // Space is wanted back: what failed pulls left goes as well.
            inner.leftovers.clear();
            let image = inner.find(&name)?;
            step_blocking(Point::REMOVE_IMAGE_FOUND)?;
            let (layers, blobs) = inner.collect(image.as_ref().map(|image| &image.id))?;
            if let Some(image) = image {
                tracing::info!(image.id = %image.id, layers, blobs, "image removed");
            }
            Ok(())
        })
        .await?
    }

    /// Brings disk and records together after a start, before anything else is asked:
    /// removes what no record names, forgets what is not there, and collects.
    ///
    /// Since rows are written when all they name is on disk, this also undoes whatever a
    /// crash interrupted. Files are removed afterwards.
    ///
    /// `in_use` names the chains of all containers, now and whenever something is removed;
    /// it is called on blocking threads. It can be given once.
    pub async fn recover(
        &self,
        in_use: impl Fn() -> Result<HashSet<ChainId>, BoxError> + Send + Sync + 'static,
    ) -> Result<Recovered, Error> {
        let inner = self.0.clone();
        blocking("recover images", move || {
            inner.in_use.get_or_init(|| Box::new(in_use));
            let images = inner.forget_broken()?;
            step_blocking(Point::RECOVER_IMAGES_CHECKED)?;
            let (mut layers, mut blobs) = inner.sweep()?;
            let collected = inner.collect(None)?;
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

    /// What images use: blobs as they are on disk, layers by their records, and what has
    /// no record yet or any more.
    pub async fn fs_info(&self) -> Result<FsInfo, Error> {
        let inner = self.0.clone();
        blocking("measure images", move || {
            let measured = |source| Error::ContentStore { action: "measure blobs", source };
            let (mut used_bytes, mut used_inodes) = inner.content.usage().map_err(measured)?;
            let mut others = inner.snapshots.sizes();
            for row in inner.store.snapshots().map_err(store("measure images"))? {
                others.remove(&row.dir);
                used_bytes += row.bytes;
                used_inodes += row.inodes;
            }
            used_bytes += others.values().map(|size| size.bytes).sum::<u64>();
            used_inodes += others.values().map(|size| size.inodes).sum::<u64>();
            let mountpoint = inner.snapshots.root().to_owned();
            Ok(FsInfo { at: now(), mountpoint, used_bytes, used_inodes })
        })
        .await?
    }

    /// The snapshots that the images are unpacked to.
    #[must_use]
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// Stops every pull; later ones are refused. What is not removed yet is left to the
    /// next start.
    pub async fn shutdown(&self) {
        self.0.cleaner.stop();
        self.0.flights.shutdown().await;
    }

    /// Waits until the files of everything that was removed are gone.
    pub async fn cleaned(&self) {
        let inner = self.0.clone();
        // A cleaner that panicked has nothing more to do.
        blocking("await the cleaner", move || inner.cleaner.wait()).await.ok();
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

    /// The image with this very name, if it is whole.
    pub(crate) fn complete_by_name(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let found = self.store.image_by_tag(name).map_err(store("find image"))?;
        let Some(image) = found else { return Ok(None) };
        Ok(self.defect(&image)?.is_none().then_some(image))
    }

    /// Stores the image; returns it with all of its names, which may be more.
    pub(crate) fn put_image(&self, image: &ImageRecord) -> Result<ImageRecord, Error> {
        self.store.put_image(image).map_err(store("store image"))?;
        let stored = self.store.image_by_id(&image.id).map_err(store("store image"))?;
        Ok(stored.unwrap_or_else(|| image.clone()))
    }
}

pub(crate) fn store(action: &'static str) -> impl FnOnce(berth_metadata::Error) -> Error {
    move |source| Error::Store { action, source: Box::new(source) }
}

pub(crate) fn now() -> Timestamp {
    berth_failpoint::now().into()
}
