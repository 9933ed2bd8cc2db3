//! The client, and the repository that one pull speaks to.

use berth_model::{Digest, Reference};

use crate::{Auth, Blob, Config, Error, Manifest};

/// Speaks to any registry. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {}

impl Client {
    /// Makes a client; nothing is opened yet, and trust is read at the first use of TLS.
    ///
    /// # Errors
    /// [`Error::Proxy`] if a proxy's address is unusable.
    pub fn new(config: Config) -> Result<Self, Error> {
        let _config = config;
        todo!()
    }

    /// The repository of `reference`, with the credentials of one pull.
    #[must_use]
    pub fn repository(&self, reference: &Reference, auth: Option<Auth>) -> Repository {
        let _arguments = (reference, auth);
        todo!()
    }
}

/// One repository of one registry, as one set of credentials sees it. Clones share the
/// token that those were traded for.
#[derive(Clone, Debug)]
pub struct Repository {}

impl Repository {
    /// Fetches what the reference names: its digest if it has one, else its tag.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::WrongDigest`] if the bytes are not what the reference or
    /// the registry's `Docker-Content-Digest` says.
    pub async fn resolve(&self) -> Result<Manifest, Error> {
        todo!()
    }

    /// Fetches the manifest or index with this digest.
    ///
    /// # Errors
    /// As [`Repository::resolve`].
    pub async fn manifest(&self, digest: &Digest) -> Result<Manifest, Error> {
        let _digest = digest;
        todo!()
    }

    /// Begins to fetch the blob `digest` of exactly `size` bytes.
    ///
    /// # Errors
    /// Any [`Error`]; [`Error::WrongSize`] if the registry announces another size.
    pub async fn blob(&self, digest: &Digest, size: u64) -> Result<Blob, Error> {
        let _arguments = (digest, size);
        todo!()
    }
}
