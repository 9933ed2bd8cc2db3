//! Port-forward: connections into a sandbox, each of them a pair of streams.
//!
//! kubectl opens a pair for each connection of its user. There are as many pairs as the
//! transport has streams or channels for; a stream that makes no sense, or is one too many,
//! is refused without harm to the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_model::SandboxId;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::backend::Backend;
use crate::mux::{Mux, Pair, Reader, Writer};
use crate::spdy::{Headers, Incoming};

/// Longest request id, bytes: it is kept until both streams of its connection are there.
/// Those of kubectl are decimal numbers.
const MAX_REQUEST_ID_BYTES: usize = 64;

/// What a client was promised by its token.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) sandbox: SandboxId,
    /// The ports that may be reached; all of them when there is none.
    pub(crate) ports: Vec<u16>,
}

impl Target {
    fn allows(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// A connection that a SPDY client has opened half of.
#[derive(Debug)]
struct Half {
    data: Option<(u16, Pair)>,
    error: Option<(Reader, Writer)>,
    deadline: Instant,
}

/// Forwards whatever pairs of streams a SPDY client opens, until it opens no more.
pub(crate) async fn over_spdy<B: Backend>(
    backend: Arc<B>,
    target: Target,
    mut opened: mpsc::Receiver<Incoming>,
    limit: Duration,
) -> Vec<Reader> {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let late = halves.values().map(|half| half.deadline).min();
        tokio::select! {
            incoming = opened.recv() => {
                let Some(incoming) = incoming else { break };
                let Some((id, half)) = add(&mut halves, incoming, &target, limit).await else {
                    continue;
                };
                if let Half { data: Some((port, data)), error: Some(error), .. } = half {
                    let (backend, target) = (backend.clone(), target.clone());
                    connections.spawn(connect(backend, target, port, data, error));
                } else {
                    halves.insert(id, half);
                }
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(error = &error as &dyn std::error::Error, "port-forward died");
                }
            }
            () = sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                expire(&mut halves).await;
            }
        }
    }
    Vec::new()
}

/// Puts a stream beside the other one of its connection.
async fn add(
    halves: &mut HashMap<String, Half>,
    incoming: Incoming,
    target: &Target,
    limit: Duration,
) -> Option<(String, Half)> {
    let known = read_headers(&incoming.headers).filter(|(port, _)| target.allows(*port));
    let known = known.and_then(|(port, is_data)| {
        request_id(&incoming, is_data).map(|request| (port, is_data, request))
    });
    let Some((port, is_data, id)) = known else {
        incoming.refuse();
        return None;
    };
    let deadline = Instant::now() + limit;
    let mut half = halves.remove(&id).unwrap_or(Half { data: None, error: None, deadline });
    if if is_data { half.data.is_some() } else { half.error.is_some() } {
        let kind = if is_data { "data" } else { "error" };
        let words =
            format!("error processing stream for request {id}: {kind} stream already assigned");
        incoming.refuse();
        tell(half.error.take(), &words).await;
        return None;
    }
    let (reader, writer) = incoming.accept().ok()?;
    if is_data {
        half.data = Some((port, Pair(reader, writer)));
    } else {
        half.error = Some((reader, writer));
    }
    Some((id, half))
}

/// The port and whether it is the stream for data; `None` when either makes no sense.
fn read_headers(headers: &Headers) -> Option<(u16, bool)> {
    let port = headers.get("port")?;
    // Numbers in Rust may have a sign.
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
    let is_data = match headers.get("streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    (port != 0).then_some((port, is_data))
}

/// What ties two streams together; `None` when it is too long. Clients that do not say open
/// the error stream first.
fn request_id(incoming: &Incoming, is_data: bool) -> Option<String> {
    match incoming.headers.get("requestid") {
        Some(id) if id.len() > MAX_REQUEST_ID_BYTES => None,
        Some(id) if !id.is_empty() => Some(id.to_owned()),
        _ if is_data => Some(format!("stream {}", incoming.id.saturating_sub(2))),
        _ => Some(format!("stream {}", incoming.id)),
    }
}

async fn expire(halves: &mut HashMap<String, Half>) {
    let now = Instant::now();
    let late: Vec<String> =
        halves.iter().filter(|(_, half)| half.deadline <= now).map(|(id, _)| id.clone()).collect();
    for id in late {
        if let Some(half) = halves.remove(&id) {
            tell(half.error, &format!("request {id}: timed out waiting for streams")).await;
        }
    }
}

/// Writes to an error stream. One message always has room.
async fn tell(error: Option<(Reader, Writer)>, words: &str) {
    if let Some((_, mut error)) = error {
        // It fails when the client is gone.
        _ = error.write_all(words.as_bytes()).await;
    }
}

async fn connect<B: Backend>(
    backend: Arc<B>,
    target: Target,
    port: u16,
    data: Pair,
    error: (Reader, Writer),
) {
    let ended = backend.port_forward(&target.sandbox, port, Box::new(data)).await;
    if let Err(failure) = ended {
        let failure = berth_model::chain(&*failure);
        tracing::debug!(sandbox.id = %target.sandbox, port, failure, "port-forward failed");
        let sandbox = &target.sandbox;
        let words = format!("error forwarding port {port} to pod {sandbox}, uid : {failure}");
        tell(Some(error), &words).await;
    }
}

/// Forwards the promised ports over numbered channels: two each, for data and for errors,
/// that begin with the port's number, lowest byte first.
///
/// The channels are open when this returns, before anything is read: a client may send at once.
pub(crate) fn over_channels<B: Backend>(
    backend: Arc<B>,
    target: Target,
    mux: &Mux,
) -> impl Future<Output = Vec<Reader>> + use<B> {
    let ports: Vec<_> = (target.ports.iter().zip((0..).step_by(2)))
        .map(|(port, channel)| (*port, mux.open(channel, false), mux.open(channel + 1, false)))
        .collect();
    async move {
        let mut connections = JoinSet::new();
        for (port, (reader, mut data), (unread, mut error)) in ports {
            // Both have room for two bytes.
            _ = data.write_all(&port.to_le_bytes()).await;
            _ = error.write_all(&port.to_le_bytes()).await;
            let (backend, target) = (backend.clone(), target.clone());
            let pair = Pair(reader, data);
            connections.spawn(connect(backend, target, port, pair, (unread, error)));
        }
        while let Some(ended) = connections.join_next().await {
            if let Err(error) = ended {
                tracing::error!(error = &error as &dyn std::error::Error, "port-forward died");
            }
        }
        Vec::new()
    }
}
