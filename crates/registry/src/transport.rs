//! One request at a time: connections, deadlines, redirects.

use std::error::Error as StdError;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_model::Digest;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::attempts::Failure;
use crate::body::Body;
use crate::connect::{Connector, Routes};
use crate::host::{PlainHosts, resolve_location, same_origin};
use crate::hosts::Host;
use crate::tls::Material;
use crate::{Config, Error, Subject};

const MAX_REDIRECTS: usize = 5;
/// Bounds the headers of a response, and the pieces that a body comes in.
const MAX_BUFFER_BYTES: usize = 256 << 10;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("berth/", env!("CARGO_PKG_VERSION")));
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

/// Most clients that are kept for hosts with certificates of their own.
const MAX_OWN_CLIENTS: usize = 32;

/// Speaks TLS or plain HTTP, as the scheme says.
pub(crate) type HttpsClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// What all repositories share.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) config: Config,
    pub(crate) plain_hosts: PlainHosts,
    routes: Routes,
    plain: Client<Connector, Full<Bytes>>,
    /// Made at the first use of TLS, which has to read the node's certificates.
    tls: OnceCell<HttpsClient>,
    /// For hosts with certificates of their own, by what they are made from, oldest first;
    /// one that changed on disk is another.
    own: Mutex<Vec<(OwnKey, HttpsClient)>>,
}

type OwnKey = (Digest, Option<Duration>);

/// A response that is no redirect; its body is not read yet.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) response: Response<Incoming>,
    /// Whether every hop had the scheme, host and port that were asked. Only then did
    /// the other side see credentials, and only then may it ask for them.
    pub(crate) from_origin: bool,
}

impl Transport {
    pub(crate) fn new(config: Config) -> Result<Self, Error> {
        let routes = Routes::new(&config.proxies)?;
        let plain_hosts = PlainHosts::new(&config.plain_http);
        let plain = client(Connector::new(&config, routes.clone()));
        Ok(Self { config, plain_hosts, routes, plain, tls: OnceCell::new(), own: Mutex::default() })
    }

    /// Asks for `uri` on behalf of `host`, and follows redirects without the authorization.
    pub(crate) async fn get(
        &self,
        host: &Host,
        subject: &Subject,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Reply, Failure> {
        let mut at = uri.clone();
        let mut from_origin = true;
        for _ in 0..=MAX_REDIRECTS {
            from_origin = from_origin && same_origin(uri, &at);
            let mut request = Request::new(Full::default());
            *request.headers_mut() = host.headers_for(&at);
            request.headers_mut().extend(headers.clone());
            if let Some(authorization) = authorization.filter(|_| from_origin) {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            let response = self.send(host, subject, &at, request).await?;
            if !is_redirect(&response) {
                return Ok(Reply { response, from_origin });
            }
            at = self.next_hop(subject, &at, &response)?;
            self.drain(response).await;
        }
        Err(redirect(subject, "more than five times"))
    }

    /// Sends a form; a redirect is an answer like any other, since the form is secret.
    pub(crate) async fn post(
        &self,
        host: &Host,
        subject: &Subject,
        uri: &Uri,
        form: String,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::from(form));
        *request.method_mut() = http::Method::POST;
        *request.headers_mut() = host.headers_for(uri);
        request.headers_mut().insert(CONTENT_TYPE, FORM);
        self.send(host, subject, uri, request).await
    }

    /// Reads what is left of a short body, so that its connection can be used again.
    pub(crate) async fn drain(&self, response: Response<Incoming>) {
        const SHORT_BYTES: u64 = 16 << 10;
        let mut body = Body::new(response.into_body(), &self.config);
        // Whatever goes wrong closes the connection, as leaving the rest would have.
        body.collect(SHORT_BYTES).await.ok();
    }

    async fn send(
        &self,
        host: &Host,
        subject: &Subject,
        uri: &Uri,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        *request.uri_mut() = uri.clone();
        request.headers_mut().insert(USER_AGENT, AGENT);
        if let Some(auth) = self.routes.forward_auth(uri) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, auth);
        }
        let sent = match host.client_for(uri) {
            Some(client) => client.request(request),
            None if uri.scheme() == Some(&Scheme::HTTPS) => self.tls().await?.request(request),
            None => self.plain.request(request),
        };
        let waited = self.config.response_timeout;
        match timeout(waited, sent).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(subject, uri, error)),
            Err(_) => Err(Failure::passing(Error::Stalled { subject: subject.clone(), waited })),
        }
    }

    async fn tls(&self) -> Result<&HttpsClient, Error> {
        let make = || async {
            let authorities = self.config.certificate_authorities.clone();
            let read = move || Material::read(&authorities, &[], false)?.config();
            let config = tokio::task::spawn_blocking(read)
                .await
                .expect("reading certificates neither panics nor is cancelled")?;
            Ok(self.https(config, None))
        };
        self.tls.get_or_try_init(make).await
    }

    /// The client for hosts whose TLS is made from `material`. May read files: for a thread
    /// that may block.
    pub(crate) fn own_client(
        &self,
        material: &Material,
        connect_timeout: Option<Duration>,
    ) -> Result<HttpsClient, Error> {
        let key = (material.digest(), connect_timeout);
        let own = || self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = own().iter().find(|(known, _)| *known == key) {
            return Ok(client.clone());
        }
        let made = self.https(material.config()?, connect_timeout);
        let mut own = own();
        if own.len() >= MAX_OWN_CLIENTS {
            own.remove(0);
        }
        own.push((key, made.clone()));
        Ok(made)
    }

    fn https(&self, config: ClientConfig, connect_timeout: Option<Duration>) -> HttpsClient {
        let connect_timeout = connect_timeout.unwrap_or(self.config.connect_timeout);
        let config_of_tcp = Config { connect_timeout, ..self.config.clone() };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(&config_of_tcp, self.routes.clone()));
        client(connector)
    }

    fn next_hop<B>(
        &self,
        subject: &Subject,
        at: &Uri,
        response: &Response<B>,
    ) -> Result<Uri, Failure> {
        let from_plain = at.scheme() == Some(&Scheme::HTTP);
        let next = response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| resolve_location(at, location))
            .ok_or_else(|| redirect(subject, "to no usable address"))?;
        // A mirror that `hosts.toml` has spoken to plainly may lead to itself.
        let plain = next.scheme() == Some(&Scheme::HTTP);
        if plain && !same_origin(at, &next) && !self.plain_hosts.allow(&next, from_plain) {
            return Err(redirect(
                subject,
                "to a host without TLS that the configuration does not name",
            ));
        }
        Ok(next)
    }
}

