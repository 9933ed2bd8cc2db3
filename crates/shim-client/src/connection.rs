//! One connection to a shim, dialled again when it was lost.
//!
//! ttrpc's client fails every later call for ever once its socket has closed, so the
//! socket is wrapped: its drop tells that the connection is gone, and the next call
//! dials. A call that was under way is not repeated: the shim may have done it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protobuf::Message;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use ttrpc::asynchronous::transport::Socket;
use ttrpc::proto::Request;
use ttrpc::{Code, asynchronous::Client};

use crate::bootstrap::{ApiVersion, Bootstrap};
use crate::socket::Watched;
use crate::{Error, ProcessId, ShimInfo};

/// How long one connect(2) may take, a listening shim's full backlog included.
const DIAL: Duration = Duration::from_secs(5);
/// Pause before a lost connection is dialled again, so that a shim which accepts and
/// closes at once does not spin this daemon.
const REDIAL_PAUSE: Duration = Duration::from_millis(20);

/// A running shim. Clones share one connection.
#[derive(Clone)]
pub struct Shim {
    inner: Arc<Inner>,
}

struct Inner {
    address: String,
    /// Set once the shim said that it does not have v3 of the Task API.
    old: AtomicBool,
    /// What the shim said it is, once it was asked.
    info: OnceCell<ShimInfo>,
    /// Set while its last answer is overdue.
    silent: AtomicBool,
    /// How many answers it has given.
    answers: AtomicU64,
    link: Mutex<Option<Link>>,
}

#[derive(Clone)]
struct Link {
    client: Client,
    lost: watch::Receiver<()>,
    peer: Option<u32>,
}

impl fmt::Debug for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shim").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

impl Shim {
    /// Connects to a shim that is known to run; `deadline` bounds the whole attempt.
    ///
    /// A socket that refuses is tried again until then only if `patient`: a shim just
    /// started may not listen yet, one that was running and refuses is dead.
    pub async fn connect(
        bootstrap: &Bootstrap,
        deadline: Duration,
        patient: bool,
    ) -> Result<Self, Error> {
        let until = Instant::now() + deadline;
        let link = loop {
            match dial(&bootstrap.address, until).await {
                Err(Error::Connect { .. }) if patient && Instant::now() + REDIAL_PAUSE < until => {
                    sleep(REDIAL_PAUSE).await;
                }
                other => break other?,
            }
        };
        Ok(Self::with(bootstrap, Some(link)))
    }

    /// A shim that is known to run and cannot be connected to now: the first call dials.
    #[must_use]
    pub fn at(bootstrap: &Bootstrap) -> Self {
        Self::with(bootstrap, None)
    }

    fn with(bootstrap: &Bootstrap, link: Option<Link>) -> Self {
        let inner = Inner {
            address: bootstrap.address.clone(),
            old: AtomicBool::new(bootstrap.version == ApiVersion::V2),
            info: OnceCell::new(),
            silent: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            link: Mutex::new(link),
        };
        Self { inner: Arc::new(inner) }
    }

    /// `unix://` and the path of its socket.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// How to find it again.
    #[must_use]
    pub fn bootstrap(&self) -> Bootstrap {
        Bootstrap { version: self.version(), address: self.inner.address.clone() }
    }

    /// The process that listens on the socket, by the kernel's word (SO_PEERCRED).
    ///
    /// For a shim that is not ours this may be the `start` command, long gone, which
    /// gives `None`: ask [`Shim::shim_pid`] then.
    #[must_use]
    pub fn peer(&self) -> Option<ProcessId> {
        let peer = self.current().and_then(|link| link.peer)?;
        ProcessId::of(peer).ok()
    }

    /// Resolves once the shim is gone: the connection was lost and nobody listens on its
    /// socket any more.
    pub async fn closed(&self) {
        loop {
            match self.link(Instant::now() + DIAL).await {
                Ok(mut link) => while link.lost.changed().await.is_ok() {},
                Err(error) if error.is_gone() => return,
                Err(_) => {}
            }
            sleep(REDIAL_PAUSE).await;
        }
    }

    pub(crate) fn known(&self) -> &OnceCell<ShimInfo> {
        &self.inner.info
    }

