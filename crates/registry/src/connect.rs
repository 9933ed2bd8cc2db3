//! Connections: TCP, through a proxy if one is configured, under TLS if the scheme says so.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::error::Source;
use crate::host::is_loopback;
use crate::{Config, Error, Proxies};

type Io = TokioIo<TcpStream>;

/// Opens the TCP part of a connection, by way of a proxy where one is configured.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    routes: Routes,
}

impl Connector {
    pub(crate) fn new(config: &Config, routes: Routes) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(config.connect_timeout));
        Self { tcp, routes }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Source;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Source>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Source>> {
        self.tcp.poll_ready(cx).map_err(Source::from)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let proxy = self.routes.proxy(&target);
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(Stream { io: tcp.call(target).await?, forwarded: false });
            };
            if target.scheme() == Some(&Scheme::HTTPS) {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                return Ok(Stream { io: tunnel.call(target).await?, forwarded: false });
            }
            Ok(Stream { io: tcp.call(proxy.uri().clone()).await?, forwarded: true })
        })
    }
}

/// Which hosts are reached by which proxy.
#[derive(Clone, Debug)]
pub(crate) struct Routes(Arc<Matcher>);

impl Routes {
    pub(crate) fn new(proxies: &Proxies) -> Result<Self, Error> {
        check(&proxies.http, "http", "http://host.invalid/")?;
        check(&proxies.https, "https", "https://host.invalid/")?;
        let matcher = Matcher::builder()
            .http(proxies.http.clone())
            .https(proxies.https.clone())
            .no(proxies.direct.clone())
            .build();
        Ok(Self(Arc::new(matcher)))
    }

    fn proxy(&self, target: &Uri) -> Option<Intercept> {
        if is_loopback(target.host()?) {
            return None;
        }
        self.0.intercept(target)
    }

    /// What a request that a proxy forwards must show the proxy; a tunnel showed it before.
    pub(crate) fn forward_auth(&self, target: &Uri) -> Option<HeaderValue> {
        if target.scheme() != Some(&Scheme::HTTP) {
            return None;
        }
        self.proxy(target)?.basic_auth().cloned()
    }
}

/// The matcher ignores an address that it cannot use, and traffic would go directly.
fn check(address: &str, name: &'static str, probe: &'static str) -> Result<(), Error> {
    if address.is_empty() {
        return Ok(());
    }
    let matcher = Matcher::builder().all(address.to_owned()).build();
    let usable = matcher
        .intercept(&Uri::from_static(probe))
        .is_some_and(|proxy| proxy.uri().scheme() == Some(&Scheme::HTTP));
    if usable { Ok(()) } else { Err(Error::Proxy(name)) }
}

/// A TCP connection to a host, or to the proxy that forwards to it.
#[derive(Debug)]
pub(crate) struct Stream {
    io: Io,
    /// Requests name the whole address then (RFC 9112, absolute-form).
    forwarded: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.forwarded)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_proxy_is_refused_rather_than_passed_by() {
        let refused = |http: &str| {
            Routes::new(&Proxies { http: http.to_owned(), ..Proxies::default() }).is_err()
        };
        for bad in ["socks5://p:1080", "https://p:443", "ftp://p", "::"] {
            assert!(refused(bad), "{bad}");
        }
        for good in ["", "p:3128", "http://u:p@p:3128"] {
            assert!(!refused(good), "{good}");
        }
    }

    #[test]
    fn loopback_and_direct_hosts_pass_by_the_proxy() {
        let routes = Routes::new(&Proxies {
            http: "http://u:p@proxy.example:3128".into(),
            https: String::new(),
            direct: "direct.example".into(),
        })
        .unwrap();
        let proxied = |uri| routes.forward_auth(&Uri::from_static(uri)).is_some();
        assert!(proxied("http://r.example/"));
        assert!(!proxied("https://r.example/"));
        assert!(!proxied("http://direct.example/"));
        assert!(!proxied("http://127.0.0.1:5000/"));
        assert!(!proxied("http://[::1]:5000/"));
    }
}
