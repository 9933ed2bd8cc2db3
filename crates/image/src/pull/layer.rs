//! One blob of a manifest: fetched, stored and unpacked at once.
//!
//! ```text
//! registry ==8==> store: hash, write, verify ==8==> unpack: gunzip, hash, untar
//!   async            thread of its own                  thread of its own
//! ```
//!
//! A blob that unpacks badly is still read to its end: whether it is the blob that was
//! asked for is the better answer.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_content::Content;
use berth_failpoint::Point;
use berth_model::{DiffId, Digest};
use berth_registry::{Blob, Distrusted, Repository};
use berth_snapshot::{LayerDir, Snapshots};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::stream::{Exceeded, Meter, Piece, PieceReader};
use crate::apply::{Applied, apply};
use crate::document::Compression;
use crate::error::failed_at;
use crate::tar::Archive;
use crate::{Error, LayerError, Limits, apart, blocking};

/// Pieces between two stages; each is what one read of a connection gave.
const QUEUE: usize = 8;

/// How often a long download says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// Bytes decompressed at once.
const BUFFER: usize = 128 << 10;

/// One blob, and where in the image it is unpacked.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) compression: Compression,
    /// Index in the chain, and the archive's digest; more than one only if the manifest
    /// repeats a layer, none if only the blob is missing.
    pub(super) places: Vec<(usize, DiffId)>,
}

/// A layer unpacked but not committed.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) index: usize,
    pub(super) directory: LayerDir,
    pub(super) applied: Applied,
}

/// What every job of a pull shares.
#[derive(Clone, Debug)]
pub(super) struct Workshop {
    pub(super) repository: Repository,
    pub(super) content: Content,
    pub(super) snapshots: Snapshots,
    pub(super) limits: Arc<Limits>,
    /// Cancelled when the pull fails or is given up: threads cannot be dropped.
    pub(super) stop: CancellationToken,
}

impl Workshop {
    /// Unpacks the job's blob at each of its places, fetching it unless it is here.
    pub(super) async fn run(self, job: Job) -> Result<Vec<Unpacked>, Error> {
        let started = Instant::now();
        let mut places = job.places.clone().into_iter();
        let mut done = Vec::with_capacity(job.places.len());
        let digest = job.digest;
        let present = {
            let content = self.content.clone();
            blocking("look for a blob", move || content.size(&digest)).await?
        };
        // One of another size is damaged, and is replaced.
        let present = present.map_err(content_error("find", digest))? == Some(job.size);
        if !present {
            done.extend(self.fetch(&job, places.next()).await?);
        }
        for place in places {
            let unpacked = self.unpack_stored(&job, place).await;
            let damaged = match &unpacked {
                Ok(_) => false,
                Err(error) => self.is_damaged(error, digest).await?,
            };
            if damaged {
                tracing::warn!(layer.digest = %digest, "fetching a damaged blob anew");
                done.extend(self.fetch(&job, Some(place)).await?);
            } else {
                done.push(unpacked?);
            }
        }
        tracing::info!(
            layer.digest = %digest,
            bytes = job.size,
            fetched = !present,
            elapsed_ms = elapsed_ms(started),
            "layer unpacked"
        );
        Ok(done)
    }

    /// Fetches the job's blob and unpacks it at `place`, if one is named.
    ///
    /// Of bytes that are not the blob's nothing is kept: the next host is asked for all of it.
    async fn fetch(
        &self,
        job: &Job,
        place: Option<(usize, DiffId)>,
    ) -> Result<Option<Unpacked>, Error> {
        let (mut liars, mut wrong) = (Distrusted::default(), None);
        while let Some(blob) = self.open(job, &liars).await? {
            let (blob, done) = self.fetch_from(job, place, blob).await;
            match done.as_ref().err().and_then(Error::wrong_digest) {
                Some(actual) if liars.add(&blob, actual) => wrong = Some(done),
                _ => return done,
            }
        }
        wrong.expect("there is a host while none has lied")
    }

    /// Asks a host that is none of `liars`; `None` if there is none.
    async fn open(&self, job: &Job, liars: &Distrusted) -> Result<Option<Blob>, Error> {
        let opened = self.repository.blob_of_others(&job.digest, job.size, liars);
        let opened = self.stop.run_until_cancelled(opened).await;
        let opened = opened.ok_or_else(|| Error::Stopped(job.digest.to_string()))?;
        opened.map_err(failed_to_fetch)
    }

    async fn fetch_from(
        &self,
        job: &Job,
        place: Option<(usize, DiffId)>,
        mut blob: Blob,
    ) -> (Blob, Result<Option<Unpacked>, Error>) {
        let (to_store, from_network) = mpsc::channel(QUEUE);
        let (to_unpack, from_store) = mpsc::channel(QUEUE);
        let (content, digest, size) = (self.content.clone(), job.digest, job.size);
        let store =
            apart("store a blob", move || store(&content, digest, size, from_network, &to_unpack));
        let (shop, own) = (self.clone(), job.clone());
        let unpack = async move {
            let Some(place) = place else { return Ok(None) };
            let work = move || shop.unpack(PieceReader::new(from_store), &own, place).map(Some);
            apart("unpack a layer", work).await.flatten()
        };
        let network = async {
            let downloaded = download(job, &mut blob, to_store);
            let done = self.stop.run_until_cancelled(downloaded).await;
            done.unwrap_or_else(|| Err(Error::Stopped(digest.to_string())))
        };
        let (network, stored, unpacked) = tokio::join!(network, store, unpack);
        // In the order of the stages: what fails first makes those after it fail.
        let stored = stored.and_then(|stored| stored.map_err(content_error("store", digest)));
        (blob, network.and(stored).and(unpacked))
    }