    /// Whether the last answer that came due did not come, nor any other while it was waited
    /// for: the shim was stopped, or hangs.
    /// Any answer says that it is back.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.inner.silent.load(Ordering::Relaxed)
    }

    /// How many answers it has given. A shim has one thread: one that is busy with hundreds of
    /// requests answers a new one late, and others meanwhile.
    pub(crate) fn answers(&self) -> u64 {
        self.inner.answers.load(Ordering::Relaxed)
    }

    pub(crate) fn version(&self) -> ApiVersion {
        if self.inner.old.load(Ordering::Relaxed) { ApiVersion::V2 } else { ApiVersion::V3 }
    }

    /// Calls `method` of the Task API in the version that the shim has.
    pub(crate) async fn task<Q: Message, R: Message>(
        &self,
        method: &'static str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<R, Error> {
        let version = self.version();
        match self.call(version.service(), method, request, deadline).await {
            Err(error) if version == ApiVersion::V3 && lacks_service(&error) => {
                let answer = self.call(ApiVersion::V2.service(), method, request, deadline).await?;
                self.inner.old.store(true, Ordering::Relaxed);
                Ok(answer)
            }
            other => other,
        }
    }

    /// Calls `method` of `service`; without a deadline only the connection's end ends it.
    pub(crate) async fn call<Q: Message, R: Message>(
        &self,
        service: &str,
        method: &'static str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<R, Error> {
        let payload =
            request.write_to_bytes().map_err(|source| Error::Message { method, source })?;
        let answer = self.raw(service, method, payload, deadline).await?;
        R::parse_from_bytes(&answer).map_err(|source| Error::Message { method, source })
    }

    /// As [`Shim::call`], over encoded messages.
    pub(crate) async fn raw(
        &self,
        service: &str,
        method: &'static str,
        payload: Vec<u8>,
        deadline: Option<Duration>,
    ) -> Result<Vec<u8>, Error> {
        let before = self.answers();
        let late = |deadline| {
            if self.answers() == before {
                self.inner.silent.store(true, Ordering::Relaxed);
            }
            Error::Deadline { address: self.inner.address.clone(), method, deadline }
        };
        let mut request = Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.payload = payload;
        let Some(deadline) = deadline else {
            let link = self.link(Instant::now() + DIAL).await?;
            return self.answer(method, link.client.request(request).await);
        };
        let until = Instant::now() + deadline;
        let link = self.link(until).await?;
        request.timeout_nano = i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX);
        // The shim gets the same deadline, so ours runs out a little later: its answer
        // says what it was doing.
        match timeout_at(until + REDIAL_PAUSE, link.client.request(request)).await {
            Err(_) => Err(late(deadline)),
            Ok(Err(ttrpc::Error::Others(text))) if text.contains("deadline elapsed") => {
                Err(late(deadline))
            }
            Ok(answer) => self.answer(method, answer),
        }
    }

    fn answer(
        &self,
        method: &'static str,
        answer: ttrpc::Result<ttrpc::proto::Response>,
    ) -> Result<Vec<u8>, Error> {
        if matches!(answer, Ok(_) | Err(ttrpc::Error::RpcStatus(_))) {
            self.inner.answers.fetch_add(1, Ordering::Relaxed);
            self.inner.silent.store(false, Ordering::Relaxed);
        }
        match answer {
            Ok(response) => Ok(response.payload),
            Err(ttrpc::Error::RpcStatus(status)) => {
                Err(Error::Rpc { method, code: status.code(), message: status.message })
            }
            Err(other) => Err(Error::Lost {
                address: self.inner.address.clone(),
                method,
                cause: other.to_string(),
            }),
        }
    }

    fn current(&self) -> Option<Link> {
        let link = self.inner.link.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        // The sender lives in the socket: an error here means that the socket is gone.
        link.lost.has_changed().is_ok().then_some(link)
    }

    async fn link(&self, until: Instant) -> Result<Link, Error> {
        if let Some(link) = self.current() {
            return Ok(link);
        }
        let link = dial(&self.inner.address, until).await?;
        *self.inner.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }
}

/// Whether the shim said that it does not know the service, hence did nothing.
fn lacks_service(error: &Error) -> bool {
    let Error::Rpc { code, message, .. } = error else { return false };
    matches!(code, Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED | Code::NOT_FOUND)
        && message.contains("service")
        && (message.contains(ApiVersion::V3.service()) || message.contains("does not exist"))
}

