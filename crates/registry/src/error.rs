//! Why a registry did not give what was asked for.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_model::{Digest, ErrorKind, Reference};
use http::StatusCode;

/// What was asked for, and from whom. Clones are cheap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject(Arc<Named>);

#[derive(Debug, Eq, PartialEq)]
struct Named {
    reference: Reference,
    blob: Option<Digest>,
    host: String,
}

impl Subject {
    pub(crate) fn new(reference: Reference, blob: Option<Digest>, host: String) -> Self {
        Self(Arc::new(Named { reference, blob, host }))
    }

    /// The image; for a blob, one that is in its repository.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.0.reference
    }

    /// The blob, if it is one.
    #[must_use]
    pub fn blob(&self) -> Option<&Digest> {
        self.0.blob.as_ref()
    }

    /// The registry host, with its port if one was given.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.host
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.blob() {
            Some(digest) => write!(f, "blob {digest} of {}", self.reference().repository())?,
            None => write!(f, "manifest {}", self.reference())?,
        }
        write!(f, " from {}", self.host())
    }
}

/// Whatever a lower layer reports; none of these sources holds a header or a body.
pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry knows no such repository, tag, manifest or blob.
    #[error("{0} does not exist")]
    NotFound(Subject),
    /// The registry, or its token service, refused.
    #[error("{subject} was refused with status {status}{detail}")]
    Refused {
        /// What was asked for.
        subject: Subject,
        /// 401 or 403 as a rule.
        status: StatusCode,
        /// What the registry says, or nothing.
        detail: Detail,
    },
    /// Too many requests, on every attempt, or for longer than is waited.
    #[error("{0} was deferred: too many requests")]
    Throttled(Subject),
    /// A status that no rule covers, or that did not change over all attempts.
    #[error("{subject} was answered with status {status}{detail}")]
    Status {
        /// What was asked for.
        subject: Subject,
        /// The status.
        status: StatusCode,
        /// What the registry says, or nothing.
        detail: Detail,
    },
    /// No connection: refused, unknown name, unreachable, untrusted certificate.
    #[error("connect to {peer} for {subject}")]
    Connect {
        /// What was asked for.
        subject: Subject,
        /// The host that could not be connected to.
        peer: String,
        /// Why not.
        source: Source,
    },
    /// A connection broke on every attempt.
    #[error("read {subject}")]
    Broken {
        /// What was asked for.
        subject: Subject,
        /// How it broke.
        source: Source,
    },
    /// A connection was silent, or trickled, on every attempt.
    #[error("{subject} made no progress for {} s", waited.as_secs_f32())]
    Stalled {
        /// What was asked for.
        subject: Subject,
        /// The limit that was reached.
        waited: Duration,
    },
    /// A body or a whole response has not the promised size.
    #[error("{subject} has {actual} bytes instead of {expected}")]
    WrongSize {
        /// What was asked for.
        subject: Subject,
        /// By its descriptor, bytes.
        expected: u64,
        /// By the registry, bytes.
        actual: u64,
    },
    /// More came than is read.
    #[error("{subject} is longer than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        subject: Subject,
        /// The limit, bytes.
        limit: u64,
    },
    /// What came is not what was asked for, or not what the registry says it is.
    #[error("{subject} arrived with digest {actual} instead of {expected}")]
    WrongDigest {
        /// What was asked for.
        subject: Subject,
        /// By the reference, or by the registry's own header.
        expected: Digest,
        /// What its bytes hash to.
        actual: Digest,
    },
    /// Docker's image manifest of 2014, which names layers by no digest of theirs.
    #[error("{subject} is a docker schema 1 manifest ({media_type}), which is not supported")]
    Schema1 {
        /// What was asked for.
        subject: Subject,
        /// Its media type.
        media_type: String,
    },
    /// The document is no image.
    #[error("{subject} has media type {media_type:?}, which is no image manifest or index")]
    MediaType {
        /// What was asked for.
        subject: Subject,
        /// Its media type, shortened.
        media_type: String,
    },
    /// A redirect that is not followed, or one too many.
    #[error("{subject} was redirected {why}")]
    Redirect {
        /// What was asked for.
        subject: Subject,
        /// Where to, in words.
        why: &'static str,
    },
    /// The registry asks for authentication in a way that is not followed.
    #[error("{subject} needs authentication, but {why}")]
    Challenge {
        /// What was asked for.
        subject: Subject,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A certificate authority's file is unusable.
    #[error("read certificate authorities from {}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate authority's file holds a certificate that cannot be an authority.
    #[error("trust the certificate authority in {}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A client's certificate or key is unusable.
    #[error("read a client's certificate or key from {}", path.display())]
    ClientCertificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A client's key does not belong to its certificate, or is of no known kind.
    #[error("use the client's key in {}", path.display())]
    ClientKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// What is configured of a registry's hosts cannot be read.
    #[error("read {}", path.display())]
    HostsRead {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is configured of a registry's hosts makes no sense.
    #[error("{}:{line}:{column}: {complaint}", path.display())]
    HostsFile {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// Counts from 1, in characters.
        column: usize,
        /// What is wrong, and what is allowed.
        complaint: String,
    },
    /// No host of the registry is configured to be asked for this.
    #[error("no host is configured to be asked for {0}")]
    NoHost(Subject),
    /// Several hosts were asked, and each of them failed; the last one is the registry as a
    /// rule.
    #[error("none of {} hosts gave it: {}", .0.len(), told(.0))]
    EachHost(Vec<Self>),
    /// A proxy's address is of a kind that is not spoken.
    #[error("proxy for {0} is no http:// address")]
    Proxy(&'static str),
}

impl Error {
    /// What a front turns into a gRPC or HTTP status; the text is for people only.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Refused { .. } | Self::Challenge { .. } => ErrorKind::PermissionDenied,
            Self::Status { status, .. } if !status.is_server_error() => ErrorKind::Internal,
            Self::Throttled(_)
            | Self::Status { .. }
            | Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Redirect { .. } => ErrorKind::Unavailable,
            Self::Stalled { .. } => ErrorKind::DeadlineExceeded,
            Self::WrongSize { .. } | Self::WrongDigest { .. } => ErrorKind::FailedPrecondition,
            Self::TooLarge { .. }
            | Self::MediaType { .. }
            | Self::Authorities { .. }
            | Self::Authority { .. }
            | Self::ClientCertificate { .. }
            | Self::ClientKey { .. }
            | Self::HostsRead { .. }
            | Self::HostsFile { .. }
            | Self::NoHost(_)
            | Self::Proxy(_) => ErrorKind::InvalidArgument,
            Self::Schema1 { .. } => ErrorKind::Unimplemented,
            Self::EachHost(errors) => errors.last().map_or(ErrorKind::Internal, Self::kind),
        }
    }
}

