//! Credentials.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use crate::hosts::Host;

/// Why a docker `auth` field is not `base64(username:password)`. It never shows the field.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("auth is not the base64 of username:password")]
pub struct InvalidAuth;

/// What a client proves itself with. Neither `Debug` nor any error shows it.
#[derive(Clone, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Auth {
    /// Sent as HTTP basic, to the registry or to its token service, as the registry asks.
    Basic {
        /// User, without colon.
        username: String,
        /// Password.
        password: String,
    },
    /// An OAuth2 refresh token, traded at the token service for an access token.
    IdentityToken(String),
    /// An access token, sent to the registry as it is.
    RegistryToken(String),
    /// Credentials of one host by its name, which may be a mirror's. Others are the image's
    /// registry's.
    OfHost {
        /// Host, with its port if it has one; `docker.io` by any of its names.
        host: String,
        /// What that host is shown.
        auth: Box<Self>,
    },
}

impl Auth {
    /// Parses the `auth` field of a docker configuration or of the CRI.
    ///
    /// # Errors
    /// [`InvalidAuth`] if it is not base64 of UTF-8 text with a colon.
    pub fn from_encoded(encoded: &str) -> Result<Self, InvalidAuth> {
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| InvalidAuth)?;
        let text = String::from_utf8(decoded).map_err(|_| InvalidAuth)?;
        let (username, password) = text.split_once(':').ok_or(InvalidAuth)?;
        // Docker pads passwords with NUL.
        let password = password.trim_matches('\0').to_owned();
        Ok(Self::Basic { username: username.to_owned(), password })
    }

    /// What of this `host` may be shown, which is one of those that serve images named
    /// `domain` (CVE-2020-15157 and relatives).
    pub(crate) fn shown_to(&self, host: &Host, domain: &str) -> Option<Self> {
        match self {
            Self::OfHost { host: named, auth } => {
                let named = hub_or(named);
                let same = |other: &str| named.eq_ignore_ascii_case(hub_or(other));
                let meant = same(host.name()) || (host.is_registry && same(domain));
                meant.then(|| (**auth).clone())
            }
            auth => host.is_registry.then(|| auth.clone()),
        }
    }

    /// Whether `text` shows a secret of this, plainly or as it is sent.
    pub(crate) fn is_shown_in(&self, text: &str) -> bool {
        let shows = |secret: &str| !secret.is_empty() && text.contains(secret);
        match self {
            Self::Basic { username, password } => {
                shows(password) || shows(&encode_basic(username, password))
            }
            Self::IdentityToken(token) | Self::RegistryToken(token) => shows(token),
            Self::OfHost { auth, .. } => auth.is_shown_in(text),
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
            Self::OfHost { .. } => "OfHost(..)",
        })
    }
}

/// Docker's hub has several names, of which images have one.
fn hub_or(host: &str) -> &str {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        _ => host,
    }
}

/// The header of HTTP basic authentication; hyper shows it to nobody.
pub(crate) fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = encode_basic(username, password);
    sensitive(&format!("Basic {encoded}")).expect("base64 is valid in a header")
}

fn encode_basic(username: &str, password: &str) -> String {
    STANDARD.encode(format!("{username}:{password}"))
}

/// The header of a bearer token; `None` if the token cannot be in a header.
pub(crate) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_pair_is_split_at_its_first_colon() {
        let expected = Auth::Basic { username: "a".into(), password: "b:c".into() };
        assert_eq!(Auth::from_encoded(&STANDARD.encode("a:b:c")), Ok(expected.clone()));
        assert_eq!(Auth::from_encoded(&STANDARD.encode("a:b:c\0\0")), Ok(expected));
    }

    #[test]
    fn what_is_not_an_encoded_pair_is_refused() {
        for bad in ["", "!", &STANDARD.encode("no colon"), &STANDARD.encode([0xff, b':'])] {
            assert_eq!(Auth::from_encoded(bad), Err(InvalidAuth), "{bad}");
        }
    }

    fn host(base: &'static str) -> Host {
        Host::registry(http::Uri::from_static(base))
    }

    #[test]
    fn i7_credentials_are_shown_to_their_host_only() {
        let user = Auth::Basic { username: "u".into(), password: "p".into() };
        let of = |host: &str| Auth::OfHost { host: host.into(), auth: Box::new(user.clone()) };
        let (hub, mut there) = (host("https://registry-1.docker.io/"), host("https://m.example/"));
        there.is_registry = false;

        assert_eq!(user.shown_to(&hub, "docker.io"), Some(user.clone()));
        assert_eq!(user.shown_to(&there, "docker.io"), None, "no mirror gets the registry's");
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            assert_eq!(of(name).shown_to(&hub, "docker.io"), Some(user.clone()), "{name}");
            assert_eq!(of(name).shown_to(&there, "docker.io"), None, "{name}");
        }
        assert_eq!(of("M.example").shown_to(&there, "docker.io"), Some(user.clone()));
        assert_eq!(of("m.example").shown_to(&hub, "docker.io"), None, "nor the reverse");
        for name in ["", "docker.io.evil.example", "m.example:443", "example"] {
            assert_eq!(of(name).shown_to(&hub, "docker.io"), None, "{name}");
            assert_eq!(of(name).shown_to(&there, "docker.io"), None, "{name}");
        }
        let local = host("http://127.0.0.1:5000/");
        assert_eq!(of("127.0.0.1:5000").shown_to(&local, "127.0.0.1:5000"), Some(user.clone()));
        assert_eq!(of("127.0.0.1:5001").shown_to(&local, "127.0.0.1:5000"), None);
    }

    #[test]
    fn nothing_shows_a_secret() {
        let basic = Auth::Basic { username: "u".into(), password: "s3cret".into() };
        for auth in
            [basic, Auth::IdentityToken("s3cret".into()), Auth::RegistryToken("s3cret".into())]
        {
            assert!(!format!("{auth:?}").contains("s3cret"));
        }
        assert_eq!(format!("{:?}", super::basic("u", "s3cret")), "Sensitive");
    }

    #[test]
    fn a_secret_is_found_in_the_form_it_is_sent() {
        let basic = Auth::Basic { username: "u".into(), password: "s3cret".into() };
        assert!(basic.is_shown_in("wrong: s3cret"));
        assert!(basic.is_shown_in(&format!("wrong: {}", STANDARD.encode("u:s3cret"))));
        assert!(!basic.is_shown_in("wrong password for u"));
    }
}
