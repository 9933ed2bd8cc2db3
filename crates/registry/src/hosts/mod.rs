//! Who serves a repository: the hosts that `certs.d/HOST/hosts.toml` names, in their order.
//!
//! ```text
//! r.example:5000 ─▶ r.example_5000_/ or r.example:5000/ or _default/ ─▶ hosts.toml ─▶ hosts
//!                                                       none of them ─▶ the registry itself
//! ```
//!
//! The files are read anew for each pull: whoever changes one restarts nothing. A file that
//! makes no sense fails the pulls that it is about, with its line; passing it by would send
//! them to where the operator did not want them.

mod duration;
mod file;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use http::uri::{Scheme, Uri};

pub(crate) use file::Capabilities;
use file::Entry;

use crate::Error;
use crate::host::same_origin;
use crate::tls::{Material, read_file};
use crate::transport::HttpsClient;

/// The directory for registries that have none of their own.
const DEFAULT: &str = "_default";

/// A host of one repository.
#[derive(Debug)]
pub(crate) struct Host {
    /// Scheme and authority.
    pub(crate) base: Uri,
    /// What comes before the repository's path, as `/v2`.
    prefix: String,
    pub(crate) capabilities: Capabilities,
    /// Shown to this host only; they may be its credentials.
    headers: HeaderMap,
    /// The registry that this host stands in for; it is told so (`?ns=`), since it may
    /// stand in for several.
    namespace: Option<String>,
    /// Whether the image's name, or the file for just this registry, says that this is it:
    /// credentials without a host of their own are for it, and for no mirror.
    pub(crate) is_registry: bool,
    /// How it is connected to, where that differs from other hosts.
    clients: Option<Clients>,
}

#[derive(Debug)]
struct Clients {
    /// For the host itself.
    own: HttpsClient,
    /// For where it leads: shows no certificate of ours, and believes none unverified.
    others: HttpsClient,
}

impl Host {
    /// The registry itself, by its name alone.
    pub(crate) fn registry(base: Uri) -> Self {
        Self {
            base,
            prefix: "/v2".to_owned(),
            capabilities: Capabilities::default(),
            headers: HeaderMap::new(),
            namespace: None,
            is_registry: true,
            clients: None,
        }
    }

    /// Host and port, as errors show them.
    pub(crate) fn name(&self) -> &str {
        self.base.authority().map_or("", http::uri::Authority::as_str)
    }

    /// The address of `path` below the repository.
    pub(crate) fn address(&self, repository: &str, path: &str) -> Uri {
        let mut parts = self.base.clone().into_parts();
        let mut path = format!("{}/{repository}/{path}", self.prefix);
        if let Some(namespace) = &self.namespace {
            path += &format!("?ns={namespace}");
        }
        parts.path_and_query = path.parse().ok();
        Uri::from_parts(parts).expect("names, tags and digests are valid in a path")
    }

    /// What is added to a request to `uri`.
    pub(crate) fn headers_for(&self, uri: &Uri) -> HeaderMap {
        match same_origin(&self.base, uri) {
            true => self.headers.clone(),
            false => HeaderMap::new(),
        }
    }

    /// How `uri` is connected to, on behalf of this host; `None` if as any other.
    pub(crate) fn client_for(&self, uri: &Uri) -> Option<&HttpsClient> {
        let clients = self.clients.as_ref()?;
        Some(if same_origin(&self.base, uri) { &clients.own } else { &clients.others })
    }

    /// Whether `text` shows what is sent to it in a header.
    pub(crate) fn is_shown_in(&self, text: &str) -> bool {
        let secrets = self.headers.values().filter_map(|value| value.to_str().ok());
        secrets.flat_map(str::split_whitespace).any(|it| it.len() > 7 && text.contains(it))
    }
}

/// Makes the client that knows `material`.
pub(crate) type MakeClient<'a> =
    &'a dyn Fn(Material, Option<Duration>) -> Result<HttpsClient, Error>;

/// What a repository's hosts are made from.
pub(crate) struct Wanted<'a> {
    /// Holds a directory for each registry.
    pub(crate) root: &'a Path,
    /// The registry, as image names have it.
    pub(crate) domain: &'a str,
    /// The registry's own address.
    pub(crate) base: &'a Uri,
    /// Trusted whatever host it is.
    pub(crate) authorities: &'a [PathBuf],
}

/// The hosts to ask, in order; `None` if nothing is configured for the registry. Reads
/// files: for a thread that may block.
pub(crate) fn find(wanted: &Wanted<'_>, make: MakeClient<'_>) -> Result<Option<Vec<Host>>, Error> {
    for name in names(wanted.domain) {
        let directory = wanted.root.join(&name);
        match fs::metadata(&directory) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => continue,
            Err(error) if is_absent(&error) => continue,
            Err(source) => return Err(Error::HostsRead { path: directory, source }),
        }
        let entries = read_directory(&directory)?;
        let hosts = entries.into_iter().map(|entry| host(wanted, &name, entry, make));
        return hosts.collect::<Result<_, _>>().map(Some);
    }
    Ok(None)
}