/// Each error with its causes: as a list they have no one source.
fn told(errors: &[Error]) -> String {
    let chain = |error: &Error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; then ")
}

/// What a registry says about a failure: bounded, on one line, possibly empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Detail(Option<String>);

impl Detail {
    /// Longest text that is shown, characters.
    const LIMIT: usize = 200;

    /// What the body of a failure says, unless `is_secret` finds a secret in it: a
    /// registry may well repeat what it was sent.
    pub(crate) fn of_body(body: &[u8], is_secret: impl Fn(&str) -> bool) -> Self {
        let Ok(document) = serde_json::from_slice::<Document>(body) else { return Self(None) };
        let listed = document.errors.into_iter().find_map(|error| error.message.or(error.code));
        let Some(text) = listed.or(document.details).or(document.message) else {
            return Self(None);
        };
        if is_secret(&text) {
            return Self(None);
        }
        let shown: String =
            text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(Self::LIMIT).collect();
        Self(Some(shown.trim().to_owned()).filter(|shown| !shown.is_empty()))
    }
}

/// OCI distribution specification, "Error Codes", and what token services send instead.
#[derive(serde::Deserialize)]
struct Document {
    #[serde(default)]
    errors: Vec<Listed>,
    details: Option<String>,
    message: Option<String>,
}

#[derive(serde::Deserialize)]
struct Listed {
    code: Option<String>,
    message: Option<String>,
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &str) {
        let found = Detail::of_body(body.as_bytes(), |text| text.contains("s3cret"));
        assert_eq!(found.to_string(), expected, "{body}");
    }

    #[test]
    fn a_registrys_words_are_shown_on_one_line() {
        check(r#"{"errors":[{"code":"DENIED","message":"a\nb"}]}"#, ": a b");
        check(r#"{"errors":[{"code":"DENIED"}]}"#, ": DENIED");
        check(r#"{"details":"wrong password"}"#, ": wrong password");
        check(r#"{"errors":[]}"#, "");
        check(r#"{"errors":"x"}"#, "");
        check("<html>", "");
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(10_000));
        check(&long, &format!(": {}", "x".repeat(200)));
    }

    #[test]
    fn a_registry_that_repeats_a_secret_is_not_quoted() {
        check(r#"{"errors":[{"message":"password s3cret is wrong"}]}"#, "");
    }
}
