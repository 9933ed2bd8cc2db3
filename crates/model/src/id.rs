//! Identifiers of sandboxes, containers and exec processes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest identifier accepted, in bytes (the limit containerd has for its ids).
pub const MAX_ID_BYTES: usize = 76;

/// Why a string is not an identifier.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidId {
    /// The string is empty.
    #[error("identifier is empty")]
    Empty,
    /// The string is longer than [`MAX_ID_BYTES`].
    #[error("identifier {0:?} is longer than {MAX_ID_BYTES} bytes")]
    TooLong(String),
    /// The string holds something other than letters, digits, `_`, `-` and `.`,
    /// or does not start with a letter or digit.
    #[error(
        "identifier {0:?} must be letters, digits, '_', '-' or '.', and start with a letter or digit"
    )]
    BadCharacter(String),
}

fn validate(id: &str) -> Result<(), InvalidId> {
    let shown = || id.chars().take(128).collect();
    if id.is_empty() {
        return Err(InvalidId::Empty);
    }
    if id.len() > MAX_ID_BYTES {
        return Err(InvalidId::TooLong(shown()));
    }
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
    let bytes = id.as_bytes();
    if !bytes[0].is_ascii_alphanumeric() || !bytes.iter().copied().all(inner) {
        return Err(InvalidId::BadCharacter(shown()));
    }
    Ok(())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Safe as one path component: it never holds `/` and never starts with a dot. Copies
        /// share the text.
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `id` and wraps it.
            pub fn new(id: impl Into<String>) -> Result<Self, InvalidId> {
                let id = id.into();
                validate(&id)?;
                Ok(Self(id.into()))
            }

            /// Makes an identifier of 64 hexadecimal digits out of 32 random bytes.
            #[must_use]
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(crate::digest::hex(&bytes).into())
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(id: &str) -> Result<Self, InvalidId> {
                Self::new(id)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(id: String) -> Result<Self, InvalidId> {
                Self::new(id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.as_str().as_ref()
            }
        }
    };
}

id_type! {
    /// Identifies a pod sandbox.
    SandboxId
}
id_type! {
    /// Identifies a container.
    ContainerId
}
id_type! {
    /// Identifies an exec process within its container.
    ExecId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_safe_path_component() {
        for bad in ["", "..", ".a", "a/b", "-a", "a b", "a\0", "ä", &"a".repeat(77)] {
            assert!(SandboxId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0-_.z", &"f".repeat(64)] {
            assert_eq!(SandboxId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn random_bytes_become_64_hexadecimal_digits() {
        let id = ContainerId::from_random([0xa5; 32]);
        assert_eq!(id.as_str(), "a5".repeat(32));
    }
}
