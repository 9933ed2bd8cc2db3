//! From a reference to the manifest and config of the wanted platform.

use berth_failpoint::Point;
use berth_model::Digest;
use berth_registry::{Distrusted, Manifest, MediaType};

use super::Pull;
use crate::document::{Choice, Config, ImageManifest, choose};
use crate::error::BadDocument;
use crate::{Error, blocking, step, step_blocking};

/// An image's documents.
#[derive(Debug)]
pub(super) struct Resolved {
    /// What the reference led to: an index or the manifest.
    pub(super) top: Digest,
    /// Every document on the way, the manifest included.
    pub(super) documents: Vec<Digest>,
    pub(super) manifest_digest: Digest,
    pub(super) manifest: ImageManifest,
}

/// A manifest or index, and what is known of how it was reached.
struct Step {
    document: Manifest,
    depth: usize,
    /// An index named it for the wanted platform.
    named: bool,
}

impl Pull {
    /// What the reference leads to right now; the only request of a pull of something
    /// that is present.
    pub(super) async fn resolve_top(&self) -> Result<Manifest, Error> {
        let top = self.repository.resolve().await.map_err(registry("resolve reference"))?;
        tracing::debug!(digest = %top.digest, media_type = %top.media_type, "resolved");
        step(Point::PULL_RESOLVED).await?;
        Ok(top)
    }

    /// Fetches and stores index, manifest and config; what is here already is not
    /// fetched.
    pub(super) async fn documents(&self, top: Manifest) -> Result<(Resolved, Config), Error> {
        let digest = top.digest;
        let (step, documents) = self.descend(top).await?;
        let limits = &self.images.config.limits;
        let bad = |source| document_error("manifest", step.document.digest)(source);
        let manifest = ImageManifest::parse(&step.document.bytes, step.document.media_type, limits)
            .map_err(bad)?;
        let config = self.config(&manifest).await?;
        if !step.named && !config.suits {
            return Err(self.no_platform(vec![config.platform]));
        }
        let manifest_digest = step.document.digest;
        Ok((Resolved { top: digest, documents, manifest_digest, manifest }, config))
    }

    /// Follows indexes, depth first, to the first manifest for the wanted platform.
    async fn descend(&self, top: Manifest) -> Result<(Step, Vec<Digest>), Error> {
        let config = &self.images.config;
        let (mut nodes, mut found, mut documents) = (0, Vec::new(), Vec::new());
        let mut pending = vec![Pending::Here(Step { document: top, depth: 0, named: false })];
        while let Some(next) = pending.pop() {
            let step = self.fetch(next).await?;
            self.keep(&step.document).await?;
            let digest = step.document.digest;
            documents.push(digest);
            if !step.document.media_type.is_index() {
                return Ok((step, documents));
            }
            let bad = document_error("index", digest);
            if step.depth >= config.limits.index_depth {
                return Err(bad(BadDocument::Depth(config.limits.index_depth)));
            }
            let (bytes, media_type) = (&step.document.bytes, step.document.media_type);
            let choice = choose(bytes, media_type, &config.platform, &config.limits, &mut nodes)
                .map_err(bad)?;
            let depth = step.depth + 1;
            let there = |(descriptor, media_type): (crate::document::Descriptor, _), named| {
                let (digest, size) = (descriptor.digest, descriptor.size);
                Pending::There { digest, size, media_type, depth, named }
            };
            match choice {
                Choice::Manifest(entry, media_type) => {
                    pending.push(there((entry, media_type), true));
                }
                Choice::Unnamed(entry, media_type) => {
                    pending.push(there((entry, media_type), false));
                }
                Choice::Indexes(entries) => {
                    pending.extend(entries.into_iter().rev().map(|entry| there(entry, false)));
                }
                Choice::Nothing(platforms) => found.extend(platforms),
            }
        }
        Err(self.no_platform(found))
    }

