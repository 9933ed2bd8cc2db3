//! What is known of each stream: decided here, without waiting.

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::time::Instant;

use super::{INITIAL_WINDOW, Output};

/// Most bytes that one stream keeps for its reader.
const STREAM_BYTES: usize = 64 << 10;
/// Most bytes that all streams of a connection keep for their readers.
const CONNECTION_BYTES: usize = 2 << 20;
/// Most bytes that one stream keeps for the socket.
const OUTBOUND_BYTES: usize = 32 << 10;
/// Most bytes that all streams of a connection keep for the socket, but for their shares.
const CONNECTION_OUTBOUND_BYTES: usize = 2 << 20;
/// What a stream may keep for the socket whatever the others keep: a client that reads some
/// of its streams only does not stop the rest of them.
const OUTBOUND_SHARE: usize = 4 << 10;
/// Most payload in one frame.
const FRAME_BYTES: usize = 16 << 10;
/// How many bytes are read before the peer is told.
pub(super) const CREDIT: u32 = 32 << 10;

#[derive(Debug)]
pub(super) struct State {
    pub(super) streams: HashMap<u32, Stream>,
    /// Streams to look at for output, in turn.
    pub(super) ready: VecDeque<u32>,
    pub(super) control: VecDeque<Bytes>,
    /// Bytes in all inbound buffers.
    pub(super) inbound: usize,
    /// Bytes in all outbound buffers.
    outbound: usize,
    /// Read by sessions, and not yet told to the peer.
    pub(super) consumed: u32,
    /// Whether the peer has shown that it counts windows. Kubernetes' clients do not: to
    /// wait for their updates would be to wait for ever.
    pub(super) counted: bool,
    pub(super) initial_window: i64,
    pub(super) window: i64,
    /// The peer was told that the connection ends.
    pub(super) farewell: bool,
    /// No more output after what there is.
    pub(super) ending: bool,
    /// The peer is gone.
    pub(super) closed: bool,
    pub(super) active: Instant,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) inbound: VecDeque<u8>,
    /// The peer will send nothing more.
    pub(super) finished: bool,
    pub(super) reader: Side,
    pub(super) consumed: u32,
    pub(super) outbound: Vec<u8>,
    pub(super) writer: Side,
    /// The peer knows that we will send nothing more.
    pub(super) end_sent: bool,
    pub(super) window: i64,
    /// The peer gave it up.
    pub(super) reset: bool,
    pub(super) queued: bool,
}

/// The session's end of one direction.
#[derive(Debug)]
pub(super) enum Side {
    Open(Option<Waker>),
    Dropped,
}

impl Side {
    pub(super) fn wake(&mut self) {
        if let Self::Open(waker) = self
            && let Some(waker) = waker.take()
        {
            waker.wake();
        }
    }

