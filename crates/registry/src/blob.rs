//! A blob as it arrives.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use berth_model::Digest;
use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::access::Access;
use crate::attempts::{Attempts, Failure};
use crate::body::Body;
use crate::{Error, Subject, fallback};

/// After this many new bytes the failures before them are forgotten: a large layer over a
/// bad line may break often, as long as it gets on.
const RENEWING_BYTES: u64 = 4 << 20;

/// A blob as it arrives. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Blob {
    digest: Digest,
    /// The host that is asked.
    access: Arc<Access>,
    /// Those to ask if it fails, in order.
    others: VecDeque<Arc<Access>>,
    /// What those that failed answered.
    errors: Vec<(Arc<Access>, Error)>,
    /// The host that gave the first byte.
    first: Option<Arc<Access>>,
    subject: Subject,
    path: String,
    size: u64,
    /// Bytes given out.
    received: u64,
    attempts: Attempts,
    /// Where [`Blob::attempts`] was renewed last.
    renewed: u64,
    /// Whether this registry is asked for parts; one that answers them wrongly is not.
    ranges: bool,
    /// The transfer under way, and how many of its first bytes were given out before.
    transfer: Option<(Body, u64)>,
}

/// Hosts whose bytes, all or some, were not those of one blob's digest.
#[derive(Debug, Default)]
pub struct Distrusted(Vec<Lie>);

/// A host, and the digests that were asked for and came.
#[derive(Debug)]
struct Lie {
    host: Arc<Access>,
    expected: Digest,
    actual: Digest,
}

impl Distrusted {
    /// Adds the host that `blob` began with, which came out with the digest `actual`: what
    /// others gave of it may be right. Says whether there was one to be added.
    #[must_use]
    pub fn add(&mut self, blob: &Blob, actual: Digest) -> bool {
        let host = blob.first.as_ref().filter(|host| !self.contains(host));
        if let Some(host) = host {
            self.0.push(Lie { host: Arc::clone(host), expected: blob.digest, actual });
        }
        host.is_some()
    }

    pub(crate) fn contains(&self, host: &Arc<Access>) -> bool {
        self.0.iter().any(|lie| Arc::ptr_eq(&lie.host, host))
    }

    /// What is to be told of each of them, in the order in which they were found out.
    pub(crate) fn errors(&self) -> Vec<(Arc<Access>, Error)> {
        let told = |Lie { host, expected, actual }: &Lie| {
            let (expected, actual) = (*expected, *actual);
            let subject = host.subject(host.reference().clone(), Some(expected));
            (Arc::clone(host), Error::WrongDigest { subject, expected, actual })
        };
        self.0.iter().map(told).collect()
    }
}

impl Blob {
    /// Opens it at the first of `hosts` that has it; there is at least one. `errors` are of
    /// those that were asked before.
    pub(crate) async fn open(
        mut hosts: VecDeque<Arc<Access>>,
        errors: Vec<(Arc<Access>, Error)>,
        digest: &Digest,
        size: u64,
    ) -> Result<Self, Error> {
        let access = hosts.pop_front().expect("who has no host does not come here");
        let mut blob = Self {
            digest: *digest,
            subject: access.subject(access.reference().clone(), Some(*digest)),
            path: format!("blobs/{digest}"),
            attempts: Attempts::new(access.config(), hosts.is_empty()),
            access,
            others: hosts,
            errors,
            first: None,
            size,
            received: 0,
            renewed: 0,
            ranges: true,
            transfer: None,
        };
        if size > 0 {
            blob.transfer = Some(blob.connect().await?);
        }
        Ok(blob)
    }

