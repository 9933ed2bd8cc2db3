//! Pulling one image, from reference to record.

mod flight;
mod layer;
mod resolve;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use berth_failpoint::Point;
use berth_metadata::{BlobRecord, SnapshotRecord};
use berth_model::image::ImageRecord;
use berth_model::stats::DiskUsage;
use berth_model::{ChainId, Digest, Reference};
use berth_registry::{Auth, Repository};
use berth_snapshot::Size;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug_span};

pub(crate) use flight::Flights;
pub(crate) use stream::Exceeded;

use crate::apply::settle;
use crate::document::{Compression, Config, ImageManifest};
use crate::images::{Inner, now, store as metadata};
use crate::pins::Pin;
use crate::written::Written;
use crate::{Error, blocking, step, step_blocking};
use layer::{Job, Unpacked, Workshop};
use resolve::Resolved;

/// Most layers of all pulls that are fetched and unpacked at once: each has two threads,
/// and some MiB in queues and buffers.
pub(crate) const NODE_LAYERS: usize = 32;

/// One pull under way.
struct Pull {
    images: Arc<Inner>,
    reference: Reference,
    repository: Repository,
    pin: Arc<Pin>,
    /// Opened before anything was written or found.
    written: Arc<Written>,
}

/// What there is to be done for an image whose documents are known.
#[derive(Debug)]
struct Plan {
    resolved: Resolved,
    config: Config,
    chain: Vec<ChainId>,
}

/// Pulls `reference`, whatever others do meanwhile.
///
/// What it pins stays pinned by `pin`, whatever the end.
pub(crate) async fn pull(
    images: Arc<Inner>,
    pin: Arc<Pin>,
    reference: Reference,
    auth: Option<Auth>,
) -> Result<ImageRecord, Error> {
    let started = Instant::now();
    if let Some(found) = present_by_digest(&images, &reference).await? {
        tracing::debug!("image is present by digest");
        return Ok(found);
    }
    step(Point::PULL_CLAIMED).await?;
    let repository = images.client.repository(&reference, auth);
    let written = {
        let images = images.clone();
        Arc::new(blocking("watch the disk", move || images.written()).await??)
    };
    let pull = Pull { images, reference, repository, pin, written };
    let top = pull.resolve_top().instrument(debug_span!("pull.resolve")).await?;
    if let Some(found) = pull.present(top.digest).await? {
        tracing::debug!(digest = %top.digest, "image is present");
        return Ok(found);
    }
    let documents = pull.documents(top).instrument(debug_span!("pull.documents"));
    let (resolved, config) = documents.await?;
    let chain = ChainId::chain(&config.diff_ids);
    let plan = Plan { resolved, config, chain };
    let unpacked = pull.unpack(&plan).instrument(debug_span!("pull.unpack")).await?;
    step(Point::PULL_UNPACKED).await?;
    let layers = unpacked.len();
    let record = pull.record(plan, unpacked).instrument(debug_span!("pull.record")).await?;
    tracing::info!(
        image.id = %record.id,
        bytes = record.size,
        layers = record.chain.len(),
        unpacked = layers,
        elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "image pulled"
    );
    Ok(record)
}

/// A digest says which image it is without asking anyone.
async fn present_by_digest(
    images: &Arc<Inner>,
    reference: &Reference,
) -> Result<Option<ImageRecord>, Error> {
    let Some(digest) = reference.digest() else { return Ok(None) };
    let name = reference.with_digest(*digest).to_string();
    let images = images.clone();
    blocking("look for an image", move || images.complete_by_name(&name)).await?
}

impl Pull {
    fn by_digest(&self, digest: Digest) -> String {
        self.reference.with_digest(digest).to_string()
    }

    /// The image that the resolved digest led to before; the tag leads there now.
    async fn present(&self, top: Digest) -> Result<Option<ImageRecord>, Error> {
        let (images, name) = (self.images.clone(), self.by_digest(top));
        let (tag, pin) = (self.tag(), self.pin.clone());
        blocking("look for an image", move || {
            let Some(found) = images.complete_by_name(&name)? else { return Ok(None) };
            let Some(tag) = tag.filter(|tag| !found.tags.contains(tag)) else {
                return Ok(Some(found));
            };
            pin.chains(&found.chain);
            pin.blobs(found.blobs);
            // A removal may have come between; from here on it leaves what is pinned.
            let Some(found) = images.complete_by_name(&name)? else { return Ok(None) };
            images.put_image(&ImageRecord { tags: vec![tag], ..found }).map(Some)
        })
        .await?
    }

