//! Whom TLS trusts.
//!
//! The node's own store comes first, since that is where its operator adds and distrusts
//! authorities. A bare Debian node has none (`ca-certificates` is not essential), so
//! Mozilla's list, built in, stands in for an empty store.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::Error;

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

fn add(roots: &mut RootCertStore, path: &PathBuf) -> Result<(), Error> {
    let failed = |source| Error::Authorities { path: path.clone(), source };
    let mut found = false;
    for certificate in CertificateDer::pem_file_iter(path).map_err(failed)? {
        roots
            .add(certificate.map_err(failed)?)
            .map_err(|source| Error::Authority { path: path.clone(), source })?;
        found = true;
    }
    if found { Ok(()) } else { Err(failed(rustls::pki_types::pem::Error::NoItemsFound)) }
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
    }
}