    async fn fetch(&self, next: Pending) -> Result<Step, Error> {
        let (digest, size, media_type, depth, named) = match next {
            Pending::Here(step) => return Ok(step),
            Pending::There { digest, size, media_type, depth, named } => {
                (digest, size, media_type, depth, named)
            }
        };
        let what = if media_type.is_index() { "index" } else { "manifest" };
        let bad = document_error(what, digest);
        let limit = self.images.config.limits.manifest_bytes;
        if size > limit {
            return Err(bad(BadDocument::TooLarge { size, limit }));
        }
        let document = match self.stored(digest, limit).await? {
            Some(bytes) => Manifest { media_type, digest, bytes: bytes.into() },
            None => {
                let fetched = self.repository.manifest(&digest).await;
                fetched.map_err(registry("fetch manifest"))?
            }
        };
        if document.media_type != media_type {
            return Err(bad(BadDocument::MediaTypeMismatch {
                inside: document.media_type.to_string(),
                outside: media_type.to_string(),
            }));
        }
        let found = u64::try_from(document.bytes.len()).unwrap_or(u64::MAX);
        if found != size {
            return Err(bad(BadDocument::Size { wanted: size, found }));
        }
        Ok(Step { document, depth, named })
    }

    async fn config(&self, manifest: &ImageManifest) -> Result<Config, Error> {
        let descriptor = &manifest.config;
        let digest = descriptor.digest;
        let limit = self.images.config.limits.config_bytes;
        let bytes = match self.stored(digest, limit).await? {
            Some(bytes) => bytes,
            None => self.fetch_small(digest, descriptor.size).await?,
        };
        Config::parse(&bytes, manifest.layers.len(), &self.images.config.platform)
            .map_err(document_error("config", digest))
    }

    /// Pins a document and reads it, if it is stored.
    async fn stored(&self, digest: Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let (content, pin) = (self.images.content.clone(), self.pin.clone());
        blocking("read a document", move || {
            pin.blobs([digest]);
            match content.read(&digest, limit) {
                Ok(bytes) => Ok(Some(bytes)),
                // A damaged one is fetched again and replaces it.
                Err(berth_content::Error::NotFound(_) | berth_content::Error::Damaged { .. }) => {
                    Ok(None)
                }
                Err(source) => Err(Error::Content { action: "read", digest, source }),
            }
        })
        .await?
    }

    /// Fetches a blob into memory, of the first host that has no other bytes for it, and
    /// stores it; its size was checked.
    async fn fetch_small(&self, digest: Digest, size: u64) -> Result<Vec<u8>, Error> {
        let mut liars = Distrusted::default();
        let fetched = self.repository.blob(&digest, size).await;
        let mut blob = fetched.map_err(registry("fetch config"))?;
        let bytes = loop {
            let mut bytes = Vec::new();
            while let Some(piece) = blob.next().await.map_err(registry("fetch config"))? {
                bytes.extend_from_slice(&piece);
            }
            let actual = Digest::of(&bytes);
            if actual == digest || !liars.add(&blob, actual) {
                break bytes;
            }
            let next = self.repository.blob_of_others(&digest, size, &liars).await;
            match next.map_err(registry("fetch config"))? {
                Some(next) => blob = next,
                // Storing it says what is wrong.
                None => break bytes,
            }
        };
        let content = self.images.content.clone();
        blocking("store a config", move || {
            let stored = content.ingest(&digest, size).and_then(|mut ingest| {
                ingest.write(&bytes)?;
                ingest.commit()
            });
            stored.map_err(|source| Error::Content { action: "store", digest, source })?;
            step_blocking(Point::PULL_CONFIG_STORED)?;
            Ok(bytes)
        })
        .await?
    }

    /// Pins and stores a document.
    async fn keep(&self, document: &Manifest) -> Result<(), Error> {
        let (content, pin) = (self.images.content.clone(), self.pin.clone());
        let (digest, bytes) = (document.digest, document.bytes.clone());
        blocking("store a document", move || {
            pin.blobs([digest]);
            let failed = |source| Error::Content { action: "store", digest, source };
            match content.verify(&digest) {
                Ok(()) => return Ok(()),
                Err(berth_content::Error::NotFound(_) | berth_content::Error::Damaged { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
            content.put(&bytes).map_err(failed)?;
            step_blocking(Point::PULL_DOCUMENT_STORED)
        })
        .await?
    }

    fn no_platform(&self, found: Vec<String>) -> Error {
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        Error::NoPlatform {
            reference: self.reference.to_string(),
            platform: self.images.config.platform.to_string(),
            found,
        }
    }
}

/// A document still to be looked at.
enum Pending {
    Here(Step),
    There { digest: Digest, size: u64, media_type: MediaType, depth: usize, named: bool },
}

fn document_error(what: &'static str, digest: Digest) -> impl Fn(BadDocument) -> Error {
    move |source| Error::Document { what, digest, source }
}

fn registry(action: &'static str) -> impl FnOnce(berth_registry::Error) -> Error {
    move |source| Error::Registry { action, source: Box::new(source) }
}
