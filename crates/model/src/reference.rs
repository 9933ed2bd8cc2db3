//! Image references: `[domain/]path[:tag][@digest]`.
//!
//! The grammar is the distribution project's; short names are normalised as docker
//! does (`busybox` is `docker.io/library/busybox:latest`). Written by hand because the
//! usual parsers compile a regular expression of 11 MB at their first use.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, InvalidDigest};

/// Longest name (domain and path), in bytes, that registries accept.
const MAX_NAME_BYTES: usize = 255;
/// Longest tag, in bytes (OCI distribution specification, "Pulling manifests").
const MAX_TAG_BYTES: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";

/// Why a string is not an image reference.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidReference {
    /// Nothing there.
    #[error("image reference is empty")]
    Empty,
    /// The name breaks the grammar.
    #[error("image reference {0:?} has an invalid name")]
    Name(String),
    /// The host or port breaks the grammar.
    #[error("image reference {0:?} has an invalid registry host")]
    Domain(String),
    /// The tag breaks the grammar.
    #[error("image reference {0:?} has an invalid tag")]
    Tag(String),
    /// The name is too long.
    #[error("image reference {0:?} is longer than {MAX_NAME_BYTES} bytes")]
    TooLong(String),
    /// What follows `@` is not a digest.
    #[error("image reference {reference:?} has an invalid digest")]
    Digest {
        /// The whole reference.
        reference: String,
        /// What is wrong with the digest.
        source: InvalidDigest,
    },
}

/// A normalised image reference: it has a domain, and a tag or a digest or both.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Registry host, with its port if one was given.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag; `latest` where neither tag nor digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, which wins over the tag when pulling.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path, without tag and digest.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository by digest alone.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository by tag alone; `None` if there is no tag.
    #[must_use]
    pub fn without_digest(&self) -> Option<Self> {
        self.tag.as_ref()?;
        Some(Self { digest: None, ..self.clone() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.is_empty() {
            return Err(InvalidReference::Empty);
        }
        let shown = || text.chars().take(300).collect::<String>();
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| InvalidReference::Digest { reference: shown(), source })?;
                (rest, Some(digest))
            }
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(InvalidReference::Tag(shown()));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(InvalidReference::Domain(shown()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(InvalidReference::Name(shown()));
        }
        if domain.len() + 1 + path.len() > MAX_NAME_BYTES {
            return Err(InvalidReference::TooLong(shown()));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain, path, tag, digest })
    }
}

/// A colon after the last slash starts a tag; one before it is a port.
fn split_tag(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    }
}

/// The first component is a host when it looks like one; otherwise the name is docker's.
fn split_domain(name: &str) -> (String, String) {
    let host = name.split_once('/').filter(|(first, _)| {
        first.contains(['.', ':']) || *first == "localhost" || first.chars().any(char::is_uppercase)
    });
    let (domain, path) = host.unwrap_or((DEFAULT_DOMAIN, name));
    let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("library/{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    port.is_none_or(is_port) && host.split('.').all(is_host_label)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn is_host_label(label: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(label.bytes().next())
        && edge(label.bytes().last())
        && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

/// Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = component.as_bytes();
    let edge = |c: Option<&u8>| c.is_some_and(|c| alphanumeric(*c));
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.split(|c| alphanumeric(*c)).all(|joint| {
            matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|c| *c == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[track_caller]
    fn check(text: &str, normalised: &str) {
        let parsed: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parsed.to_string(), normalised);
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }

    #[test]
    fn short_names_are_dockers() {
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.36", "docker.io/library/busybox:1.36");
        check("bitnami/nginx", "docker.io/bitnami/nginx:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest");
        check("index.docker.io/library/busybox", "docker.io/library/busybox:latest");
    }

    #[test]
    fn hosts_ports_tags_and_digests_are_told_apart() {
        check("localhost/a", "localhost/a:latest");
        check("localhost:5000/a/b:c", "localhost:5000/a/b:c");
        check("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest");
        check("[::1]:5000/a", "[::1]:5000/a:latest");
        check("r.example/a__b-c.d/e--f", "r.example/a__b-c.d/e--f:latest");
        check(&format!("r.example/a@{SHA}"), &format!("r.example/a@{SHA}"));
        check(&format!("r.example/a:t@{SHA}"), &format!("r.example/a:t@{SHA}"));
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        let long = format!("r.example/{}", "a".repeat(250));
        let tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "A",
            "r.example/A",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a:-t",
            "a:t:u",
            "r.example:port/a",
            "r.example:99999/a",
            "-r.example/a",
            "r..example/a",
            "[::g]/a",
            "a b",
            "a\n",
            "a@sha256:00",
            "a@md5:0",
            "http://r.example/a",
            &long,
            &tag,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_digest_replaces_the_tag() {
        let tagged: Reference = "r.example/a:t".parse().unwrap();
        let digest = SHA.parse().unwrap();
        assert_eq!(tagged.with_digest(digest).to_string(), format!("r.example/a@{SHA}"));
        assert_eq!(tagged.with_digest(digest).without_digest(), None);
    }
}
