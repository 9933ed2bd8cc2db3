//! The streams of one connection, between its transport and its session.
//!
//! ```text
//! socket ─▶ transport ─▶ deliver ─▶ inbound, bounded ─▶ Reader ─▶ session
//! socket ◀─ transport ◀─ next    ◀─ outbound, bounded ◀─ Writer ◀─ session
//! ```
//!
//! Nothing is read off the socket that no stream has room for, and nothing is taken from a
//! session that the socket has no room for: a slow side slows the other one down, and the
//! bytes of a connection have a limit: 2 MiB of what was read, 2 MiB of what is to be sent,
//! and 4 KiB more for each stream; the buffers that hold them may be up to four times as
//! large. Streams that have something to send take turns.

mod half;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
pub(crate) use half::{Pair, Reader, Writer};
use state::State;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::peer::Peer;

/// The window that a SPDY/3.1 peer may assume, for a stream and for the session, bytes.
pub(crate) const INITIAL_WINDOW: u32 = 64 << 10;
/// How often it is asked whether a peer is gone that nothing can be read from.
const HANGUP_PERIOD: Duration = Duration::from_secs(1);
/// Answers that wait for the socket, before nothing more is read off it.
const MAX_CONTROL: usize = 64;

/// What a transport has to send next.
#[derive(Debug)]
pub(crate) enum Output {
    /// A whole frame.
    Control(Bytes),
    /// The peer may send so much more; on stream 0, on all of them together.
    Credit { id: u32, bytes: u32 },
    /// Payload, and whether it is the last.
    Data { id: u32, bytes: Bytes, last: bool },
    /// The stream is not wanted any more.
    Reset { id: u32 },
    /// There will be nothing more.
    End,
}

/// The streams of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Mux(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    peer: Peer,
    /// There is something to send.
    output: Notify,
    /// There is room for what was read, or for an answer.
    room: Notify,
    /// A stream has ended, or all have.
    ended: Notify,
}

impl Mux {
    pub(crate) fn new(peer: Peer) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::new()),
            peer,
            output: Notify::new(),
            room: Notify::new(),
            ended: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held that would leave it half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream. The transport made sure that it has no such id yet.
    pub(crate) fn open(&self, id: u32, finished: bool) -> (Reader, Writer) {
        let mut state = self.state();
        state.open(id, finished);
        (Reader::new(self.clone(), id), Writer::new(self.clone(), id))
    }

    /// Streams that are open.
    pub(crate) fn count(&self) -> usize {
        self.state().streams.len()
    }

    /// When something was last read off the socket or written to it.
    pub(crate) fn last_active(&self) -> Instant {
        self.state().active
    }

    pub(crate) fn touch(&self) {
        self.state().active = Instant::now();
    }

    /// Gives payload to a stream, and waits for room. What nobody reads is thrown away.
    ///
    /// # Errors
    ///
    /// The peer is gone and nobody reads what it sent.
    pub(crate) async fn deliver(&self, id: u32, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let taken = self.state().push(id, data);
            data = &data[taken..];
            if !data.is_empty() {
                self.wait_for_room().await?;
            }
        }
        self.0.output.notify_one();
        Ok(())
    }

    /// Waits for a reader. Meanwhile nothing is read that would tell that the peer is gone;
    /// the kernel tells it: at once, unless more is under way than its own buffers hold,
    /// behind which the peer's end waits. Then it has to ask ([`crate::peer::keep_asking`]).
    async fn wait_for_room(&self) -> io::Result<()> {
        while timeout(HANGUP_PERIOD, self.0.room.notified()).await.is_err() {
            if self.0.peer.is_gone() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
        Ok(())
    }

    /// The peer will send nothing more on this stream.
    pub(crate) fn finish(&self, id: u32) {
        let mut state = self.state();
        if let Some(stream) = state.streams.get_mut(&id) {
            stream.finished = true;
            stream.reader.wake();
            state.forget_ended(id);
        }
        self.0.ended.notify_waiters();
    }

    /// The peer gave up this stream.
    pub(crate) fn reset(&self, id: u32) {
        self.state().break_off(id);
        self.0.ended.notify_waiters();
    }

    /// The peer is gone: readers and writers fail.
    pub(crate) fn close(&self) {
        self.state().close();
        self.0.room.notify_one();
        self.0.ended.notify_waiters();
    }

    /// Sends what there is, and nothing after it.
    pub(crate) fn end(&self) {
        self.state().ending = true;
        self.0.output.notify_one();
    }

    /// Queues an answer, and waits while there are many.
    pub(crate) async fn control(&self, frame: Bytes) {
        self.wait_for_answers().await;
        self.control_now(frame);
    }

    /// Waits while many answers wait for the socket: what asks for another is not read off
    /// it before the peer takes some.
    pub(crate) async fn wait_for_answers(&self) {
        loop {
            let room = self.0.room.notified();
            if self.state().control.len() < MAX_CONTROL {
                return;
            }
            room.await;
        }
    }

    /// Queues an answer of which there are never many.
    pub(crate) fn control_now(&self, frame: Bytes) {
        self.state().control.push_back(frame);
        self.0.output.notify_one();
    }

    /// The peer lets `bytes` more be sent; `false` when that is more than a window can be.
    pub(crate) fn credit(&self, id: u32, bytes: u32) -> bool {
        let mut state = self.state();
        state.counted = true;
        let limit = i64::from(i32::MAX);
        let fits = if id == 0 {
            state.window += i64::from(bytes);
            state.window <= limit
        } else if let Some(stream) = state.streams.get_mut(&id) {
            stream.window += i64::from(bytes);
            stream.window <= limit
        } else {
            true
        };
        state.look_at_all();
        self.0.output.notify_one();
        fits
    }

    /// The peer says how large its windows are before it updates them.
    pub(crate) fn set_initial_window(&self, bytes: u32) {
        let mut state = self.state();
        state.counted = true;
        let change = i64::from(bytes) - state.initial_window;
        state.initial_window = i64::from(bytes);
        for stream in state.streams.values_mut() {
            stream.window += change;
        }
        state.look_at_all();
        self.0.output.notify_one();
    }

    /// Queues the frame that ends the connection, unless there was one.
    pub(crate) fn farewell(&self, frame: Bytes) {
        let said = std::mem::replace(&mut self.state().farewell, true);
        if !said {
            self.control_now(frame);
        }
    }

    /// What to send next.
    pub(crate) async fn next(&self) -> Output {
        loop {
            let output = self.0.output.notified();
            if let Some(next) = self.try_next() {
                return next;
            }
            output.await;
        }
    }

    /// What to send next, if there is something.
    pub(crate) fn try_next(&self) -> Option<Output> {
        let mut state = self.state();
        let next = state.pick();
        if matches!(next, Some(Output::Control(_))) {
            self.0.room.notify_one();
        }
        if matches!(next, Some(Output::Data { last: true, .. } | Output::Reset { .. })) {
            self.0.ended.notify_waiters();
        }
        next
    }

    /// Waits until everything that was written was taken by the transport.
    pub(crate) async fn drained(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.state().is_drained() {
                return;
            }
            ended.await;
        }
    }
}
