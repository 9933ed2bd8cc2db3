//! Images: pulled from a registry, verified, unpacked, listed, removed.
//!
//! ```text
//! reference -> index -> manifest of this platform -> config
//!                                                 -> layers, several at once:
//!   registry -> digest, content -> gunzip -> diff ID -> untar -> snapshot
//! ```
//!
//! One pull is one task. Requests for the same reference with the same credentials join
//! it; it outlives each of them, and stops [`Config::orphan_grace`] after the last is
//! gone. Each layer is one pipeline of two threads of its own with bounded queues between;
//! the node has a bounded number of pipelines.
//!
//! Invariants: a blob or layer is verified and on disk before the row that names it is
//! committed; whatever a pull needs is pinned, so that a removal that runs meanwhile
//! leaves it; nothing of an image's content decides anything but what its files are
//! (policy comes from the request alone). Not here: credentials and transport
//! (`registry`), blobs (`content`), mounts (`snapshot`).

mod apply;
mod cleaner;
mod collect;
mod config;
mod document;
mod error;
mod images;
mod leftovers;
mod pins;
mod pull;
mod rebuild;
mod tar;
mod written;

pub use berth_registry::Auth;
pub use config::{Config, Limits, Platform};
pub use error::{BadArchive, BadDocument, BadEntry, Defect, Error, LayerError};
pub use images::{FsInfo, Hold, Images, Recovered};
pub use rebuild::InUse;

/// Passes a point at which a test may stop the work; nothing in what ships.
async fn step(point: berth_failpoint::Point) -> Result<(), Error> {
    berth_failpoint::reach(point).await.map_err(|source| Error::failpoint(point, source))
}

/// As [`step`], on a thread that may block.
fn step_blocking(point: berth_failpoint::Point) -> Result<(), Error> {
    berth_failpoint::pass(point).map_err(|source| Error::failpoint(point, source))
}

/// Runs `work` on a blocking thread; `what` names it should it panic.
///
/// Dropping the future does not stop the work: it ends by itself, when the queue it reads
/// from is closed.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Panicked(what))
}

/// Runs `work` on a thread of its own; otherwise as [`blocking`].
///
/// For what waits for a network, or for other such work: blocking threads are few and
/// everyone's, and stages of a pipeline that wait in line for one behind stages that wait
/// for them would wait for ever.
async fn apart<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // Who gave up has dropped the receiver; what was made for them is dropped here then.
    let thread = std::thread::Builder::new().spawn(move || answer.send(work()).is_ok());
    thread.map_err(|source| Error::Thread { what, source })?;
    answered.await.map_err(|_| Error::Panicked(what))
}