fn client<C>(connector: C) -> Client<C, Full<Bytes>>
where
    C: hyper_util::client::legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(std::time::Duration::from_secs(30))
        .pool_max_idle_per_host(8)
        .http1_max_buf_size(MAX_BUFFER_BYTES)
        .build(connector)
}

fn is_redirect<B>(response: &Response<B>) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirect(subject: &Subject, why: &'static str) -> Failure {
    Failure::last(Error::Redirect { subject: subject.clone(), why })
}

fn failed(subject: &Subject, uri: &Uri, error: ClientError) -> Failure {
    let subject = subject.clone();
    if !error.is_connect() {
        return Failure::passing(Error::Broken { subject, source: error.into() });
    }
    let untrusted = is_tls_error(&error);
    let peer = uri.authority().map(ToString::to_string).unwrap_or_default();
    let error = Error::Connect { subject, peer, source: error.into() };
    // A certificate does not become valid by waiting; a host may come up.
    if untrusted { Failure::last(error) } else { Failure::passing(error) }
}

fn is_tls_error(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        // `io::Error` shows what it wraps as itself, and not as its source.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/registry/src/transport.rs: `plain && !same_origin(at, &next)` → `plain`
    #[test]
    fn a_host_without_tls_leads_to_itself_and_one_under_tls_never_there() {
        let transport = Transport::new(Config::default()).unwrap();
        let subject = Subject::new("r.example/a:t".parse().unwrap(), None, "m.example".into());
        let leads = |from: &'static str, to: &str| {
            let response = Response::builder().header(LOCATION, to).body(()).unwrap();
            transport.next_hop(&subject, &Uri::from_static(from), &response).is_ok()
        };
        assert!(leads("http://m.example/v2/a", "/v2/b"));
        assert!(leads("http://m.example/v2/a", "http://M.example:80/v2/b"));
        assert!(leads("http://m.example/v2/a", "https://m.example/v2/b"));
        assert!(!leads("http://m.example/v2/a", "http://m.example:8080/v2/b"));
        assert!(!leads("http://m.example/v2/a", "http://other.example/v2/b"));
        assert!(!leads("https://m.example/v2/a", "http://m.example/v2/b"));
    }
}