/// Whether every registry's directory below `root` can be used. Reads files.
///
/// # Errors
/// [`Error::HostsFile`], [`Error::HostsRead`], or what is wrong with a file of certificates
/// that one of them names.
pub fn check_hosts(root: &Path) -> Result<(), Error> {
    let failed = |source| Error::HostsRead { path: root.to_owned(), source };
    let directories = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(failed)?,
    };
    let mut paths: Vec<_> =
        directories.map(|it| it.map(|it| it.path())).collect::<Result<_, _>>().map_err(failed)?;
    paths.sort();
    for directory in paths.into_iter().filter(|path| path.is_dir()) {
        for entry in read_directory(&directory)? {
            Material::read(&entry.authorities, &entry.pairs, entry.skip_verify)?.config()?;
        }
    }
    Ok(())
}

/// Which directories are looked at; hosts are named in whatever case.
fn names(domain: &str) -> Vec<String> {
    let domain = domain.to_ascii_lowercase();
    let port = domain
        .rsplit_once(':')
        .filter(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let escaped = port.map(|(host, port)| format!("{host}_{port}_"));
    escaped.into_iter().chain([domain, DEFAULT.to_owned()]).collect()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read_directory(directory: &Path) -> Result<Vec<Entry>, Error> {
    let path = directory.join("hosts.toml");
    let failed = |source| Error::HostsRead { path: path.clone(), source };
    let text = match read_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return docker_files(directory).map(|entry| vec![entry]);
        }
        bytes => String::from_utf8(bytes.map_err(failed)?)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?,
    };
    file::parse(directory, &text).map_err(|wrong| Error::HostsFile {
        path,
        line: wrong.line,
        column: wrong.column,
        complaint: wrong.complaint,
    })
}

/// What docker's form of the directory says: authorities are `*.crt`, and a client's
/// certificate is `NAME.cert` with its key in `NAME.key`.
fn docker_files(directory: &Path) -> Result<Entry, Error> {
    let failed = |source| Error::HostsRead { path: directory.to_owned(), source };
    let mut paths: Vec<PathBuf> = Vec::new();
    for found in fs::read_dir(directory).map_err(failed)? {
        paths.push(found.map_err(failed)?.path());
    }
    paths.sort();
    let with = |wanted: &str| -> Vec<PathBuf> {
        let has = |path: &&PathBuf| path.extension().is_some_and(|it| it == wanted);
        paths.iter().filter(has).cloned().collect()
    };
    let pairs = with("cert").into_iter().map(|path| (path.clone(), path.with_extension("key")));
    Ok(Entry { authorities: with("crt"), pairs: pairs.collect(), ..Entry::default() })
}

fn host(
    wanted: &Wanted<'_>,
    directory: &str,
    entry: Entry,
    make: MakeClient<'_>,
) -> Result<Host, Error> {
    let clients = clients(wanted, &entry, make)?;
    let own = entry.address.is_none();
    let base = entry.address.as_ref().map_or_else(|| wanted.base.clone(), origin);
    let named = base.authority() == wanted.base.authority();
    Ok(Host {
        prefix: entry.address.as_ref().map_or_else(
            || "/v2".to_owned(),
            |address| prefix(address.path(), entry.override_path),
        ),
        capabilities: entry.capabilities,
        headers: entry.headers,
        namespace: (!named).then(|| wanted.domain.to_owned()),
        is_registry: own || named || (entry.is_server && directory != DEFAULT),
        clients,
        base,
    })
}

/// An address without its path.
fn origin(address: &Uri) -> Uri {
    let scheme = address.scheme().cloned().unwrap_or(Scheme::HTTPS);
    let authority = address.authority().map_or("", http::uri::Authority::as_str);
    let origin = Uri::builder().scheme(scheme).authority(authority).path_and_query("/");
    origin.build().expect("parts of a valid address are one")
}

fn prefix(path: &str, overridden: bool) -> String {
    let path = path.trim_end_matches('/');
    match overridden || path.ends_with("/v2") {
        true => path.to_owned(),
        false => format!("{path}/v2"),
    }
}

