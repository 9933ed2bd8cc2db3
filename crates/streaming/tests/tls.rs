//! What is listened to from elsewhere is encrypted, with a certificate that can be renewed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use berth_model::SandboxId;
use berth_streaming::{Config, TlsFiles};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use support::Node;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Writes a certificate for loopback and its key, and gives what trusts it alone.
fn renew(files: &TlsFiles) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    // By a rename, as whoever renews it does.
    let replace = |path: &Path, pem: String| {
        let new = path.with_extension("new");
        std::fs::write(&new, pem).unwrap();
        std::fs::rename(&new, path).unwrap();
    };
    replace(&files.key, key.serialize_pem());
    replace(&files.certificate, certificate.pem());
    certificate.der().clone()
}

/// Sends one request over TLS to a server that has to prove itself with `trusted`.
async fn ask(
    address: SocketAddr,
    path: &str,
    trusted: &CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    let mut socket = TlsConnector::from(Arc::new(client)).connect(name, socket).await?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
         Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    socket.read_exact(&mut head).await?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// teeth: crates/streaming/src/tls.rs: `stamp != current.stamp` → `current.stamp.is_none()`
#[tokio::test]
async fn d11_streams_are_encrypted_and_their_certificate_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let files =
        TlsFiles { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
    let old = renew(&files);
    let node = Node::with(Config { tls: Some(files.clone()), ..Config::default() });
    let forward = || node.urls.port_forward(SandboxId::new("s1").unwrap(), vec![]).unwrap();
    let parts = |url: String| {
        let url = url.strip_prefix("https://").unwrap().to_owned();
        let (address, path) = url.split_once('/').unwrap();
        (address.parse::<SocketAddr>().unwrap(), format!("/{path}"))
    };
    let upgraded = "HTTP/1.1 101";
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (address, path) = parts(forward());
        assert_eq!(ask(address, &path, &old, &[version]).await.unwrap(), upgraded);
    }

    // Who speaks no TLS is not answered, and loses no token by it.
    let (address, path) = parts(forward());
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(format!("POST {path} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It may be reset instead of closed.
    _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert_eq!(ask(address, &path, &old, rustls::ALL_VERSIONS).await.unwrap(), upgraded);

    let new = renew(&files);
    let (address, path) = parts(forward());
    ask(address, &path, &old, rustls::ALL_VERSIONS).await.unwrap_err();
    assert_eq!(ask(address, &path, &new, rustls::ALL_VERSIONS).await.unwrap(), upgraded);

    // What cannot be used leaves what was there.
    std::fs::write(&files.certificate, "nonsense").unwrap();
    let (address, path) = parts(forward());
    assert_eq!(ask(address, &path, &new, rustls::ALL_VERSIONS).await.unwrap(), upgraded);
    node.end().await;
}