    /// Its size by its descriptor, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes, never empty; `None` after exactly as many as the descriptor says.
    ///
    /// A connection that breaks or stalls is replaced by one that asks for the rest. Time
    /// between calls does not count as a stall.
    ///
    /// # Errors
    /// Any [`Error`]; after one the blob is of no more use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.received < self.size {
            let (mut body, mut skip) = match self.transfer.take() {
                Some(transfer) => transfer,
                None => self.connect().await?,
            };
            match body.next().await {
                Ok(Some(mut bytes)) => {
                    let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                    bytes.advance(skipped);
                    skip -= length(skipped);
                    self.transfer = Some((body, skip));
                    if bytes.is_empty() {
                        continue;
                    }
                    match self.give(bytes) {
                        Ok(bytes) => return Ok(Some(bytes)),
                        Err(error) => {
                            self.transfer = None;
                            self.pause(Failure::last(error)).await?;
                        }
                    }
                }
                Ok(None) => self.pause(self.ended()).await?,
                Err(why) => self.pause(why.about(&self.subject)).await?,
            }
        }
        Ok(None)
    }

    fn give(&mut self, bytes: Bytes) -> Result<Bytes, Error> {
        let received = self.received + length(bytes.len());
        if received > self.size {
            return Err(Error::TooLarge { subject: self.subject.clone(), limit: self.size });
        }
        self.received = received;
        self.first.get_or_insert_with(|| Arc::clone(&self.access));
        if received - self.renewed >= RENEWING_BYTES {
            self.renewed = received;
            self.attempts.renew();
        }
        Ok(bytes)
    }

    fn ended(&self) -> Failure {
        let source = Box::new(io::Error::from(io::ErrorKind::UnexpectedEof));
        Failure::passing(Error::Broken { subject: self.subject.clone(), source })
    }

    async fn connect(&mut self) -> Result<(Body, u64), Error> {
        loop {
            match self.connect_once().await {
                Ok(transfer) => return Ok(transfer),
                Err(failure) => self.pause(failure).await?,
            }
        }
    }

    /// Waits until the host may be asked again, or turns to the next one: what is received
    /// stays, since a blob is the same everywhere.
    async fn pause(&mut self, failure: Failure) -> Result<(), Error> {
        let Err(error) = self.attempts.pause(failure).await else { return Ok(()) };
        let Some(next) = self.others.pop_front() else {
            return Err(fallback::sum(std::mem::take(&mut self.errors), &self.access, error));
        };
        fallback::note(&self.access, &next, &error);
        self.errors.push((Arc::clone(&self.access), error));
        self.subject = next.subject(next.reference().clone(), Some(self.digest));
        self.attempts = Attempts::new(next.config(), self.others.is_empty());
        (self.access, self.ranges) = (next, true);
        Ok(())
    }

    async fn connect_once(&mut self) -> Result<(Body, u64), Failure> {
        let mut headers = HeaderMap::new();
        let partial = self.ranges && self.received > 0;
        if partial {
            // Closed, since large registries refuse open ranges at odd times, and without
            // a look at `Accept-Ranges`, which they leave out.
            let range = format!("bytes={}-{}", self.received, self.size - 1);
            headers.insert(RANGE, HeaderValue::try_from(range).expect("digits are valid"));
        }
        let reply = self.access.get(&self.subject, &self.path, &headers).await?;
        let head = reply.response.headers();
        let skip = match reply.response.status() {
            StatusCode::OK => {
                self.check_size(announced_length(head))?;
                self.received
            }
            StatusCode::PARTIAL_CONTENT if partial => match content_range(head) {
                Some((start, total)) if start <= self.received => {
                    self.check_size(total)?;
                    self.received - start
                }
                _ => return Err(self.without_ranges()),
            },
            StatusCode::RANGE_NOT_SATISFIABLE if partial => return Err(self.without_ranges()),
            _ => return Err(self.access.refusal(&self.subject, reply).await),
        };
        Ok((Body::new(reply.response.into_body(), self.access.config()), skip))
    }

    fn check_size(&self, announced: Option<u64>) -> Result<(), Failure> {
        match announced.filter(|announced| *announced != self.size) {
            None => Ok(()),
            Some(actual) => {
                let (subject, expected) = (self.subject.clone(), self.size);
                Err(Failure::last(Error::WrongSize { subject, expected, actual }))
            }
        }
    }

    fn without_ranges(&mut self) -> Failure {
        self.ranges = false;
        let (subject, status) = (self.subject.clone(), StatusCode::RANGE_NOT_SATISFIABLE);
        Failure::passing(Error::Status { subject, status, detail: Default::default() })
    }
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte and whole length of `bytes 5-9/10` or `bytes 5-9/*` (RFC 9110, section 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, total))
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_tells_start_and_total() {
        for (value, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("5-9/10", None),
            ("bytes -9/10", None),
            ("bytes 5-9/x", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, value.parse().unwrap());
            assert_eq!(content_range(&headers), expected, "{value}");
        }
    }
}
