//! The blocking ends of a layer's pipeline.

use std::io::{self, BufRead, Read};

use berth_model::{DiffId, Digest};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{LayerError, Limits};

/// What the storing side hands to the unpacking side.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next bytes of the blob.
    Bytes(Bytes),
    /// The blob is complete and its digest is right.
    Verified,
}

/// A blob as it passes by; ends only when the blob was verified.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    verified: bool,
}

impl PieceReader {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), verified: false }
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.verified {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::Verified) => self.verified = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        drop(self.current.split_to(amount.min(self.current.len())));
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

/// A limit that was reached, in the disguise that [`Read`] asks for.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Exceeded {
    #[error("uncompressed layer is larger than {0} bytes")]
    Size(u64),
    #[error("uncompressed layer is more than {0} times larger than compressed")]
    Expansion(u64),
}

impl Exceeded {
    /// The layer's error behind an I/O error.
    pub(crate) fn unwrap(error: io::Error) -> LayerError {
        let exceeded = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).copied();
        match exceeded {
            Some(Self::Size(limit)) => LayerError::Size(limit),
            Some(Self::Expansion(ratio)) => LayerError::Expansion(ratio),
            None => LayerError::Stream(error),
        }
    }
}

/// The uncompressed archive: hashed, and stopped when it grows beyond measure or when its
/// pull is given up.
pub(super) struct Meter<R> {
    inner: R,
    stop: CancellationToken,
    hash: Sha256,
    seen: u64,
    most: u64,
    exceeded: Exceeded,
}

impl<R: Read> Meter<R> {
    /// For a blob of `compressed` bytes.
    pub(super) fn new(inner: R, compressed: u64, limits: &Limits, stop: CancellationToken) -> Self {
        let by_ratio = compressed
            .saturating_mul(limits.expansion_ratio)
            .saturating_add(limits.expansion_free_bytes);
        let (most, exceeded) = if by_ratio < limits.layer_bytes {
            (by_ratio, Exceeded::Expansion(limits.expansion_ratio))
        } else {
            (limits.layer_bytes, Exceeded::Size(limits.layer_bytes))
        };
        Self { inner, stop, hash: Sha256::new(), seen: 0, most, exceeded }
    }

    /// Bytes seen, and their digest.
    pub(super) fn finish(self) -> (u64, DiffId) {
        (self.seen, DiffId(Digest::from_sha256(self.hash.finalize().into())))
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the pull was given up"));
        }
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.seen += u64::try_from(read).expect("a length fits 64 bits");
        if self.seen > self.most {
            return Err(io::Error::other(self.exceeded));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(stop: CancellationToken) -> Meter<&'static [u8]> {
        let limits = Limits { expansion_free_bytes: 0, ..Limits::default() };
        Meter::new(&b"archive"[..], 1, &limits, stop)
    }

    #[test]
    fn an_archive_is_counted_and_hashed() {
        let mut meter = meter(CancellationToken::new());
        io::copy(&mut meter, &mut io::sink()).unwrap();
        assert_eq!(meter.finish(), (7, DiffId(Digest::of(b"archive"))));
    }

    #[test]
    fn a_pull_that_is_given_up_stops_reading() {
        let stop = CancellationToken::new();
        let mut meter = meter(stop.clone());
        stop.cancel();
        assert!(io::copy(&mut meter, &mut io::sink()).is_err());
    }

    #[test]
    fn a_blob_that_was_not_verified_has_no_end() {
        let (sender, pieces) = mpsc::channel(4);
        for piece in [Piece::Bytes(Bytes::from_static(b"ab")), Piece::Bytes("c".into())] {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        let mut read = Vec::new();
        let error = PieceReader::new(pieces).read_to_end(&mut read).unwrap_err();
        assert_eq!((read.as_slice(), error.kind()), (&b"abc"[..], io::ErrorKind::UnexpectedEof));

        let (sender, pieces) = mpsc::channel(4);
        sender.try_send(Piece::Bytes(Bytes::from_static(b"abc"))).unwrap();
        sender.try_send(Piece::Verified).unwrap();
        read.clear();
        PieceReader::new(pieces).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"abc");
    }
}
