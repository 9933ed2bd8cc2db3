//! How the client behaves.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How the client behaves; every value has a default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Hosts, as `host` or `host:port`, that are spoken to without TLS. Loopback hosts
    /// always are, as in docker.
    pub plain_http: Vec<String>,
    /// PEM files with authorities that are trusted besides the public ones.
    pub certificate_authorities: Vec<PathBuf>,
    /// Holds a directory for each registry that other hosts serve as well, or that is
    /// reached in a way of its own (`HOST/hosts.toml`); need not be there.
    pub hosts: Option<PathBuf>,
    /// Proxies; never used for loopback hosts.
    pub proxies: Proxies,
    /// For a TCP connection to stand.
    pub connect_timeout: Duration,
    /// From the start of a request to the end of its response's headers.
    pub response_timeout: Duration,
    /// For every 16 KiB of a body, so that a trickle is a stall as well.
    pub idle_timeout: Duration,
    /// Attempts at one request; a blob's count starts again after 4 MiB of progress.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles each time.
    pub backoff: Duration,
    /// Longest pause between attempts, whatever a `Retry-After` says.
    pub max_backoff: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            certificate_authorities: Vec::new(),
            hosts: None,
            proxies: Proxies::default(),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(30),
        }
    }
}

/// Proxies, in the form that curl's environment variables have.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Proxies {
    /// For plain HTTP; empty for none.
    pub http: String,
    /// For TLS, by `CONNECT`; empty for none.
    pub https: String,
    /// Hosts, domains and subnets that are spoken to directly, separated by commas.
    pub direct: String,
}

impl Proxies {
    /// What the environment says: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, or
    /// the same in lower case.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            [name.to_owned(), name.to_lowercase()]
                .iter()
                .find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        let all = either("ALL_PROXY");
        Self {
            http: either("HTTP_PROXY").or_else(|| all.clone()).unwrap_or_default(),
            https: either("HTTPS_PROXY").or(all).unwrap_or_default(),
            direct: either("NO_PROXY").unwrap_or_default(),
        }
    }
}

/// A proxy's address may hold a password.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &!self.http.is_empty())
            .field("https", &!self.https.is_empty())
            .field("direct", &self.direct)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], expected: [&str; 3]) {
        let found = Proxies::from_environment(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        assert_eq!([found.http, found.https, found.direct], expected, "{variables:?}");
    }

    #[test]
    fn the_specific_variable_wins_over_the_general() {
        check(&[], ["", "", ""]);
        check(&[("ALL_PROXY", "a"), ("https_proxy", "s")], ["a", "s", ""]);
        check(&[("HTTP_PROXY", ""), ("http_proxy", "h"), ("NO_PROXY", "n")], ["h", "", "n"]);
    }

    #[test]
    fn a_proxys_password_is_not_shown() {
        let proxies = Proxies { http: "http://u:s3cret@p:1".into(), ..Proxies::default() };
        assert!(!format!("{proxies:?}").contains("s3cret"));
    }
}
