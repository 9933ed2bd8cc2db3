//! Credentials.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

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

    /// Whether `text` shows a secret of this, plainly or as it is sent.
    pub(crate) fn is_shown_in(&self, text: &str) -> bool {
        let shows = |secret: &str| !secret.is_empty() && text.contains(secret);
        match self {
            Self::Basic { username, password } => {
                shows(password) || shows(&encode_basic(username, password))
            }
            Self::IdentityToken(token) | Self::RegistryToken(token) => shows(token),
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(..)",
            Self::IdentityToken(_) => "IdentityToken(..)",
            Self::RegistryToken(_) => "RegistryToken(..)",
        })
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
