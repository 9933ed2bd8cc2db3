//! Hosts: which are spoken to without TLS, and where a redirect leads.

use std::net::IpAddr;

use berth_model::Reference;
use http::Uri;
use http::uri::Scheme;

/// The name that images have, and the host that serves them.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Hosts that are spoken to without TLS.
#[derive(Clone, Debug)]
pub(crate) struct PlainHosts(Vec<String>);

impl PlainHosts {
    pub(crate) fn new(configured: &[String]) -> Self {
        Self(configured.iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    /// Whether the configuration names `host:port`, or `host` for every port.
    fn names(&self, uri: &Uri) -> bool {
        let Some(authority) = uri.authority() else { return false };
        let (with_port, host) =
            (authority.as_str().to_ascii_lowercase(), authority.host().to_ascii_lowercase());
        self.0.iter().any(|plain| *plain == with_port || *plain == host)
    }

    /// Whether plain HTTP to `uri` is allowed, asked on behalf of a host that itself is
    /// spoken to plainly or not: one under TLS sends nobody to the loopback of this node.
    pub(crate) fn allow(&self, uri: &Uri, from_plain: bool) -> bool {
        self.names(uri) || (from_plain && uri.host().is_some_and(is_loopback))
    }

    /// Address of the repository's registry, without path.
    pub(crate) fn base(&self, reference: &Reference) -> Uri {
        let host = match reference.domain() {
            domain if domain == DOCKER_HUB.0 => DOCKER_HUB.1,
            domain => domain,
        };
        let build = |scheme: Scheme| {
            Uri::builder()
                .scheme(scheme)
                .authority(host)
                .path_and_query("/")
                .build()
                .expect("a reference's domain is a valid authority")
        };
        let plain = build(Scheme::HTTP);
        if self.allow(&plain, true) { plain } else { build(Scheme::HTTPS) }
    }
}

/// Whether connections to `host` stay on this node; `localhost` by RFC 6761.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether two addresses have scheme, host and port in common.
pub(crate) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 })
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// Where `location` leads from `base` (RFC 3986, section 5.2, without dot segments);
/// `None` if that is no HTTP address, or one with a user in it.
pub(crate) fn resolve_location(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?.as_str());
    let has_scheme = location
        .split_once("://")
        .is_some_and(|(scheme, _)| scheme.bytes().all(|c| c.is_ascii_alphanumeric()));
    let absolute = if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let uri: Uri = absolute.parse().ok()?;
    is_plain_address(&uri).then_some(uri)
}

/// Whether it is `http` or `https`, has a host, and no user or password in it.
pub(crate) fn is_plain_address(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|it| !it.host().is_empty() && !it.as_str().contains('@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(reference: &str, plain: &[&str]) -> String {
        let plain: Vec<_> = plain.iter().map(|&host| host.to_owned()).collect();
        PlainHosts::new(&plain).base(&reference.parse().unwrap()).to_string()
    }

    #[test]
    fn tls_is_left_out_for_loopback_and_configured_hosts_only() {
        assert_eq!(base("busybox", &[]), "https://registry-1.docker.io/");
        assert_eq!(base("r.example/a", &[]), "https://r.example/");
        assert_eq!(base("localhost:5000/a", &[]), "http://localhost:5000/");
        assert_eq!(base("127.1.2.3/a", &[]), "http://127.1.2.3/");
        assert_eq!(base("[::1]:5000/a", &[]), "http://[::1]:5000/");
        assert_eq!(base("localhost.example/a", &[]), "https://localhost.example/");
        assert_eq!(base("R.example:80/a", &["r.Example"]), "http://R.example:80/");
        assert_eq!(base("r.example:80/a", &["r.example:80"]), "http://r.example:80/");
        assert_eq!(base("r.example:81/a", &["r.example:80"]), "https://r.example:81/");
    }

    #[test]
    fn a_host_under_tls_cannot_lead_to_the_nodes_loopback() {
        let plain = PlainHosts::new(&["configured.example".into()]);
        assert!(!plain.allow(&Uri::from_static("http://127.0.0.1/"), false));
        assert!(plain.allow(&Uri::from_static("http://127.0.0.1/"), true));
        assert!(plain.allow(&Uri::from_static("http://configured.example:8/"), false));
        assert!(!plain.allow(&Uri::from_static("http://other.example/"), true));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a, b| same_origin(&Uri::from_static(a), &Uri::from_static(b));
        assert!(same("https://r.example/a", "https://R.EXAMPLE:443/b"));
        assert!(!same("https://r.example/", "http://r.example/"));
        assert!(!same("https://r.example/", "https://r.example:444/"));
        assert!(!same("https://r.example/", "https://r.example.evil/"));
    }

    #[test]
    fn a_location_is_resolved_against_its_request() {
        let base = Uri::from_static("https://r.example:5000/v2/a/blobs/b?x");
        for (location, expected) in [
            ("https://cdn.example/x?sig=a://b", Some("https://cdn.example/x?sig=a://b")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/x?y#z", Some("https://r.example:5000/x?y")),
            ("?y", Some("https://r.example:5000/v2/a/blobs/b?y")),
            ("x?u=a://b", Some("https://r.example:5000/v2/a/blobs/x?u=a://b")),
            ("x", Some("https://r.example:5000/v2/a/blobs/x")),
            ("ftp://cdn.example/x", None),
            ("https://user:password@cdn.example/x", None),
            ("https://", None),
            ("http://a b/", None),
        ] {
            let found = resolve_location(&base, location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }
}
