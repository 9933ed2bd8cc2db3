//! The listener: one connection, one request, one session.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::{Request, StatusCode};
use berth_model::{ContainerId, SandboxId};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{Backend, Duplex};
use crate::config::{Config, Error};
use crate::forward::Target;
use crate::http::{self, Answer, Transport};
use crate::origin;
use crate::peer::{self, Watched};
use crate::remote::Wanted;
use crate::session::Limits;
use crate::tls::Tls;
use crate::token::{Promise, Tokens};
use crate::upgrade::{self, Context};

/// How long a client may take to make its request, and its handshake before.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Most connections without a good token yet.
const MAX_REQUESTS: usize = 512;
/// Most sessions at once.
const MAX_SESSIONS: usize = 1000;
/// Largest head of a request, bytes, and most headers in it. What passed through kubelet
/// carries the headers of the user's own request.
const MAX_HEAD_BYTES: usize = 32 << 10;
const MAX_HEADERS: usize = 100;
/// How long to wait where the system has no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where clients are sent.
#[derive(Clone, Debug)]
pub struct Urls {
    tokens: Arc<Tokens>,
    base: Arc<str>,
}

/// Which streams of a process a client gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streams {
    /// The client writes to it.
    pub stdin: bool,
    /// The client reads from it.
    pub stdout: bool,
    /// The client reads from it; never with a terminal.
    pub stderr: bool,
    /// Whether it is a terminal, of which the client tells the size.
    pub tty: bool,
}

impl From<Streams> for Wanted {
    fn from(streams: Streams) -> Self {
        let Streams { stdin, stdout, stderr, tty } = streams;
        Self { stdin, stdout, stderr, tty }
    }
}

impl Urls {
    /// What every URL begins with: scheme, address and port.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A URL to run `command` at, once.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] when a thousand clients have not come yet.
    pub fn exec(
        &self,
        container: ContainerId,
        command: Vec<String>,
        streams: Streams,
    ) -> Result<String, Error> {
        self.issue(Promise::Exec { container, command, wanted: streams.into() })
    }

    /// A URL to attach to a container at, once.
    ///
    /// # Errors
    ///
    /// As for [`Self::exec`].
    pub fn attach(&self, container: ContainerId, streams: Streams) -> Result<String, Error> {
        self.issue(Promise::Attach { container, wanted: streams.into() })
    }

    /// A URL to forward ports of a sandbox at, once: `ports`, or all where there is none.
    ///
    /// # Errors
    ///
    /// As for [`Self::exec`].
    pub fn port_forward(&self, sandbox: SandboxId, ports: Vec<u16>) -> Result<String, Error> {
        self.issue(Promise::Forward(Target { sandbox, ports }))
    }

    fn issue(&self, promise: Promise) -> Result<String, Error> {
        let verb = promise.verb();
        Ok(format!("{}/{verb}/{}", self.base, self.tokens.issue(promise, Instant::now())?))
    }
}

/// A server that listens, and does not serve yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
    limits: Limits,
    urls: Urls,
}

impl Server {
    /// Listens as `config` says.
    ///
    /// # Errors
    ///
    /// An address that is not loopback without a certificate, or any that cannot be
    /// listened on; a certificate that cannot be used.
    pub fn bind(config: Config) -> Result<Self, Error> {
        config.check()?;
        let address = config.address;
        let tls = config.tls.map(Tls::load).transpose()?;
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{address}").into();
        let limits = Limits {
            idle: config.idle_timeout,
            creation: config.creation_timeout,
            finish: config.finish_timeout,
        };
        Ok(Self { listener, address, tls, limits, urls: Urls { tokens: Arc::default(), base } })
    }

    /// What sends clients here.
    #[must_use]
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Serves until `shutdown`, when every session is ended; returns when all have.
    ///
    /// # Errors
    ///
    /// [`Error::Listen`] where the listener cannot be watched.
    pub async fn serve<B: Backend>(
        self,
        backend: B,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let address = self.address;
        let failed = |source| Error::Listen { address, source };
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(failed)?;
        let front = Arc::new(Front {
            backend: Arc::new(backend),
            tokens: self.urls.tokens,
            address,
            tls: self.tls,
            limits: self.limits,
            sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
            shutdown: shutdown.clone(),
        });
        let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
        let connections = TaskTracker::new();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "accept a stream");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Whoever floods is turned away; who has a token already is not touched.
            let Ok(permit) = requests.clone().try_acquire_owned() else { continue };
            connections.spawn(front.clone().connection(socket, permit));
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

/// What every connection is served with.
#[derive(Debug)]
struct Front<B> {
    backend: Arc<B>,
    tokens: Arc<Tokens>,
    address: SocketAddr,
    tls: Option<Tls>,
    limits: Limits,
    sessions: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// A request whose answer is that its connection changes.
struct Accepted {
    upgrade: OnUpgrade,
    transport: Transport,
    promise: Promise,
    session: OwnedSemaphorePermit,
}

impl<B: Backend> Front<B> {
    async fn connection(self: Arc<Self>, socket: TcpStream, request: OwnedSemaphorePermit) {
        let watched = Watched::new(&socket);
        let shutdown = self.shutdown.clone();
        let asked = timeout(REQUEST_TIME, self.clone().request(socket));
        let Some(Ok(Some(accepted))) = shutdown.run_until_cancelled(asked).await else { return };
        drop(request);
        let Accepted { upgrade, transport, promise, session } = accepted;
        let verb = promise.verb();
        let Ok(socket) = upgrade.await else { return };
        let context = Context {
            backend: self.backend.clone(),
            limits: self.limits,
            shutdown,
            peer: watched.peer(),
        };
        tracing::debug!(verb, ?transport, "stream began");
        let served = upgrade::serve(TokioIo::new(socket), transport, promise, &context).await;
        match served {
            Ok(()) => tracing::debug!(verb, "stream ended"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(verb, error, "stream was cut off");
            }
        }
        drop(session);
    }

    /// Answers the one request of a connection.
    async fn request(self: Arc<Self>, socket: TcpStream) -> Option<Accepted> {
        // Keystrokes do not wait for more of them.
        socket.set_nodelay(true).ok()?;
        peer::keep_asking(&socket).ok()?;
        let socket: Box<dyn Duplex> = match &self.tls {
            None => Box::new(socket),
            Some(tls) => Box::new(tls.acceptor().accept(socket).await.ok()?),
        };
        let accepted = Mutex::new(None);
        let answer = service_fn(|request| {
            let answer = self.answer(request).unwrap_or_else(|refusal| (*refusal, None));
            if let Some(upgrade) = answer.1 {
                *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
            }
            std::future::ready(Ok::<Answer, Infallible>(answer.0))
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIME)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(socket), answer)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(error = &error as &dyn std::error::Error, "request of a stream");
        }
        accepted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<(Answer, Option<Accepted>), Box<Answer>> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, _) = request.into_parts();
        if !origin::is_allowed(&parts.headers, self.address) {
            return Err(http::refusal(StatusCode::FORBIDDEN, "host or origin is not allowed"));
        }
        let (verb, token) = http::verb_and_token(&parts)?;
        let promise =
            self.tokens.redeem(verb, token, Instant::now()).ok_or_else(http::not_found)?;
        let session = self.sessions.clone().try_acquire_owned().map_err(|_| {
            http::refusal(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open")
        })?;
        let (transport, answer) = http::negotiate(&parts, &promise)?;
        Ok((answer, Some(Accepted { upgrade, transport, promise, session })))
    }
}