fn clients(
    wanted: &Wanted<'_>,
    entry: &Entry,
    make: MakeClient<'_>,
) -> Result<Option<Clients>, Error> {
    let Entry { authorities, pairs, skip_verify, connect_timeout, .. } = entry;
    if authorities.is_empty() && pairs.is_empty() && !skip_verify && connect_timeout.is_none() {
        return Ok(None);
    }
    let trusted: Vec<_> = wanted.authorities.iter().chain(authorities).cloned().collect();
    let own = make(Material::read(&trusted, pairs, *skip_verify)?, *connect_timeout)?;
    let others = make(Material::read(&trusted, &[], false)?, *connect_timeout)?;
    Ok(Some(Clients { own, others }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(root: &Path, domain: &str) -> Result<Option<Vec<Host>>, Error> {
        let base: Uri = format!("https://{domain}/").parse().unwrap();
        let wanted = Wanted { root, domain, base: &base, authorities: &[] };
        find(&wanted, &|_, _| unreachable!("nothing needs a client of its own"))
    }

    fn write(root: &Path, directory: &str, text: &str) {
        fs::create_dir_all(root.join(directory)).unwrap();
        fs::write(root.join(directory).join("hosts.toml"), text).unwrap();
    }

    fn hosts(root: &Path, domain: &str) -> Vec<String> {
        let found = find_in(root, domain).unwrap().unwrap_or_default();
        found.iter().map(|host| host.address("a", "b").to_string()).collect()
    }

    #[test]
    fn a_port_is_written_either_way_and_the_default_comes_last() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(find_in(&root.join("none"), "r.example").unwrap().is_none());
        assert!(find_in(root, "r.example").unwrap().is_none());
        write(root, "_default", "[host.\"https://default.example\"]");
        assert_eq!(
            hosts(root, "r.example:5000")[0],
            "https://default.example/v2/a/b?ns=r.example:5000"
        );
        write(root, "r.example:5000", "[host.\"https://colon.example\"]");
        assert_eq!(
            hosts(root, "R.example:5000")[0],
            "https://colon.example/v2/a/b?ns=R.example:5000"
        );
        write(root, "r.example_5000_", "[host.\"https://escaped.example\"]");
        assert_eq!(
            hosts(root, "r.example:5000"),
            ["https://escaped.example/v2/a/b?ns=r.example:5000", "https://r.example:5000/v2/a/b"]
        );
        assert!(hosts(root, "r.example")[0].starts_with("https://default.example/"));
        assert_eq!(names("[::1]:5000")[0], "[::1]_5000_");
        assert_eq!(names("[::1]"), ["[::1]", DEFAULT]);
    }

    #[test]
    fn a_path_is_followed_by_the_interfaces_version_unless_it_is_overridden() {
        for (path, overridden, expected) in [
            ("/", false, "/v2"),
            ("/", true, ""),
            ("/mirror/", false, "/mirror/v2"),
            ("/mirror/v2", false, "/mirror/v2"),
            ("/mirror/", true, "/mirror"),
        ] {
            assert_eq!(prefix(path, overridden), expected, "{path} {overridden}");
        }
    }

    #[test]
    fn i7_only_the_registry_and_the_server_named_for_it_are_the_registry() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let text = "server = \"https://s.example\"\n[host.\"https://m.example\"]\n\
                    [host.\"https://r.example\"]\n";
        write(root, "r.example", text);
        write(root, "_default", text);
        let known = |domain| -> Vec<bool> {
            find_in(root, domain).unwrap().unwrap().iter().map(|host| host.is_registry).collect()
        };
        assert_eq!(known("r.example"), [false, true, true]);
        assert_eq!(known("other.example"), [false, false, false]);
    }

    #[test]
    fn a_directory_without_the_file_is_read_as_dockers() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("r.example");
        fs::create_dir(&directory).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "notes.txt"] {
            fs::write(directory.join(name), "").unwrap();
        }
        let [entry] = &read_directory(&directory).unwrap()[..] else { panic!("one host") };
        assert_eq!(entry.authorities, [directory.join("ca.crt")]);
        assert_eq!(entry.pairs, [(directory.join("client.cert"), directory.join("client.key"))]);
    }

    #[test]
    fn headers_are_secret_and_of_their_host() {
        let root = tempfile::tempdir().unwrap();
        let text = "[host.\"https://m.example\".header]\nauthorization = \"Bearer s3cretive\"\n";
        write(root.path(), "r.example", text);
        let hosts = find_in(root.path(), "r.example").unwrap().unwrap();
        let own = hosts[0].headers_for(&Uri::from_static("https://M.example:443/x"));
        assert!(own.values().all(http::HeaderValue::is_sensitive) && own.len() == 1);
        for other in ["http://m.example/", "https://m.example:444/", "https://r.example/"] {
            assert!(hosts[0].headers_for(&Uri::from_static(other)).is_empty(), "{other}");
        }
        assert!(hosts[0].is_shown_in("you sent s3cretive"));
        assert!(!hosts[0].is_shown_in("you sent nothing"));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_told_with_its_line() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "r.example", "\nservr = 5\n");
        let error = find_in(root.path(), "r.example").unwrap_err().to_string();
        assert!(error.ends_with("r.example/hosts.toml:2:1: unknown key \"servr\""), "{error}");
        let error = check_hosts(root.path()).unwrap_err().to_string();
        assert!(error.contains("hosts.toml:2:1: "), "{error}");
    }
}