    /// Whether `error` comes of a stored blob that is not what it was.
    async fn is_damaged(&self, error: &Error, digest: Digest) -> Result<bool, Error> {
        let read = matches!(error, Error::Layer { .. }) && !error.wants_space();
        let gone =
            matches!(error, Error::Content { source: berth_content::Error::NotFound(_), .. });
        if !read {
            return Ok(gone);
        }
        let content = self.content.clone();
        let verified = blocking("verify a blob", move || content.verify(&digest)).await?;
        Ok(verified.is_err())
    }

    async fn unpack_stored(&self, job: &Job, place: (usize, DiffId)) -> Result<Unpacked, Error> {
        let (shop, own) = (self.clone(), job.clone());
        apart("unpack a layer", move || {
            let blob = shop.content.open_blob(&own.digest);
            let blob = blob.map_err(content_error("open", own.digest))?;
            shop.unpack(BufReader::with_capacity(BUFFER, blob.file), &own, place)
        })
        .await?
    }

    fn unpack(
        &self,
        blob: impl BufRead,
        job: &Job,
        (index, diff_id): (usize, DiffId),
    ) -> Result<Unpacked, Error> {
        let unpacked = match job.compression {
            Compression::None => self.untar(blob, job.size, index, diff_id),
            Compression::Gzip => self.untar(MultiGzDecoder::new(blob), job.size, index, diff_id),
            Compression::Zstd => unzstd(blob)
                .map_err(Exceeded::unwrap)
                .and_then(|archive| self.untar(archive, job.size, index, diff_id)),
        };
        let root = || self.snapshots.root().into();
        unpacked.map_err(|source| Error::Layer { digest: job.digest, root: root(), source })
    }

    fn untar(
        &self,
        archive: impl Read,
        compressed: u64,
        index: usize,
        wanted: DiffId,
    ) -> Result<Unpacked, LayerError> {
        let directory = self.snapshots.begin_layer().map_err(LayerError::Snapshot)?;
        step(Point::PULL_LAYER_BEGUN)?;
        let meter = Meter::new(archive, compressed, &self.limits, self.stop.clone());
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, meter));
        let report = |size| directory.holds(size);
        let applied = apply(directory.root(), &mut archive, index == 0, &self.limits, &report)?;
        // What follows the archive's end belongs to its digest all the same.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(Exceeded::unwrap)?;
        step(Point::PULL_LAYER_UNPACKED)?;
        let (_, found) = rest.into_inner().finish();
        if found != wanted {
            return Err(LayerError::DiffId { wanted, found });
        }
        Ok(Unpacked { index, directory, applied })
    }
}

fn failed_to_fetch(source: berth_registry::Error) -> Error {
    Error::Registry { action: "fetch layer", source: Box::new(source) }
}

async fn download(job: &Job, blob: &mut Blob, to_store: mpsc::Sender<Bytes>) -> Result<(), Error> {
    let (mut received, mut told) = (0_u64, Instant::now());
    while let Some(bytes) = blob.next().await.map_err(failed_to_fetch)? {
        received += u64::try_from(bytes.len()).unwrap_or(0);
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tracing::info!(layer.digest = %job.digest, received, bytes = job.size, "fetching");
        }
        if to_store.send(bytes).await.is_err() {
            break; // storing failed, and says why itself
        }
    }
    tracing::debug!(counter.pull_bytes = received, "layer received");
    Ok(())
}

/// Stores a blob and passes it on; goes on when nobody takes it any more.
fn store(
    content: &Content,
    digest: Digest,
    size: u64,
    mut from_network: mpsc::Receiver<Bytes>,
    to_unpack: &mpsc::Sender<Piece>,
) -> Result<(), berth_content::Error> {
    let mut ingest = content.ingest(&digest, size)?;
    let mut wanted = true;
    while let Some(bytes) = from_network.blocking_recv() {
        ingest.write(&bytes)?;
        wanted = wanted && to_unpack.blocking_send(Piece::Bytes(bytes)).is_ok();
    }
    let step = |point| berth_failpoint::pass(point).map_err(|source| failed_at(point, source));
    step(Point::PULL_BLOB_WRITTEN)?;
    ingest.commit()?;
    step(Point::PULL_BLOB_STORED)?;
    if wanted {
        // The unpacking side may have failed by now; it says why itself.
        to_unpack.blocking_send(Piece::Verified).ok();
    }
    Ok(())
}

fn step(point: Point) -> Result<(), LayerError> {
    berth_failpoint::pass(point).map_err(|source| LayerError::failpoint(point, &source))
}

fn content_error(
    action: &'static str,
    digest: Digest,
) -> impl FnOnce(berth_content::Error) -> Error {
    move |source| Error::Content { action, digest, source }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Frames of zstd, one after the other (RFC 8878). A window of more than 128 MiB is refused,
/// as the program zstd does: it would be held in memory.
fn unzstd<R: BufRead>(blob: R) -> io::Result<impl Read + use<R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
    decoder.window_log_max(27)?;
    Ok(decoder)
}
