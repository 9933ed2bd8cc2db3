//! A registry that misbehaves on demand: HTTP/1.1 on an ephemeral loopback port, every
//! request recorded, every answer the test's own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use berth_model::{Digest, Reference};
use berth_registry::{Client, Config};
use berth_testkit::tls::Certificate;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// How many requests with this method and target came before.
    pub(crate) earlier: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }
}

/// An answer, and how much of it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
    /// After so many bytes of the body, the sender falters.
    until: usize,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Close,
    Hang,
    Trickle(Duration),
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Vec::new());
        Self { status, headers, body, chunked: false, until: usize::MAX, then: Then::Close }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn manifest(body: impl Into<Vec<u8>>) -> Self {
        Self::ok(body).header("content-type", "application/vnd.oci.image.manifest.v1+json")
    }

    pub(crate) fn redirect(to: impl ToString) -> Self {
        Self::status(307).header("location", to)
    }

    /// Answers a closed range as a good registry does, and any other request in full.
    pub(crate) fn ranged(body: &[u8], request: &Request) -> Self {
        let Some(range) = request.header("range") else { return Self::ok(body) };
        let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
        let total = body.len();
        Self { body: body[start..=end].to_vec(), ..Self::status(206) }
            .header("content-range", format!("bytes {start}-{end}/{total}"))
    }

    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    pub(crate) fn cut_after(self, until: usize) -> Self {
        Self { until, then: Then::Close, ..self }
    }

    pub(crate) fn hang_after(self, until: usize) -> Self {
        Self { until, then: Then::Hang, ..self }
    }

    /// The rest byte by byte.
    pub(crate) fn trickle_after(self, until: usize, pause: Duration) -> Self {
        Self { until, then: Then::Trickle(pause), ..self }
    }

    async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<bool> {
        let mut head = format!("HTTP/1.1 {} x\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &match self.chunked {
            true => "transfer-encoding: chunked\r\n\r\n".to_owned(),
            false => format!("content-length: {}\r\n\r\n", self.body.len()),
        };
        stream.write_all(head.as_bytes()).await?;
        let (now, later) = self.body.split_at(self.until.min(self.body.len()));
        if self.chunked {
            stream.write_all(format!("{:x}\r\n", now.len()).as_bytes()).await?;
            stream.write_all(now).await?;
            stream.write_all(b"\r\n0\r\n\r\n").await?;
            return Ok(true);
        }
        stream.write_all(now).await?;
        stream.flush().await?;
        if later.is_empty() && self.until == usize::MAX {
            return Ok(true);
        }
        match self.then {
            Then::Close => {}
            Then::Hang => std::future::pending().await,
            Then::Trickle(pause) => {
                for byte in later {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Ok(false)
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// Serves until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    accepting: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, answer).await
    }

    /// Under [`certificate`].
    pub(crate) async fn start_tls(
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let certificates = CertificateDer::pem_file_iter(&certificate().certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(&certificate().key).unwrap();
        let builder = Self::tls().with_no_client_auth();
        let config =
            builder.with_single_cert(certificates.map(Result::unwrap).collect(), key).unwrap();
        Self::serve(Some(TlsAcceptor::from(Arc::new(config))), answer).await
    }

    /// Under [`certificate`], for clients that show one of its authority.
    pub(crate) async fn start_mutual(
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let pem = |path: &Path| -> Vec<_> {
            CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(pem(&certificate().authority));
        let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), ring);
        let key = PrivateKeyDer::from_pem_file(&certificate().key).unwrap();
        let config = Self::tls()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(pem(&certificate().certificate), key)
            .unwrap();
        Self::serve(Some(TlsAcceptor::from(Arc::new(config))), answer).await
    }

    fn tls() -> ConfigBuilder<ServerConfig, WantsVerifier> {
        let ring = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap()
    }

    async fn serve(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer): (_, Arc<Answer>) = (Arc::clone(&requests), Arc::new(answer));
        let accepting = tokio::spawn(async move {
            // Aborting this task drops the set, which aborts the connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (seen, answer, tls) = (Arc::clone(&seen), Arc::clone(&answer), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => connection(stream, &seen, &*answer).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => connection(stream, &seen, &*answer).await,
                            Err(error) => eprintln!("tls: {error}"),
                        },
                    }
                });
            }
        })
        .abort_handle();
        Self { address, requests, accepting }
    }

    /// What came so far, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

async fn connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: &Mutex<Vec<Request>>,
    answer: &Answer,
) {
    while let Some(mut request) = read_request(&mut stream).await {
        {
            let mut seen = seen.lock().unwrap();
            let same = |it: &&Request| it.method == request.method && it.target == request.target;
            request.earlier = seen.iter().filter(same).count();
            seen.push(request.clone());
        }
        if request.method == "CONNECT" && request.header("x-refuse").is_none() {
            return tunnel(stream, answer(&request)).await;
        }
        // A client that hung up is no failure of the server.
        if !answer(&request).write(&mut stream).await.unwrap_or(false) {
            return;
        }
    }
}

/// The reply's `location` is where a tunnel leads, whatever was asked for.
async fn tunnel(mut stream: impl AsyncRead + AsyncWrite + Unpin, reply: Reply) {
    let target = &reply.headers.iter().find(|(name, _)| name == "location").unwrap().1;
    let mut target = TcpStream::connect(target).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    tokio::io::copy_bidirectional(&mut stream, &mut target).await.ok();
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut request = Request { method, target, headers, body: String::new(), earlier: 0 };
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    request.body = String::from_utf8(body).unwrap();
    Some(request)
}

/// Of `r.example`, `localhost` and 127.0.0.1, made once for these tests.
pub(crate) fn certificate() -> &'static Certificate {
    static CERTIFICATE: OnceLock<Certificate> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Certificate::write(&dir, &["r.example", "localhost", "127.0.0.1"]).unwrap()
    })
}

/// A client whose waits are short enough for a test.
pub(crate) fn config() -> Config {
    Config {
        response_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        backoff: Duration::from_millis(2),
        max_backoff: Duration::from_secs(2),
        certificate_authorities: vec![certificate().authority.clone()],
        ..Config::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(config()).unwrap()
}

/// `length` bytes that differ from place to place, and their digest.
pub(crate) fn blob(length: usize) -> (Vec<u8>, Digest) {
    let bytes: Vec<u8> =
        (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap()).collect();
    let digest = Digest::of(&bytes);
    (bytes, digest)
}

/// The text of `error` and of all its sources, and its `Debug`: all that could be logged.
pub(crate) fn all_of(error: &impl std::error::Error) -> String {
    let mut text = format!("{error:?} {error}");
    let mut next = error.source();
    while let Some(source) = next {
        text += &format!(" {source:?} {source}");
        next = source.source();
    }
    text
}
