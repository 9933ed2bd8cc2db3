//! SPDY/3.1 as far as Kubernetes speaks it: the client opens streams, the server accepts.
//!
//! Clients of Kubernetes neither count windows nor update them. Windows are honoured from
//! a peer's first frame about them on; updates are always sent. Against all the others
//! there is TCP: what no stream has room for is not read off the socket.

mod dictionary;
mod drive;
pub mod frame;
mod headers;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use drive::{drive, farewell};
use frame::{Malformed, Reset, kind};
pub use headers::{Decoder, Encoder, Headers};
use tokio::sync::mpsc;

use crate::mux::{Mux, Reader, Writer};

/// Streams that wait for their answer.
const MAX_WAITING: usize = 16;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("not the protocol that was agreed on")]
    Malformed(#[from] Malformed),
}

/// The transport's end of a connection's streams.
#[derive(Debug)]
pub(crate) struct Connection {
    mux: Mux,
    opened: mpsc::Sender<Incoming>,
    answers: Arc<Answers>,
}

impl Connection {
    /// A connection without streams, and those that the client will open.
    pub(crate) fn new(mux: Mux) -> Result<(Self, mpsc::Receiver<Incoming>), Error> {
        let (opened, streams) = mpsc::channel(MAX_WAITING);
        let answers = Answers { encoder: Mutex::new(Encoder::new()?), mux: mux.clone() };
        Ok((Self { mux, opened, answers: Arc::new(answers) }, streams))
    }
}

/// The answers to new streams: compressed one after the other, and sent in that order.
#[derive(Debug)]
struct Answers {
    encoder: Mutex<Encoder>,
    mux: Mux,
}

impl Answers {
    fn accept(&self, id: u32) -> Result<(), Malformed> {
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let block = encoder.encode(&Headers::default())?;
        self.mux.control_now(frame::control(kind::SYN_REPLY, 0, &[id], &block));
        Ok(())
    }
}

/// A stream that the client opened and that waits for its answer.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    streams: (Reader, Writer),
    answers: Arc<Answers>,
}

impl Incoming {
    /// Takes the stream. Its answer has room: none is read off the socket before.
    pub(crate) fn accept(self) -> Result<(Reader, Writer), Error> {
        self.answers.accept(self.id)?;
        Ok(self.streams)
    }

    /// Tells the client that its stream makes no sense.
    pub(crate) fn refuse(self) {
        self.answers.mux.reset(self.id);
        self.answers.mux.control_now(reset(self.id, Reset::Protocol));
    }
}

fn reset(id: u32, why: Reset) -> bytes::Bytes {
    frame::control(kind::RST_STREAM, 0, &[id, u32::from(why)], &[])
}
