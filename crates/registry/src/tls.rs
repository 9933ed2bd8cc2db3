//! Whom TLS trusts, and how we show who we are.
//!
//! The node's own store comes first, since that is where its operator adds and distrusts
//! authorities. A bare Debian node has none (`ca-certificates` is not essential), so
//! Mozilla's list, built in, stands in for an empty store.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_model::Digest;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::Error;

/// Largest file read, bytes; the whole of Mozilla's list has 220 kB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What TLS with some hosts is made from, as it was read.
pub(crate) struct Material {
    authorities: Vec<(PathBuf, Vec<u8>)>,
    pairs: Vec<Pair>,
    skip_verify: bool,
}

/// A client's certificate and its key, as PEM.
struct Pair {
    certificate: (PathBuf, Vec<u8>),
    key: (PathBuf, Vec<u8>),
}

impl Material {
    /// Reads the files: for a thread that may block.
    ///
    /// # Errors
    /// [`Error::Authorities`] or [`Error::ClientCertificate`] if one cannot be read.
    pub(crate) fn read(
        authorities: &[PathBuf],
        pairs: &[(PathBuf, PathBuf)],
        skip_verify: bool,
    ) -> Result<Self, Error> {
        let authority = |path: &PathBuf| match read_file(path) {
            Ok(bytes) => Ok((path.clone(), bytes)),
            Err(error) => Err(authorities_error(path, pem::Error::Io(error))),
        };
        let own = |path: &PathBuf| match read_file(path) {
            Ok(bytes) => Ok((path.clone(), bytes)),
            Err(error) => Err(own_error(path, pem::Error::Io(error))),
        };
        let pair = |(certificate, key): &(PathBuf, PathBuf)| {
            Ok(Pair { certificate: own(certificate)?, key: own(key)? })
        };
        Ok(Self {
            authorities: authorities.iter().map(authority).collect::<Result<_, _>>()?,
            pairs: pairs.iter().map(pair).collect::<Result<_, _>>()?,
            skip_verify,
        })
    }

    /// Equal for what makes equal configurations.
    pub(crate) fn digest(&self) -> Digest {
        let own = self.pairs.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
        let mut all = vec![u8::from(self.skip_verify)];
        for (kind, (_, bytes)) in
            self.authorities.iter().map(|it| (0, it)).chain(own.map(|it| (1, it)))
        {
            all.push(kind);
            all.extend_from_slice(Digest::of(bytes).to_string().as_bytes());
        }
        Digest::of(&all)
    }

    /// A few milliseconds, since it reads the node's own store.
    ///
    /// # Errors
    /// As [`Material::read`], or [`Error::Authority`] or [`Error::ClientKey`] if what was read
    /// cannot be used.
    pub(crate) fn config(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of TLS 1.2 and 1.3");
        let builder = if self.skip_verify {
            let any = AnyCertificate(Arc::clone(&provider));
            builder.dangerous().with_custom_certificate_verifier(Arc::new(any))
        } else {
            let mut roots = public_roots(rustls_native_certs::load_native_certs().certs);
            for (path, bytes) in &self.authorities {
                add(&mut roots, path, bytes)?;
            }
            builder.with_root_certificates(roots)
        };
        if self.pairs.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let keys = self.pairs.iter().map(|pair| pair.certified(&provider));
        let keys = Keys(keys.collect::<Result<_, _>>()?);
        Ok(builder.with_client_cert_resolver(Arc::new(keys)))
    }
}

impl Pair {
    fn certified(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        let (path, bytes) = &self.certificate;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|source| own_error(path, source))?;
        if chain.is_empty() {
            return Err(own_error(path, pem::Error::NoItemsFound));
        }
        let (path, bytes) = &self.key;
        let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|source| own_error(path, source))?;
        let certified = CertifiedKey::from_der(chain, key, provider);
        let failed = |source| Error::ClientKey { path: path.clone(), source };
        certified.map(Arc::new).map_err(failed)
    }
}

/// The certificates that a host may ask for; the first one that it can read is shown.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Keys {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Trusts whoever answers, as `skip_verify` wants: what comes is checked by its digest, but
/// what a tag means is not.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn public_roots(node: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A store may hold certificates that are no authorities; they are left out.
    let (trusted, _left_out) = roots.add_parsable_certificates(node);
    if trusted == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Whether `path` is a file of certificate authorities that can be trusted. Reads the file.
///
/// # Errors
/// [`Error::Authorities`] or [`Error::Authority`].
pub fn check_authorities(path: &Path) -> Result<(), Error> {
    let bytes = read_file(path);
    let bytes = bytes.map_err(|error| authorities_error(path, pem::Error::Io(error)))?;
    add(&mut RootCertStore::empty(), path, &bytes)
}

fn add(roots: &mut RootCertStore, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| authorities_error(path, source);
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(bytes) {
        roots
            .add(certificate.map_err(failed)?)
            .map_err(|source| Error::Authority { path: path.to_owned(), source })?;
        found = true;
    }
    if found { Ok(()) } else { Err(failed(pem::Error::NoItemsFound)) }
}

fn authorities_error(path: &Path, source: pem::Error) -> Error {
    Error::Authorities { path: path.to_owned(), source }
}

fn own_error(path: &Path, source: pem::Error) -> Error {
    Error::ClientCertificate { path: path.to_owned(), source }
}

/// The bytes of a regular file of bounded size.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|read| read > MAX_FILE_BYTES) {
        return Err(io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_config(authorities: &[PathBuf]) -> Result<ClientConfig, Error> {
        Material::read(authorities, &[], false)?.config()
    }

    #[test]
    fn a_node_without_certificates_trusts_the_built_in_list() {
        assert!(public_roots(Vec::new()).len() > 50);
    }

    #[test]
    fn a_file_without_certificates_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let refused = || client_config(std::slice::from_ref(&path)).unwrap_err().to_string();
        assert!(refused().contains("ca.pem"));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(refused().contains("ca.pem"));
        let endless = check_authorities(Path::new("/dev/zero")).unwrap_err();
        assert!(endless.to_string().contains("/dev/zero"), "{endless}");
        File::create(&path).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(refused().contains("ca.pem"));
    }

    #[test]
    fn a_clients_files_that_hold_nothing_usable_are_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let refused = |certificate: &str, key: &str| {
            let made = Material::read(&[], &[(path(certificate), path(key))], false);
            made.and_then(|material| material.config()).unwrap_err().to_string()
        };
        assert!(refused("none.pem", "none.key").contains("none.pem"));
        fs::write(path("empty.pem"), "").unwrap();
        assert!(refused("empty.pem", "empty.pem").contains("empty.pem"));
    }

    #[test]
    fn equal_material_has_an_equal_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        fs::write(&path, "one").unwrap();
        let digest =
            |skip| Material::read(std::slice::from_ref(&path), &[], skip).unwrap().digest();
        let first = digest(false);
        assert_eq!(digest(false), first);
        assert_ne!(digest(true), first);
        fs::write(&path, "two").unwrap();
        assert_ne!(digest(false), first);
    }
}