    pub(super) fn wait(&mut self, context: &Context<'_>) {
        *self = Self::Open(Some(context.waker().clone()));
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            streams: HashMap::new(),
            ready: VecDeque::new(),
            control: VecDeque::new(),
            inbound: 0,
            outbound: 0,
            consumed: 0,
            counted: false,
            initial_window: i64::from(INITIAL_WINDOW),
            window: i64::from(INITIAL_WINDOW),
            farewell: false,
            ending: false,
            closed: false,
            active: Instant::now(),
        }
    }

    pub(super) fn open(&mut self, id: u32, finished: bool) {
        let stream = Stream {
            inbound: VecDeque::new(),
            finished,
            reader: Side::Open(None),
            consumed: 0,
            outbound: Vec::new(),
            writer: Side::Open(None),
            end_sent: false,
            window: self.initial_window,
            reset: false,
            queued: false,
        };
        self.streams.insert(id, stream);
    }

    /// How much of `data` there is room for; wakes whoever reads it.
    pub(super) fn push(&mut self, id: u32, data: &[u8]) -> usize {
        let closed = self.closed;
        let room = CONNECTION_BYTES.saturating_sub(self.inbound);
        let Some(stream) = self.streams.get_mut(&id) else {
            self.consume_unread(data.len());
            return data.len();
        };
        if closed || stream.finished || stream.reset || !stream.reader.is_open() {
            self.consume_unread(data.len());
            return data.len();
        }
        let taken = data.len().min(room).min(STREAM_BYTES.saturating_sub(stream.inbound.len()));
        stream.inbound.extend(&data[..taken]);
        stream.reader.wake();
        self.inbound += taken;
        taken
    }

    /// How much of `data` a stream takes for the socket. Whoever finds no room keeps bytes
    /// of its own already, and is woken when some of those are sent.
    pub(super) fn put(&mut self, id: u32, data: &[u8]) -> usize {
        let spare = CONNECTION_OUTBOUND_BYTES.saturating_sub(self.outbound);
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let kept = stream.outbound.len();
        let room = spare.max(OUTBOUND_SHARE.saturating_sub(kept));
        let taken = data.len().min(room).min(OUTBOUND_BYTES.saturating_sub(kept));
        stream.outbound.extend_from_slice(&data[..taken]);
        self.outbound += taken;
        taken
    }

    /// Gives up a stream with what it still keeps for the socket.
    pub(super) fn break_off(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.outbound -= stream.outbound.len();
        stream.break_off();
        self.forget_ended(id);
    }

    /// Gives up all streams.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.streams.values_mut().for_each(Stream::break_off);
        self.outbound = 0;
        self.streams.retain(|_, stream| !stream.is_dropped());
    }

    /// What nobody reads counts as read, or the session's window would close.
    pub(super) fn consume_unread(&mut self, bytes: usize) {
        self.consumed = self.consumed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    pub(super) fn look_at(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }

    pub(super) fn look_at_all(&mut self) {
        let waiting: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.outbound.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            self.look_at(id);
        }
    }

    pub(super) fn pick(&mut self) -> Option<Output> {
        if self.closed {
            return Some(Output::End);
        }
        if let Some(frame) = self.control.pop_front() {
            return Some(Output::Control(frame));
        }
        if self.consumed >= CREDIT {
            return Some(Output::Credit { id: 0, bytes: std::mem::take(&mut self.consumed) });
        }
        let window = if self.counted { self.window } else { i64::MAX };
        for _ in 0..self.ready.len() {
            let id = self.ready.pop_front()?;
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            let Some(output) = stream.pick(id, window.min(stream.allowed(self.counted))) else {
                self.forget_ended(id);
                continue;
            };
            if let Output::Data { bytes, .. } = &output {
                self.window -= i64::try_from(bytes.len()).unwrap_or(i64::MAX);
                self.outbound -= bytes.len();
            }
            // It may have more, after the others.
            self.look_at(id);
            self.forget_ended(id);
            return Some(output);
        }
        self.ending.then_some(Output::End)
    }

    /// Forgets a stream that has ended on all sides.
    pub(super) fn forget_ended(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else { return };
        let over = stream.reset || (stream.end_sent && stream.finished);
        if over && stream.is_dropped() {
            self.inbound -= stream.inbound.len();
            self.streams.remove(&id);
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        self.closed || self.streams.values().all(|stream| stream.end_sent || stream.reset)
    }
}

impl Stream {
    /// Only [`State`] knows what all streams keep: it has to count that this one keeps nothing.
    fn break_off(&mut self) {
        self.reset = true;
        self.finished = true;
        self.outbound = Vec::new();
        self.reader.wake();
        self.writer.wake();
    }

    /// Whether the session has given up both ends.
    pub(super) fn is_dropped(&self) -> bool {
        !self.reader.is_open() && !self.writer.is_open()
    }

    pub(super) fn allowed(&self, counted: bool) -> i64 {
        if counted { self.window } else { i64::MAX }
    }

    pub(super) fn pick(&mut self, id: u32, allowed: i64) -> Option<Output> {
        if self.reset {
            return None;
        }
        if self.consumed >= CREDIT && !self.finished {
            return Some(Output::Credit { id, bytes: std::mem::take(&mut self.consumed) });
        }
        let dropped = !self.writer.is_open();
        let allowed = usize::try_from(allowed).unwrap_or(0);
        if !self.outbound.is_empty() && allowed > 0 {
            let length = self.outbound.len().min(FRAME_BYTES).min(allowed);
            // What is left has memory of its own length: what has been sent keeps none.
            let rest = self.outbound.split_off(length);
            let bytes = Bytes::from(std::mem::replace(&mut self.outbound, rest));
            self.window -= i64::try_from(length).unwrap_or(i64::MAX);
            self.writer.wake();
            let last = dropped && self.outbound.is_empty();
            self.end_sent |= last;
            return Some(Output::Data { id, bytes, last });
        }
        if self.outbound.is_empty() && dropped && !self.end_sent {
            self.end_sent = true;
            return Some(Output::Data { id, bytes: Bytes::new(), last: true });
        }
        if self.end_sent && !self.finished && !self.reader.is_open() {
            // Nobody reads what the peer may still send: it need not.
            self.break_off();
            return Some(Output::Reset { id });
        }
        None
    }
}
