//! Certificates for test servers, made anew each time: no key is kept anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A server's certificate, its key, and the authority that signed it, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Who signed it; its own key was thrown away.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// Writes a certificate for `names` (host names and addresses) into `dir`.
    pub fn write(dir: &Path, names: &[&str]) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "authority of a test");
        let issuer_key = KeyPair::generate().context("make a key")?;
        let signed = authority.self_signed(&issuer_key).context("sign the authority")?;
        let issuer = Issuer::new(authority, issuer_key);

        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut server = CertificateParams::new(names).context("name the server")?;
        server.distinguished_name.push(DnType::CommonName, "server of a test");
        let key = KeyPair::generate().context("make a key")?;
        let certificate = server.signed_by(&key, &issuer).context("sign the certificate")?;

        let write = |name: &str, pem: String| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, pem).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            authority: write("authority.pem", signed.pem())?,
            certificate: write("server.pem", certificate.pem())?,
            key: write("server.key", key.serialize_pem())?,
        })
    }
}