    /// The name that the image gets; a digest in the reference outdoes its tag.
    fn tag(&self) -> Option<String> {
        self.reference.digest().is_none().then(|| self.reference.to_string())
    }

    /// Fetches and unpacks every layer that is not committed.
    async fn unpack(&self, plan: &Plan) -> Result<Vec<Unpacked>, Error> {
        let jobs = self.jobs(plan).await?;
        let stop = CancellationToken::new();
        let _stopped_when_dropped = stop.clone().drop_guard();
        let shop = Workshop {
            stop: stop.clone(),
            repository: self.repository.clone(),
            content: self.images.content.clone(),
            snapshots: self.images.snapshots.clone(),
            limits: Arc::new(self.images.config.limits),
        };
        let slots = Arc::new(Semaphore::new(self.images.config.parallel_layers.max(1)));
        let mut running = JoinSet::new();
        for job in jobs {
            let (shop, slots) = (shop.clone(), [slots.clone(), self.images.layers.clone()]);
            running.spawn(tracing::Instrument::in_current_span(async move {
                let held = shop.stop.run_until_cancelled(acquire(slots)).await;
                let Some(_held) = held.transpose()? else { return Ok(Vec::new()) };
                shop.run(job).await
            }));
        }
        let (mut unpacked, mut failed) = (Vec::new(), None);
        while let Some(done) = running.join_next().await {
            match done.map_err(|_| Error::Panicked("a layer's task")).flatten() {
                Ok(layers) => unpacked.extend(layers),
                Err(error) => {
                    stop.cancel(); // the others end, and the first failure is the one to report
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            // Layers that are not committed are removed when dropped, file by file.
            blocking("discard layers", move || drop(unpacked)).await?;
            return Err(error);
        }
        unpacked.sort_by_key(|layer| layer.index);
        Ok(unpacked)
    }

    /// One job for each blob that is needed, in the order of the layers.
    async fn jobs(&self, plan: &Plan) -> Result<Vec<Job>, Error> {
        let (images, pin) = (self.images.clone(), self.pin.clone());
        let (manifest, chain) = (plan.resolved.manifest.clone(), plan.chain.clone());
        let diff_ids = plan.config.diff_ids.clone();
        blocking("look for layers", move || {
            pin.chains(&chain);
            pin.blobs(manifest.layers.iter().map(|layer| layer.digest));
            let mut jobs: Vec<Job> = Vec::new();
            let mut by_digest = HashMap::new();
            for (index, layer) in manifest.layers.iter().enumerate() {
                let compression = Compression::of(&layer.media_type).ok_or_else(|| {
                    let media_type = layer.media_type.chars().take(200).collect();
                    Error::MediaType { digest: layer.digest, media_type }
                })?;
                let found = images.snapshots.is_committed(chain[index]);
                let committed = found.map_err(snapshot("find layer"))?;
                if committed && !images.is_missed(&layer.digest)? {
                    continue;
                }
                let at = *by_digest.entry(layer.digest).or_insert(jobs.len());
                if at == jobs.len() {
                    let (digest, size) = (layer.digest, layer.size);
                    jobs.push(Job { digest, size, compression, places: Vec::new() });
                }
                if !committed {
                    jobs[at].places.push((index, diff_ids[index]));
                }
            }
            tracing::info!(
                layers = manifest.layers.len(),
                needed = jobs.len(),
                bytes = jobs.iter().map(|job| job.size).sum::<u64>(),
                "fetching layers"
            );
            Ok(jobs)
        })
        .await?
    }

    /// Commits the layers, syncs, then stores the rows that name all this.
    async fn record(&self, plan: Plan, unpacked: Vec<Unpacked>) -> Result<ImageRecord, Error> {
        let (images, pin) = (self.images.clone(), self.pin.clone());
        let written = self.written.clone();
        let (tag, digest) = (self.tag(), self.by_digest(plan.resolved.top));
        let span = tracing::Span::current();
        blocking("record an image", move || {
            let _span = span.entered();
            let rows = commit(&images, &plan, unpacked)?;
            step_blocking(Point::PULL_COMMITTED)?;
            let started = Instant::now();
            images.sync(&written)?;
            tracing::debug!(
                elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "synced"
            );
            step_blocking(Point::PULL_SYNCED)?;
            let record = store(&images, &plan, tag, digest, &rows);
            drop(pin); // until here nothing of it may be collected
            record
        })
        .await?
    }
}

async fn acquire(slots: [Arc<Semaphore>; 2]) -> Result<Vec<OwnedSemaphorePermit>, Error> {
    let mut held = Vec::with_capacity(slots.len());
    for slot in slots {
        held.push(slot.acquire_owned().await.map_err(|_| Error::Panicked("the pull"))?);
    }
    Ok(held)
}

/// Settles and commits the layers, lowest first; returns a row for each of the chain.
fn commit(
    images: &Inner,
    plan: &Plan,
    unpacked: Vec<Unpacked>,
) -> Result<Vec<SnapshotRecord>, Error> {
    let mut unpacked: HashMap<_, _> =
        unpacked.into_iter().map(|layer| (layer.index, layer)).collect();
    let mut rows = Vec::with_capacity(plan.chain.len());
    for (index, chain) in plan.chain.iter().enumerate() {
        let (below, parent) = (&plan.chain[..index], index.checked_sub(1));
        let (dir, usage) = match unpacked.remove(&index) {
            Some(layer) => commit_one(images, plan, layer, below)?,
            None => match images.store.snapshot(chain).map_err(metadata("read layer record"))? {
                Some(row) => {
                    rows.push(row);
                    continue;
                }
                // Another pull has just committed it and has not stored its row yet.
                None => {
                    images.snapshots.committed_usage(*chain).map_err(snapshot("measure layer"))?
                }
            },
        };
        let parent = parent.map(|parent| plan.chain[parent]);
        let (bytes, inodes) = (usage.bytes, usage.inodes);
        rows.push(SnapshotRecord { chain: *chain, parent, bytes, inodes, dir });
    }
    Ok(rows)
}

fn commit_one(
    images: &Inner,
    plan: &Plan,
    layer: Unpacked,
    below: &[ChainId],
) -> Result<(String, DiskUsage), Error> {
    let digest = plan.resolved.manifest.layers[layer.index].digest;
    let view = images.snapshots.view(below).map_err(snapshot("open layers below"))?;
    let root = || images.snapshots.root().into();
    let usage = settle(layer.directory.root(), layer.applied, &view)
        .map_err(|source| Error::Layer { digest, root: root(), source })?;
    step_blocking(Point::PULL_LAYER_SETTLED)?;
    layer.directory.holds(Size { bytes: usage.bytes, inodes: usage.inodes });
    let committed = images
        .snapshots
        .commit_layer(layer.directory, plan.chain[layer.index])
        .map_err(snapshot("commit layer"))?;
    step_blocking(Point::PULL_LAYER_COMMITTED)?;
    Ok((committed.dir, usage))
}

fn store(
    images: &Inner,
    plan: &Plan,
    tag: Option<String>,
    digest: String,
    rows: &[SnapshotRecord],
) -> Result<ImageRecord, Error> {
    let failed = || metadata("store image");
    let ImageManifest { config, layers } = &plan.resolved.manifest;
    let named = layers.iter().map(|layer| layer.digest).chain([config.digest]);
    let mut blobs = Vec::new();
    for digest in named.chain(plan.resolved.documents.iter().copied()) {
        let find = |source| Error::Content { action: "find", digest, source };
        let size = images.content.size(&digest).map_err(find)?;
        // A layer that was committed already may have come from another blob.
        if let Some(size) = size
            && !blobs.iter().any(|blob: &BlobRecord| blob.digest == digest)
        {
            blobs.push(BlobRecord { digest, size });
        }
    }
    images.store.put_blobs(&blobs).map_err(failed())?;
    step_blocking(Point::PULL_BLOBS_RECORDED)?;
    for row in rows {
        images.store.put_snapshot(row).map_err(failed())?;
        step_blocking(Point::PULL_LAYER_RECORDED)?;
    }
    let record = ImageRecord {
        id: config.digest,
        tags: tag.into_iter().collect(),
        digests: vec![digest],
        manifest: plan.resolved.manifest_digest,
        blobs: blobs.iter().map(|blob| blob.digest).collect(),
        chain: plan.chain.clone(),
        size: plan.resolved.manifest.total().unwrap_or(u64::MAX),
        user: plan.config.user.clone(),
        pulled_at: now(),
    };
    let stored = images.put_image(&record)?;
    berth_failpoint::passed(Point::PULL_RECORDED);
    Ok(stored)
}

fn snapshot(action: &'static str) -> impl FnOnce(berth_snapshot::Error) -> Error {
    move |source| Error::Snapshot { action, source }
}
