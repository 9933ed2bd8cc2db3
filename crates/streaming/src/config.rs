//! What a server is told, and why there is none.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use berth_model::ErrorKind;

/// How the server listens, and how patient it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens. Port 0 is any that is free.
    pub address: SocketAddr,
    /// What it proves its identity with. Without it, only this machine can be listened to.
    pub tls: Option<TlsFiles>,
    /// How long a connection may be without a byte either way.
    pub idle_timeout: Duration,
    /// How long a client may take to open the streams that it asked for.
    pub creation_timeout: Duration,
    /// How long a client may take to read what is left after its command has ended.
    pub finish_timeout: Duration,
}

/// PEM files. They are read again when they change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    /// The certificate, and those of its issuers.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Whether they can be used.
    ///
    /// # Errors
    ///
    /// Files that cannot be read, or that are no certificate with its key.
    pub fn check(&self) -> Result<(), Error> {
        crate::tls::check(self)
    }
}

impl Config {
    /// Whether anybody may listen so: on one address, and with a certificate where others
    /// could listen too.
    ///
    /// # Errors
    ///
    /// [`Error::Unspecified`] or [`Error::Open`].
    pub fn check(&self) -> Result<(), Error> {
        if self.address.ip().is_unspecified() {
            return Err(Error::Unspecified(self.address));
        }
        if !self.address.ip().is_loopback() && self.tls.is_none() {
            return Err(Error::Open(self.address));
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            creation_timeout: Duration::from_secs(30),
            finish_timeout: Duration::from_secs(15 * 60),
        }
    }
}

/// Why streams cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whoever is on the way could read and write what a client does in a container.
    #[error("{0} is not loopback and needs a certificate")]
    Open(SocketAddr),
    /// An address that no client could be sent to.
    #[error("{0} does not name one address")]
    Unspecified(SocketAddr),
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has not what it must have.
    #[error("{} has {what}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The certificate and the key cannot be used.
    #[error("use {} with its key", path.display())]
    Tls {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system gives no random bytes.
    #[error("no random bytes for a token")]
    Random,
    /// Too many clients have not come yet.
    #[error("too many streams wait for their clients")]
    TooMany,
}

impl Error {
    /// What a front turns into a status of its own.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooMany => ErrorKind::ResourceExhausted,
            Self::Random | Self::Listen { .. } | Self::Read { .. } => ErrorKind::Internal,
            Self::Open(_) | Self::Unspecified(_) | Self::Pem { .. } | Self::Tls { .. } => {
                ErrorKind::InvalidArgument
            }
        }
    }
}
