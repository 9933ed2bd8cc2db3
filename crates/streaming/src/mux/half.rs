//! A session's ends of a stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Mux;
use super::state::{CREDIT, Side};

/// What the peer sends on one stream.
#[derive(Debug)]
pub(crate) struct Reader {
    mux: Mux,
    id: u32,
}

impl Reader {
    pub(super) fn new(mux: Mux, id: u32) -> Self {
        Self { mux, id }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.mux.state();
        let Some(stream) = state.streams.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        if stream.inbound.is_empty() {
            return match (stream.reset, stream.finished) {
                (true, _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                (false, true) => Poll::Ready(Ok(())),
                (false, false) => {
                    stream.reader.wait(context);
                    Poll::Pending
                }
            };
        }
        let (front, _) = stream.inbound.as_slices();
        let length = front.len().min(buffer.remaining());
        buffer.put_slice(&front[..length]);
        stream.inbound.drain(..length);
        let left = stream.inbound.len();
        if stream.inbound.capacity() / 4 > left {
            // What has been read keeps no memory, and an idle stream none at all.
            stream.inbound.shrink_to(2 * left);
        }
        let read = u32::try_from(length).unwrap_or(u32::MAX);
        stream.consumed = stream.consumed.saturating_add(read);
        let tell = stream.consumed >= CREDIT;
        state.inbound -= length;
        state.consumed = state.consumed.saturating_add(read);
        if tell {
            state.look_at(self.id);
        }
        if tell || state.consumed >= CREDIT {
            self.mux.0.output.notify_one();
        }
        self.mux.0.room.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.mux.state();
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        stream.reader = Side::Dropped;
        let unread = std::mem::take(&mut stream.inbound).len();
        state.inbound -= unread;
        state.consume_unread(unread);
        state.look_at(self.id);
        state.forget_ended(self.id);
        self.mux.0.room.notify_one();
        self.mux.0.output.notify_one();
    }
}

/// What the peer gets on one stream. Dropped, it tells the peer that this was all.
#[derive(Debug)]
pub(crate) struct Writer {
    mux: Mux,
    id: u32,
    ended: bool,
}

impl Writer {
    pub(super) fn new(mux: Mux, id: u32) -> Self {
        Self { mux, id, ended: false }
    }

    fn end(&mut self) {
        self.ended = true;
        let mut state = self.mux.state();
        let Some(stream) = state.streams.get_mut(&self.id) else { return };
        stream.writer = Side::Dropped;
        state.look_at(self.id);
        state.forget_ended(self.id);
        self.mux.0.output.notify_one();
        self.mux.0.ended.notify_waiters();
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.mux.state();
        let stream = state.streams.get(&self.id).filter(|stream| !stream.reset);
        if stream.filter(|_| !self.ended).is_none() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = state.put(self.id, data);
        if length == 0 && !data.is_empty() {
            if let Some(stream) = state.streams.get_mut(&self.id) {
                stream.writer.wait(context);
            }
            return Poll::Pending;
        }
        state.look_at(self.id);
        self.mux.0.output.notify_one();
        Poll::Ready(Ok(length))
    }

    /// What was written is on its way; only the peer knows when it got it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended {
            self.end();
        }
    }
}

/// Both directions of one stream.
#[derive(Debug)]
pub(crate) struct Pair(pub(crate) Reader, pub(crate) Writer);

impl AsyncRead for Pair {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pair {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().1).poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().1).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().1).poll_shutdown(context)
    }
}
