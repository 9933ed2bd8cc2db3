//! Formatting of messages that hold secrets.

use std::fmt;

use crate::v1::AuthConfig;

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |secret: &str| if secret.is_empty() { "" } else { "[redacted]" };
        f.debug_struct("AuthConfig")
            .field("username", &shown(&self.username))
            .field("password", &shown(&self.password))
            .field("auth", &shown(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &shown(&self.identity_token))
            .field("registry_token", &shown(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_formatted() {
        let secret = || "hunter2".to_owned();
        let auth = AuthConfig {
            username: secret(),
            password: secret(),
            auth: secret(),
            server_address: "r.example".to_owned(),
            identity_token: secret(),
            registry_token: secret(),
        };
        let request = crate::v1::PullImageRequest { auth: Some(auth), ..Default::default() };
        let text = format!("{request:?}");
        assert!(text.contains("r.example"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
