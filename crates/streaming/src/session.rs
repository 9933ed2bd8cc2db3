//! The life of one connection after its upgrade.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::mux::{Mux, Reader};

/// How long a client that is sent away has to take the frame that says so.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Without a byte either way.
    pub(crate) idle: Duration,
    /// To open the streams that it asked for.
    pub(crate) creation: Duration,
    /// To read what is left, and to close, after the command has ended.
    ///
    /// It is the client that closes: a socket that is closed while the peer still sends
    /// is reset, and what it had not read yet is lost.
    pub(crate) finish: Duration,
}

/// How a transport ends a connection in good order.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Whether the client waits for it before it closes.
    pub(crate) when_done: bool,
    pub(crate) frame: Bytes,
}

/// Carries a connection until its session is over and the client has closed it, or until
/// the client is gone, silent for too long, or no longer wanted.
///
/// The session is dropped before the last frame is sent: nothing runs for a client that
/// is not there.
pub(crate) async fn supervise<E>(
    mux: &Mux,
    limits: Limits,
    shutdown: &CancellationToken,
    drive: impl Future<Output = Result<(), E>>,
    session: impl Future<Output = Vec<Reader>>,
    ending: Ending,
) -> Result<(), E> {
    let mut drive = std::pin::pin!(drive);
    let finished = async {
        let unread = session.await;
        mux.drained().await;
        if ending.when_done {
            mux.farewell(ending.frame.clone());
        }
        sleep(limits.finish).await;
        drop(unread);
    };
    tokio::select! {
        ended = &mut drive => return ended,
        () = finished => {}
        () = idle(mux, limits.idle) => tracing::debug!(limit = ?limits.idle, "idle stream ended"),
        () = shutdown.cancelled() => {}
    }
    mux.farewell(ending.frame);
    mux.end();
    timeout(FAREWELL, drive).await.unwrap_or(Ok(()))
}

async fn idle(mux: &Mux, limit: Duration) {
    loop {
        let deadline = mux.last_active() + limit;
        if deadline <= Instant::now() {
            return;
        }
        sleep_until(deadline).await;
    }
}
