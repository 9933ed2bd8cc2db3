//! The client, and the repository that one pull speaks to.

use std::sync::{Arc, PoisonError, RwLock};

use berth_model::{Digest, Reference};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::Incoming;

use crate::access::Access;
use crate::attempts::{Attempts, Failure};
use crate::body::Body;
use crate::fallback::{Need, Repositories};
use crate::transport::Transport;
use crate::{
    Auth, Blob, Config, Distrusted, Error, MAX_MANIFEST_BYTES, Manifest, MediaType, Subject,
};

/// Speaks to any registry. Clones share connections and configuration.
#[derive(Clone, Debug)]
pub struct Client(Arc<RwLock<Arc<Transport>>>);

impl Client {
    /// Makes a client; nothing is opened yet, and trust is read at the first use of TLS.
    ///
    /// # Errors
    /// [`Error::Proxy`] if a proxy's address is unusable.
    pub fn new(config: Config) -> Result<Self, Error> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(Transport::new(config)?)))))
    }

    /// Gives all clones another configuration; pulls under way go on with the one they have.
    ///
    /// # Errors
    /// As [`Client::new`]; the configuration is the old one then.
    pub fn configure(&self, config: Config) -> Result<(), Error> {
        let transport = Arc::new(Transport::new(config)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = transport;
        Ok(())
    }

    /// The repository of `reference`, with the credentials of one pull.
    #[must_use]
    pub fn repository(&self, reference: &Reference, auth: Option<Auth>) -> Repository {
        let transport = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        Repository(Arc::new(Repositories::new(transport, reference.clone(), auth)))
    }
}

/// One repository of one registry, as one set of credentials sees it, at all hosts that
/// serve it. Clones share the tokens that those were traded for.
#[derive(Clone, Debug)]
pub struct Repository(Arc<Repositories>);

impl Repository {
    /// Fetches what the reference names: its digest if it has one, else its tag.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::WrongDigest`] if the bytes are not what the reference or
    /// the registry's `Docker-Content-Digest` says.
    #[tracing::instrument(name = "registry.resolve", skip_all, fields(image.ref = %self.0.reference()), level = "debug")]
    pub async fn resolve(&self) -> Result<Manifest, Error> {
        let reference = self.0.reference();
        match reference.digest() {
            Some(digest) => self.fetch(reference, Some(*digest), &digest.to_string()).await,
            None => {
                let tag = reference.tag().expect("a reference has a tag or a digest");
                self.fetch(reference, None, tag).await
            }
        }
    }

    /// Fetches the manifest or index with this digest.
    ///
    /// # Errors
    /// As [`Repository::resolve`].
    #[tracing::instrument(name = "registry.manifest", skip_all, fields(image.ref = %self.0.reference(), %digest), level = "debug")]
    pub async fn manifest(&self, digest: &Digest) -> Result<Manifest, Error> {
        let reference = self.0.reference().with_digest(*digest);
        self.fetch(&reference, Some(*digest), &digest.to_string()).await
    }

    /// Begins to fetch the blob `digest` of exactly `size` bytes.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::WrongSize`] if the registry announces another size.
    pub async fn blob(&self, digest: &Digest, size: u64) -> Result<Blob, Error> {
        let blob = self.0.blob(digest, size, &Distrusted::default()).await?;
        Ok(blob.expect("there is a host that is not distrusted"))
    }

    /// As [`Repository::blob`], of hosts that are not `distrusted`; `None` if there is none.
    ///
    /// # Errors
    /// As [`Repository::blob`].
    pub async fn blob_of_others(
        &self,
        digest: &Digest,
        size: u64,
        distrusted: &Distrusted,
    ) -> Result<Option<Blob>, Error> {
        self.0.blob(digest, size, distrusted).await
    }

    async fn fetch(
        &self,
        reference: &Reference,
        expected: Option<Digest>,
        name: &str,
    ) -> Result<Manifest, Error> {
        // A tag is believed of fewer hosts than bytes that are verified.
        let need = if expected.is_some() { Need::Pull } else { Need::Resolve };
        let path = format!("manifests/{name}");
        let ask = |access: Arc<Access>, is_last| {
            let (path, subject) = (path.clone(), access.subject(reference.clone(), None));
            async move { fetch(&access, &subject, expected, &path, is_last).await }
        };
        self.0.ask(need, reference, ask).await
    }
}

async fn fetch(
    access: &Access,
    subject: &Subject,
    expected: Option<Digest>,
    path: &str,
    is_last: bool,
) -> Result<Manifest, Error> {
    let mut attempts = Attempts::new(access.config(), is_last);
    loop {
        match fetch_once(access, subject, expected, path).await {
            Ok(manifest) => return Ok(manifest),
            Err(failure) => attempts.pause(failure).await?,
        }
    }
}

async fn fetch_once(
    access: &Access,
    subject: &Subject,
    expected: Option<Digest>,
    path: &str,
) -> Result<Manifest, Failure> {
    let mut headers = HeaderMap::new();
    for media_type in MediaType::ALL {
        headers.append(ACCEPT, HeaderValue::from_static(media_type.as_str()));
    }
    let reply = access.get(subject, path, &headers).await?;
    if reply.response.status() != StatusCode::OK {
        return Err(access.refusal(subject, reply).await);
    }
    let media_type = media_type(subject, reply.response.headers())?;
    let announced = announced_digest(&reply.response);
    let mut body = Body::new(reply.response.into_body(), access.config());
    let bytes = body.collect(MAX_MANIFEST_BYTES).await.map_err(|why| why.about(subject))?;
    let digest = verify(subject, &bytes, expected.into_iter().chain(announced))?;
    Ok(Manifest { media_type, digest, bytes })
}

fn media_type(subject: &Subject, headers: &HeaderMap) -> Result<MediaType, Error> {
    let name = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let name: String = String::from_utf8_lossy(name).chars().take(100).collect();
    if let Some(known) = MediaType::parse(&name) {
        return Ok(known);
    }
    let (subject, media_type) = (subject.clone(), name);
    // Either of "+json" and "+prettyjws".
    if media_type.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        return Err(Error::Schema1 { subject, media_type });
    }
    Err(Error::MediaType { subject, media_type })
}

/// A registry may use another algorithm there; such a digest is not compared.
fn announced_digest(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

fn verify(
    subject: &Subject,
    bytes: &Bytes,
    expected: impl Iterator<Item = Digest>,
) -> Result<Digest, Error> {
    let actual = Digest::of(bytes);
    for expected in expected {
        if expected != actual {
            return Err(Error::WrongDigest { subject: subject.clone(), expected, actual });
        }
    }
    Ok(actual)
}
