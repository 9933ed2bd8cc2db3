//! The server's certificate, read again when its files change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::{Error, TlsFiles};

/// Largest certificate or key file, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What makes a plain connection one with TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
}

struct Current {
    stamp: Option<Stamp>,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

/// What changes when a file does: inode, size, and time of change, of both.
type Stamp = [(u64, u64, i64, i64); 2];

impl Tls {
    pub(crate) fn load(files: TlsFiles) -> Result<Self, Error> {
        let stamp = stamp(&files);
        let acceptor = load(&files)?;
        Ok(Self { files, current: Mutex::new(Current { stamp, acceptor }) })
    }

    /// The acceptor for the next connection. Files that cannot be used leave the old one.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let stamp = stamp(&self.files);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp.is_some() && stamp != current.stamp {
            current.stamp = stamp;
            let certificate = self.files.certificate.display();
            match load(&self.files) {
                Ok(acceptor) => {
                    current.acceptor = acceptor;
                    tracing::info!(%certificate, "certificate of the streaming server changed");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%certificate, error, "the old certificate stays in use");
                }
            }
        }
        current.acceptor.clone()
    }
}

pub(crate) fn check(files: &TlsFiles) -> Result<(), Error> {
    load(files).map(drop)
}

fn stamp(files: &TlsFiles) -> Option<Stamp> {
    let of = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
    };
    Some([of(&files.certificate)?, of(&files.key)?])
}

fn load(files: &TlsFiles) -> Result<TlsAcceptor, Error> {
    let certificates = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| pem(&files.certificate, "a damaged certificate"))?;
    if certificates.is_empty() {
        return Err(pem(&files.certificate, "no certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| pem(&files.key, "no private key"))?;
    let tls = |source| Error::Tls { path: files.certificate.clone(), source };
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(tls)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn pem(path: &Path, what: &'static str) -> Error {
    Error::Pem { path: path.to_owned(), what }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_BYTES {
        return Err(pem(path, "more bytes than any certificate"));
    }
    fs::read(path).map_err(failed)
}
