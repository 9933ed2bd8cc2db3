//! A body that is read under a limit of size and of patience.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use crate::attempts::Failure;
use crate::{Config, Error, Subject};

/// So many bytes must come within each idle time: a sender of one byte a second is as
/// silent as one of none.
const PROGRESS_BYTES: usize = 16 << 10;

/// A response's body.
#[derive(Debug)]
pub(crate) struct Body {
    incoming: Incoming,
    patience: Duration,
    /// Waited and received since the last [`PROGRESS_BYTES`]; only waiting counts, not the
    /// time that the reader is busy elsewhere.
    waited: Duration,
    received: usize,
}

/// Why a body ended early.
#[derive(Debug)]
pub(crate) enum Interrupted {
    Stalled(Duration),
    Broken(hyper::Error),
    TooLarge(u64),
}

impl Interrupted {
    pub(crate) fn about(self, subject: &Subject) -> Failure {
        let subject = subject.clone();
        match self {
            Self::Stalled(waited) => Failure::passing(Error::Stalled { subject, waited }),
            Self::Broken(source) => {
                Failure::passing(Error::Broken { subject, source: source.into() })
            }
            Self::TooLarge(limit) => Failure::last(Error::TooLarge { subject, limit }),
        }
    }
}

impl Body {
    pub(crate) fn new(incoming: Incoming, config: &Config) -> Self {
        Self { incoming, patience: config.idle_timeout, waited: Duration::ZERO, received: 0 }
    }

    /// The next bytes, never empty; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Interrupted> {
        loop {
            let start = Instant::now();
            let left = self.patience.saturating_sub(self.waited);
            let frame = match timeout(left, self.incoming.frame()).await {
                Err(_) => return Err(Interrupted::Stalled(self.patience)),
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(Interrupted::Broken)?,
            };
            self.waited += start.elapsed();
            let Ok(bytes) = frame.into_data() else { continue };
            self.received = self.received.saturating_add(bytes.len());
            if self.received >= PROGRESS_BYTES {
                (self.waited, self.received) = (Duration::ZERO, 0);
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(crate) async fn collect(&mut self, limit: u64) -> Result<Bytes, Interrupted> {
        let mut collected = BytesMut::new();
        let fits = |length: usize| u64::try_from(length).is_ok_and(|length| length <= limit);
        while let Some(bytes) = self.next().await? {
            if !fits(collected.len().saturating_add(bytes.len())) {
                return Err(Interrupted::TooLarge(limit));
            }
            collected.extend_from_slice(&bytes);
        }
        Ok(collected.freeze())
    }
}
