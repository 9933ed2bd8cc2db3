//! One plugin's socket: calls in both directions, each with its deadline.
//!
//! Three tasks own it: one reads, one writes, one serves what the plugin asks, one request
//! at a time. The first that fails closes it for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_api::nri::{PLUGIN as PLUGIN_SERVICE, RUNTIME as RUNTIME_SERVICE};
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::CallError;
use crate::frames::{Demultiplexer, Kind, Message, PLUGIN, RUNTIME, encode};
use crate::nri::Answer;

/// Bytes read at one time.
const READ: usize = 64 << 10;
/// Messages that wait to be written, and requests that wait to be served; a plugin that
/// sends more requests than that is cut off.
const QUEUE: usize = 8;

/// gRPC's codes, which ttrpc speaks.
const INVALID_ARGUMENT: i32 = 3;
const UNIMPLEMENTED: i32 = 12;

/// ttrpc's `Request`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) payload: Bytes,
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
}

/// ttrpc's `Response`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
}

/// gRPC's `Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { code: INVALID_ARGUMENT, message: message.into() }
    }

    pub(crate) fn unimplemented(method: &str) -> Self {
        Self { code: UNIMPLEMENTED, message: format!("no method {method}") }
    }
}

/// What a plugin may ask.
pub(crate) trait Service: Send + Sync {
    fn call<'a>(&'a self, method: &'a str, payload: Bytes) -> Answer<'a, Result<Vec<u8>, Status>>;
}

/// One plugin's socket; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    out: mpsc::Sender<Vec<u8>>,
    calls: Mutex<Calls>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Calls {
    /// Streams of a client have odd numbers, and each a greater one than the last.
    next: u32,
    waiting: HashMap<u32, oneshot::Sender<Response>>,
}

impl Connection {
    /// Takes the socket over; its tasks end with `closed`.
    pub(crate) fn open(
        stream: UnixStream,
        service: Arc<dyn Service>,
        tasks: &TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        let (out, outgoing) = mpsc::channel(QUEUE);
        let (asked, requests) = mpsc::channel(QUEUE);
        let calls = Mutex::new(Calls { next: 1, waiting: HashMap::new() });
        let shared = Arc::new(Shared { out, calls, closed });
        let (reader, writer) = stream.into_split();
        let end = |shared: &Arc<Shared>| Arc::clone(shared).closed.clone().drop_guard();
        tasks.spawn({
            let (shared, guard) = (Arc::clone(&shared), end(&shared));
            async move {
                let _guard = guard;
                let closed = shared.closed.clone();
                closed.run_until_cancelled(shared.read(reader, asked)).await;
                shared.calls().waiting.clear();
            }
        });
        tasks.spawn({
            let (closed, guard) = (shared.closed.clone(), end(&shared));
            async move {
                let _guard = guard;
                closed.run_until_cancelled(write(writer, outgoing)).await;
            }
        });
        tasks.spawn({
            let (shared, guard) = (Arc::clone(&shared), end(&shared));
            async move {
                let _guard = guard;
                let closed = shared.closed.clone();
                closed.run_until_cancelled(shared.serve(service, requests)).await;
            }
        });
        Self { shared }
    }

    /// Asks the plugin.
    pub(crate) async fn call<A: prost::Message + Default>(
        &self,
        method: &str,
        request: &impl prost::Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let call = self.shared.call(method, request.encode_to_vec(), limit);
        let response = timeout(limit, call).await.map_err(|_| CallError::Deadline(limit))??;
        match response.status {
            Some(status) if status.code != 0 => {
                Err(CallError::Status { code: status.code, message: status.message })
            }
            _ => Ok(A::decode(response.payload)?),
        }
    }

    /// Cuts the plugin off.
    pub(crate) fn close(&self) {
        self.shared.closed.cancel();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    /// Resolves once it is closed.
    pub(crate) async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }
}

impl Shared {
    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(
        &self,
        method: &str,
        payload: Vec<u8>,
        limit: Duration,
    ) -> Result<Response, CallError> {
        let request = Request {
            service: PLUGIN_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: payload.into(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let request = request.encode_to_vec();
        let slot = self.out.reserve().await.map_err(|_| CallError::Closed)?;
        let (answer, answered) = oneshot::channel();
        {
            // Numbered and queued in one step: the plugin expects them in order.
            let mut calls = self.calls();
            if self.closed.is_cancelled() {
                return Err(CallError::Closed);
            }
            let stream = calls.next;
            let message = encode(PLUGIN, stream, Kind::Request, &request)
                .map_err(|_| CallError::TooLarge(request.len()))?;
            calls.next = stream.wrapping_add(2);
            calls.waiting.retain(|_, waiting| !waiting.is_closed());
            calls.waiting.insert(stream, answer);
            slot.send(message);
        }
        answered.await.map_err(|_| CallError::Closed)
    }

    /// Reads until the plugin is gone, or sends what no plugin may.
    async fn read(&self, mut reader: OwnedReadHalf, asked: mpsc::Sender<(u32, Request)>) {
        let mut demultiplexer = Demultiplexer::default();
        let mut input = BytesMut::new();
        loop {
            input.reserve(READ);
            match reader.read_buf(&mut input).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
            loop {
                match demultiplexer.next(&mut input) {
                    Ok(Some(message)) => {
                        if !self.received(message, &asked) {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a plugin sent what no plugin may");
                        return;
                    }
                }
            }
        }
    }

    /// Says whether the plugin may go on.
    fn received(&self, message: Message, asked: &mpsc::Sender<(u32, Request)>) -> bool {
        match (message.connection, message.kind) {
            (PLUGIN, Kind::Response) => {
                // Nobody may wait for it any more.
                let waiting = self.calls().waiting.remove(&message.stream);
                let Ok(response) = Response::decode(message.payload) else { return false };
                if let Some(waiting) = waiting {
                    let _unheard = waiting.send(response);
                }
                true
            }
            (RUNTIME, Kind::Request) => match Request::decode(message.payload) {
                Ok(request) => asked.try_send((message.stream, request)).is_ok(),
                Err(_) => false,
            },
            _ => true,
        }
    }

    async fn serve(&self, service: Arc<dyn Service>, mut requests: mpsc::Receiver<(u32, Request)>) {
        while let Some((stream, request)) = requests.recv().await {
            let outcome = if request.service == RUNTIME_SERVICE {
                service.call(&request.method, request.payload).await
            } else {
                Err(Status::unimplemented(&request.method))
            };
            let response = match outcome {
                Ok(payload) => Response { status: None, payload: payload.into() },
                Err(status) => Response { status: Some(status), payload: Bytes::new() },
            };
            let encoded = encode(RUNTIME, stream, Kind::Response, &response.encode_to_vec());
            let Ok(message) = encoded else { return };
            if self.out.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// Writes until the plugin is gone. One that does not read is cut off by who waits for its
/// answer.
async fn write(mut writer: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = outgoing.recv().await {
        if writer.write_all(&message).await.is_err() {
            return;
        }
    }
}
