//! A shim's socket, as ttrpc's client gets it.
//!
//! What ttrpc writes is taken at once, and what the kernel has no room for goes out later, in
//! the same order. ttrpc closes a connection when a request is given up of which a part was
//! written, and with it fails the requests of everybody else; and a shim that is busy reads
//! late, so that many of them wait here at one time. So a shim also gets what was given up
//! meanwhile, in its order: its verbs can be repeated.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Bytes that may wait: thousands of requests. With more, who writes waits.
const MOST: usize = 4 << 20;

/// A socket that takes what is written, and whose drop closes a channel.
pub(crate) struct Watched {
    stream: UnixStream,
    /// What was taken and is not written yet.
    rest: VecDeque<u8>,
    /// Who reads, and sees to the rest as well: it always waits, while who writes has gone on.
    reader: Option<Waker>,
    /// Who waits until less is left.
    writer: Option<Waker>,
    _alive: watch::Sender<()>,
}

impl Watched {
    /// The receiver hears of the socket's end.
    pub(crate) fn new(stream: UnixStream) -> (Self, watch::Receiver<()>) {
        let (alive, lost) = watch::channel(());
        let rest = VecDeque::new();
        (Self { stream, rest, reader: None, writer: None, _alive: alive }, lost)
    }

    /// Writes what is left; `cx` is woken when there is room for more of it.
    fn write_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let (front, _) = self.rest.as_slices();
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, front))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.drain(..written);
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        // Most connections never need it again.
        self.rest = VecDeque::new();
        Poll::Ready(Ok(()))
    }

    /// Takes what is to be written, `now` being what came of writing it at once.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
        now: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if now.is_ready() {
            return now;
        }
        if self.rest.len() >= MOST {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let before = self.rest.len();
        slices.iter().for_each(|slice| self.rest.extend(slice.iter()));
        if let Some(reader) = &self.reader {
            reader.wake_by_ref();
        }
        Poll::Ready(Ok(self.rest.len() - before))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            self.reader = Some(cx.waker().clone());
        }
        if !self.rest.is_empty()
            && let Poll::Ready(Err(error)) = self.write_rest(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let now = match self.rest.is_empty() {
            true => Pin::new(&mut self.stream).poll_write(cx, bytes),
            false => Poll::Pending,
        };
        self.take(cx, &[io::IoSlice::new(bytes)], now)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let now = match self.rest.is_empty() {
            true => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
            false => Poll::Pending,
        };
        self.take(cx, slices, now)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// What was taken needs no more hurry.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use protobuf::Message as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::yield_now;
    use ttrpc::asynchronous::{Client, transport::Socket};
    use ttrpc::proto::{Request, Response};

    use super::*;

    /// More than fits between two processes (net.core.wmem_default).
    const REQUESTS: usize = 3000;
    const PAYLOAD: usize = 1 << 10;

    /// Reads requests until nothing comes any more, and answers those that it is told to.
    pub(crate) async fn serve(mut shim: UnixStream, answers: impl Fn(&Request) -> bool) {
        let answer = Response::new().write_to_bytes().unwrap();
        let length = u32::try_from(answer.len()).unwrap().to_be_bytes();
        // Length, stream, type and flags: containerd/ttrpc, PROTOCOL.md.
        let mut header = [0; 10];
        while shim.read_exact(&mut header).await.is_ok() {
            let [n0, n1, n2, n3, s0, s1, s2, s3, kind, _] = header;
            assert_eq!(kind, 1, "the stream is torn");
            let size = u32::from_be_bytes([n0, n1, n2, n3]);
            let mut request = vec![0; usize::try_from(size).unwrap()];
            shim.read_exact(&mut request).await.unwrap();
            if !answers(&Request::parse_from_bytes(&request).unwrap()) {
                continue;
            }
            let [l0, l1, l2, l3] = length;
            let mut frame = vec![l0, l1, l2, l3, s0, s1, s2, s3, 2, 0];
            frame.extend_from_slice(&answer);
            shim.write_all(&frame).await.unwrap();
        }
    }

    /// teeth: crates/shim-client/src/socket.rs: `if now.is_ready() {` → `if true {`
    #[tokio::test]
    async fn requests_that_are_given_up_cost_the_others_nothing() {
        let (near, far) = UnixStream::pair().unwrap();
        let (socket, lost) = Watched::new(near);
        let client = Client::new(Socket::new(socket));
        let ask = |_| {
            let client = client.clone();
            tokio::spawn(async move {
                let request = Request { payload: vec![b'x'; PAYLOAD], ..Default::default() };
                client.request(request).await
            })
        };
        let mut asked: Vec<_> = (0..REQUESTS).map(ask).collect();
        // Until nobody gets any further.
        for _ in 0..10 * REQUESTS {
            yield_now().await;
        }
        let kept = asked.split_off(REQUESTS - 50);
        asked.iter().for_each(|request| request.abort());
        for request in asked {
            assert!(request.await.unwrap_err().is_cancelled());
        }
        let shim = tokio::spawn(serve(far, |_| true));
        let answered = async {
            for request in kept {
                request.await.unwrap().unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), answered).await.unwrap();
        assert!(lost.has_changed().is_ok(), "the connection was closed");
        drop(client);
        shim.await.unwrap();
    }
}
