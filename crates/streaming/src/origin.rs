//! Who may ask: not a web page that a browser of this machine happens to show.
//!
//! A page can reach loopback by a name that its own server resolves so ("DNS rebinding"),
//! and its browser then sends that name as `Host`, and the page's address as `Origin`. It
//! cannot send `X-Forwarded-For`, which kubelet adds to what it hands on (a page may not
//! set headers of a WebSocket, and for any other request needs a leave it never gets): what
//! kubelet hands on has the host and the origin that were meant for the API server.

use std::net::{IpAddr, SocketAddr};

use ::http::{HeaderMap, header};

/// Whether a request comes from where it may.
pub(crate) fn is_allowed(headers: &HeaderMap, own: SocketAddr) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    if headers.contains_key("x-forwarded-for") {
        return true;
    }
    let host_is_own = host.to_str().is_ok_and(|host| is_address(host, own));
    let origins = headers.get_all(header::ORIGIN);
    host_is_own
        && origins.iter().all(|origin| {
            let authority = origin.to_str().ok().and_then(|origin| {
                origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
            });
            authority.is_some_and(|authority| {
                is_address(authority, own) && port(authority) == Some(own.port())
            })
        })
}

/// Whether an authority is an address, or this machine's own name for itself, and not a
/// name that somebody else resolves.
fn is_address(authority: &str, own: SocketAddr) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => address == own.ip() || (address.is_loopback() && own.ip().is_loopback()),
        Err(_) => host.eq_ignore_ascii_case("localhost") && own.ip().is_loopback(),
    }
}

fn port(authority: &str) -> Option<u16> {
    authority.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        is_allowed(&map, "127.0.0.1:4000".parse().unwrap())
    }

    #[test]
    fn a_client_on_this_machine_and_whatever_kubelet_hands_on_may_ask() {
        assert!(allowed(&[("host", "127.0.0.1:4000")]));
        assert!(allowed(&[("host", "localhost:4000")]));
        assert!(allowed(&[("host", "[::1]:4000")]));
        assert!(allowed(&[("host", "127.0.0.1:4000"), ("origin", "http://127.0.0.1:4000")]));
        let handed_on = ("x-forwarded-for", "10.0.0.7");
        assert!(allowed(&[("host", "node-1.example:10250"), handed_on]));
        assert!(allowed(&[("host", "10.0.0.1:443"), ("origin", "https://ui.example"), handed_on]));
    }

    /// teeth: crates/streaming/src/origin.rs: `    host_is_own\n` → `    true\n`
    #[test]
    fn d11_a_page_in_a_browser_may_not() {
        assert!(!allowed(&[]));
        assert!(!allowed(&[("host", "rebound.example:4000")]));
        assert!(!allowed(&[("host", "rebound.example"), ("origin", "http://rebound.example")]));
        assert!(!allowed(&[("host", "127.0.0.1:4000"), ("origin", "http://evil.example")]));
        assert!(!allowed(&[("host", "127.0.0.1:4000"), ("origin", "http://127.0.0.1:8080")]));
        assert!(!allowed(&[("host", "127.0.0.1:4000"), ("origin", "null")]));
        assert!(!allowed(&[("host", "127.0.0.1:4000"), ("host", "x.example")]));
        assert!(!allowed(&[("host", "127.0.0.1.evil.example:4000")]));
    }
}