async fn dial(address: &str, until: Instant) -> Result<Link, Error> {
    let refused = |source| Error::Connect { address: address.to_owned(), source };
    let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
    let left = until.saturating_duration_since(Instant::now()).min(DIAL);
    let stream = timeout(left, UnixStream::connect(path))
        .await
        .map_err(|_| refused(io::ErrorKind::TimedOut.into()))?
        .map_err(refused)?;
    let peer = stream.peer_cred().map_err(refused)?;
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Error::Peer { address: address.to_owned(), uid: peer.uid() });
    }
    let (socket, lost) = Watched::new(stream);
    let client = Client::new(Socket::new(socket));
    let peer = peer.pid().and_then(|pid| u32::try_from(pid).ok());
    Ok(Link { client, lost, peer })
}

#[cfg(test)]
mod tests {
    use ttrpc::proto::Response;

    use super::*;
    use crate::socket::tests::serve;

    #[test]
    fn only_a_missing_service_makes_the_client_fall_back() {
        let rpc =
            |code, message: &str| Error::Rpc { method: "Create", code, message: message.into() };
        for (error, expected) in [
            (rpc(Code::INVALID_ARGUMENT, "containerd.task.v3.Task service does not exist"), true),
            (rpc(Code::UNIMPLEMENTED, "service containerd.task.v3.Task"), true),
            (rpc(Code::INVALID_ARGUMENT, "mount source does not exist"), false),
            (rpc(Code::NOT_FOUND, "container a does not exist"), false),
            (rpc(Code::INTERNAL, "containerd.task.v3.Task service does not exist"), false),
        ] {
            assert_eq!(lacks_service(&error), expected, "{error}");
        }
    }

    #[tokio::test]
    async fn a_lost_connection_is_dialled_again_and_a_gone_shim_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let address = format!("unix://{}", path.display());
        let bootstrap = Bootstrap { version: ApiVersion::V3, address };
        let shim = Shim::connect(&bootstrap, Duration::from_secs(1), false).await.unwrap();

        let first = listener.accept().await.unwrap();
        let waiter = tokio::spawn({
            let shim = shim.clone();
            async move { shim.closed().await }
        });
        drop(first);
        let second = timeout(Duration::from_secs(2), listener.accept()).await.unwrap().unwrap();
        assert!(!waiter.is_finished(), "the shim answers again");
        while shim.peer().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(shim.peer().unwrap().pid, std::process::id());

        drop(listener);
        drop(second);
        timeout(Duration::from_secs(2), waiter).await.unwrap().unwrap();
        let error = shim.call::<Request, Request>("s", "m", &Request::new(), Some(DIAL)).await;
        assert_eq!(error.unwrap_err().kind(), berth_model::ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_shim_that_does_not_answer_runs_into_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let address = format!("unix://{}", path.display());
        let bootstrap = Bootstrap { version: ApiVersion::V3, address };
        let shim = Shim::connect(&bootstrap, Duration::from_secs(1), false).await.unwrap();
        let _held = listener.accept().await.unwrap();

        let deadline = Some(Duration::from_millis(30));
        let error = shim.call::<Request, Request>("s", "m", &Request::new(), deadline).await;
        assert_eq!(error.unwrap_err().kind(), berth_model::ErrorKind::DeadlineExceeded);
        assert!(shim.is_silent());
    }

    /// teeth: crates/shim-client/src/connection.rs: `self.inner.answers.fetch_add(1, Ordering::Relaxed);` → ``
    #[tokio::test]
    async fn a_shim_that_answers_others_is_busy_and_not_silent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let address = format!("unix://{}", path.display());
        let bootstrap = Bootstrap { version: ApiVersion::V3, address };
        let shim = Shim::connect(&bootstrap, Duration::from_secs(1), false).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(served, |request| request.method == "m"));
        let (pod, request) = ("pod".parse().unwrap(), Request::new());
        let ping = shim.sandbox_ping(&pod, Duration::from_millis(200));
        let mut ping = std::pin::pin!(ping);
        let alive = loop {
            tokio::select! {
                biased;
                alive = &mut ping => break alive,
                answer = shim.call::<_, Response>("s", "m", &request, Some(DIAL)) => {
                    answer.unwrap();
                }
            }
        };
        alive.unwrap();
        assert!(!shim.is_silent());
        let dead = shim.sandbox_ping(&pod, Duration::from_millis(30)).await.unwrap_err();
        assert_eq!(dead.kind(), berth_model::ErrorKind::DeadlineExceeded);
        assert!(shim.is_silent());
    }
}
