//! Numbers for Prometheus, served to this node only.
//!
//! Off unless configured. Whoever can connect can read them, and nothing is asked of them:
//! so an address of the loopback, or a socket, and no other.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_engine::Engine;
use berth_model::{ContainerState, SandboxState};
use berth_telemetry::{Metrics, Present};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listen::listen;

/// Most connections at once; a further one waits.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may last: one scrape, or one after the other.
const LIFE: Duration = Duration::from_secs(60);
/// Between the start of a request and the end of its headers.
const HEADER: Duration = Duration::from_secs(5);
/// Bounds the headers of a request.
const MAX_BUFFER_BYTES: usize = 16 << 10;
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const FORMAT: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Where numbers are served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// Reads `text`; empty is nowhere.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let complaint = || {
            format!("must be an address of the loopback with a port, or unix:/PATH, not {text:?}")
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            let usable = path.is_absolute() && path.as_os_str().len() <= 107;
            return if usable { Ok(Some(Self::Unix(path))) } else { Err(complaint()) };
        }
        let address = text.parse::<SocketAddr>().ok().filter(|it| it.ip().is_loopback());
        address.map(|address| Some(Self::Tcp(address))).ok_or_else(complaint)
    }
}

/// Bound, and not served yet.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Must be called on a tokio runtime.
    pub(crate) async fn bind(address: &Address) -> Result<Self> {
        Ok(match address {
            Address::Tcp(address) => {
                let bound = TcpListener::bind(address).await;
                Self::Tcp(bound.with_context(|| format!("metrics.address: listen on {address}"))?)
            }
            Address::Unix(path) => {
                Self::Unix(UnixListener::from_std(listen(path).context("metrics.address")?)?)
            }
        })
    }

    /// Serves numbers until `shutdown`.
    pub(crate) async fn serve(self, metrics: Metrics, engine: Engine, shutdown: CancellationToken) {
        let (slots, tasks) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), TaskTracker::new());
        loop {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            let stream = tokio::select! {
                stream = self.accept() => stream,
                () = shutdown.cancelled() => break,
            };
            let Ok(stream) = stream else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (metrics, engine, stop) = (metrics.clone(), engine.clone(), shutdown.clone());
            tasks.spawn(async move {
                let talk = tokio::time::timeout(LIFE, converse(stream, metrics, engine));
                // However it ends, the next scrape begins anew.
                stop.run_until_cancelled(talk).await;
                drop(slot);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Duplex>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// A connection of either kind.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

async fn converse(stream: Box<dyn Duplex>, metrics: Metrics, engine: Engine) {
    let answer = service_fn(|request| {
        let answered = answer(&request, &metrics, &engine);
        async { Ok::<_, Infallible>(answered) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics ended badly");
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, engine: &Engine) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match metrics.text(&present(engine)) {
        Ok(text) => {
            response.headers_mut().insert(CONTENT_TYPE, FORMAT);
            *response.body_mut() = Full::from(text);
        }
        Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    response
}

fn present(engine: &Engine) -> Present {
    let (mut sandboxes, mut containers) =
        ([("ready", 0), ("not_ready", 0)], [("created", 0), ("running", 0), ("exited", 0)]);
    for sandbox in engine.sandboxes() {
        let index = usize::from(sandbox.state != SandboxState::Ready);
        sandboxes[index].1 += 1;
    }
    for container in engine.containers() {
        let index = match container.state {
            ContainerState::Created => 0,
            ContainerState::Running { .. } => 1,
            ContainerState::Exited { .. } => 2,
        };
        containers[index].1 += 1;
    }
    let undo = engine.undo_status();
    Present {
        sandboxes: sandboxes.into(),
        containers: containers.into(),
        undo_unfinished: undo.unfinished.len(),
        undo_failures: undo.failures,
        undo_recovered: undo.recovered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_node_is_served() {
        assert_eq!(Address::parse(""), Ok(None));
        for good in ["127.0.0.1:9500", "127.1.2.3:1", "[::1]:9500"] {
            assert_eq!(Address::parse(good), Ok(Some(Address::Tcp(good.parse().unwrap()))));
        }
        assert_eq!(Address::parse("unix:/run/m"), Ok(Some(Address::Unix("/run/m".into()))));
        let long = format!("unix:/{}", "x".repeat(107));
        for bad in ["0.0.0.0:9", "[::]:9", "10.0.0.1:9", "localhost:9", "127.0.0.1", ":9", &long] {
            let error = Address::parse(bad).unwrap_err();
            assert!(error.contains("loopback"), "{error}");
        }
    }
}
