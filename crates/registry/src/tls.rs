//! Whom TLS trusts.
//!
//! The node's own store comes first, since that is where its operator adds and distrusts
//! authorities. A bare Debian node has none (`ca-certificates` is not essential), so
//! Mozilla's list, built in, stands in for an empty store.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

use crate::Error;

/// Largest file of authorities read, bytes; the whole of Mozilla's list has 220 kB.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Reads files: for a thread that may block. A few milliseconds, hence not at start.
///
/// # Errors
/// [`Error::Authorities`] or [`Error::Authority`] if a configured file is unusable.
pub(crate) fn client_config(authorities: &[PathBuf]) -> Result<ClientConfig, Error> {
    let mut roots = public_roots(rustls_native_certs::load_native_certs().certs);
    for path in authorities {
        add(&mut roots, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth())
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
    add(&mut RootCertStore::empty(), path)
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Authorities { path: path.to_owned(), source };
    let bytes = read(path).map_err(|error| failed(pem::Error::Io(error)))?;
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        roots
            .add(certificate.map_err(failed)?)
            .map_err(|source| Error::Authority { path: path.to_owned(), source })?;
        found = true;
    }
    if found { Ok(()) } else { Err(failed(pem::Error::NoItemsFound)) }
}

/// The bytes of a regular file of bounded size.
fn read(path: &Path) -> io::Result<Vec<u8>> {
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
}
