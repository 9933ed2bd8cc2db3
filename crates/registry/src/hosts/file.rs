//! `hosts.toml`: who serves the images of one registry, in the form that containerd reads
//! (its docs/hosts.md), so that one directory serves both.
//!
//! Read by hand rather than by serde: the order of the tables matters, and what is wrong
//! is told with its line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::duration;

/// What one host is configured with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Entry {
    /// Scheme, authority and path; `None` for the registry itself, wherever that is.
    pub(super) address: Option<Uri>,
    /// Whether the address is the file's `server`, rather than one of its tables.
    pub(super) is_server: bool,
    pub(super) capabilities: Capabilities,
    /// PEM files with authorities, by absolute path.
    pub(super) authorities: Vec<PathBuf>,
    /// PEM files with a client's certificate and its key, which may be one.
    pub(super) pairs: Vec<(PathBuf, PathBuf)>,
    pub(super) skip_verify: bool,
    /// Whether the path is the interface's whole one, without `/v2`.
    pub(super) override_path: bool,
    pub(super) headers: HeaderMap,
    pub(super) connect_timeout: Option<Duration>,
}

/// What a host is asked for. Whether it may be pushed to is nothing to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Capabilities {
    /// Manifests and blobs by digest, which are verified.
    pub(crate) pull: bool,
    /// What a tag means, which has to be believed.
    pub(crate) resolve: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { pull: true, resolve: true }
    }
}

/// What is wrong with a file, and where: lines and columns count from 1.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Wrong {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) complaint: String,
}

/// A complaint, and the bytes of the text that it is about.
type Complaint = (Range<usize>, String);

/// The hosts in the order in which they are asked; the registry itself is the last.
pub(super) fn parse(directory: &Path, text: &str) -> Result<Vec<Entry>, Wrong> {
    let read = || -> Result<Vec<Entry>, Complaint> {
        let syntax =
            |error: toml::de::Error| (error.span().unwrap_or(0..0), error.message().to_owned());
        let top = DeTable::parse(text).map_err(syntax)?;
        let mut entries = Vec::new();
        if let Some(tables) = top.get_ref().get("host") {
            for (address, table) in in_order(table(tables, "host")?) {
                let at = parse_address(address.get_ref()).map_err(|why| (address.span(), why))?;
                let entry = Entry { address: Some(at), ..Entry::default() };
                entries.push(read_entry(directory, entry, self::table(table, "a host")?, false)?);
            }
        }
        entries.push(read_entry(directory, Entry::default(), top.get_ref(), true)?);
        Ok(entries)
    };
    read().map_err(|(span, complaint)| {
        let before = &text[..text.floor_char_boundary(span.start)];
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Wrong { line: before.matches('\n').count() + 1, column, complaint }
    })
}

/// The tables as the file has them; the parser sorts them by name.
fn in_order<'t, 'a>(
    tables: &'t DeTable<'a>,
) -> Vec<(&'t Spanned<std::borrow::Cow<'a, str>>, &'t Spanned<DeValue<'a>>)> {
    let mut tables: Vec<_> = tables.iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    tables
}

fn read_entry(
    directory: &Path,
    mut entry: Entry,
    keys: &DeTable<'_>,
    top: bool,
) -> Result<Entry, Complaint> {
    for (name, value) in keys {
        match name.get_ref().as_ref() {
            "capabilities" => entry.capabilities = capabilities(value)?,
            "ca" => entry.authorities = one_or_more(directory, value, "ca")?,
            "client" => entry.pairs = pairs(directory, value)?,
            "skip_verify" => entry.skip_verify = boolean(value, "skip_verify")?,
            "override_path" => entry.override_path = boolean(value, "override_path")?,
            "header" => entry.headers = headers(table(value, "header")?)?,
            "dial_timeout" => {
                let found = string(value, "dial_timeout")?;
                let parsed = duration::parse(found).ok_or_else(|| {
                    wrong(value, format!("dial_timeout must be like \"3s\", not {found:?}"))
                })?;
                entry.connect_timeout = Some(parsed);
            }
            "server" if top => {
                let address = string(value, "server")?;
                if !address.is_empty() {
                    let parsed = parse_address(address).map_err(|why| (value.span(), why))?;
                    (entry.address, entry.is_server) = (Some(parsed), true);
                }
            }
            "host" if top => {}
            unknown => return Err((name.span(), format!("unknown key {unknown:?}"))),
        }
    }
    Ok(entry)
}

/// `https://` is meant where no scheme is written.
fn parse_address(text: &str) -> Result<Uri, String> {
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let uri: Uri = whole.parse().map_err(|_| format!("{text:?} is no address of a host"))?;
    let fits = crate::host::is_plain_address(&uri) && uri.query().is_none();
    let climbs = uri.path().split('/').any(|part| matches!(part, "." | ".."));
    if fits && !climbs && !whole.contains('#') {
        return Ok(uri);
    }
    Err(format!("{text:?} must be http or https, a host, and perhaps a port and a path"))
}

fn capabilities(value: &Spanned<DeValue<'_>>) -> Result<Capabilities, Complaint> {
    let mut found = Capabilities { pull: false, resolve: false };
    let listed = array(value, "capabilities")?;
    for capability in listed {
        match string(capability, "a capability")?.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => {}
            other => {
                let complaint =
                    format!("unknown capability {other:?}; there are pull, resolve and push");
                return Err(wrong(capability, complaint));
            }
        }
    }
    Ok(if listed.is_empty() { Capabilities::default() } else { found })
}

fn one_or_more(
    directory: &Path,
    value: &Spanned<DeValue<'_>>,
    what: &str,
) -> Result<Vec<PathBuf>, Complaint> {
    match value.get_ref() {
        DeValue::String(_) => Ok(vec![path(directory, value, what)?]),
        DeValue::Array(paths) => paths.iter().map(|it| path(directory, it, what)).collect(),
        _ => Err(wrong(value, format!("{what} must be a path or an array of paths"))),
    }
}

/// One file with both, several of them, or pairs of certificate and key.
fn pairs(
    directory: &Path,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<(PathBuf, PathBuf)>, Complaint> {
    let both = |value: &Spanned<DeValue<'_>>| {
        path(directory, value, "client").map(|path| (path.clone(), path))
    };
    let DeValue::Array(entries) = value.get_ref() else { return Ok(vec![both(value)?]) };
    let read = |entry: &Spanned<DeValue<'_>>| match entry.get_ref() {
        DeValue::Array(pair) if pair.len() == 2 => {
            let at = |index: usize| path(directory, &pair[index], "client");
            Ok((at(0)?, at(1)?))
        }
        DeValue::Array(_) => {
            Err(wrong(entry, "a pair of client is a certificate and its key".to_owned()))
        }
        _ => both(entry),
    };
    entries.iter().map(read).collect()
}

/// Headers that say how a request is framed are not the file's to choose.
fn headers(found: &DeTable<'_>) -> Result<HeaderMap, Complaint> {
    const OURS: &[&str] =
        &["host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "range"];
    let mut headers = HeaderMap::new();
    for (name, value) in found {
        let text = name.get_ref().to_ascii_lowercase();
        let usable = HeaderName::try_from(&text).ok().filter(|_| !OURS.contains(&text.as_str()));
        let header = usable
            .ok_or_else(|| (name.span(), format!("header {:?} cannot be set", name.get_ref())))?;
        let one = std::slice::from_ref(value);
        let values = match value.get_ref() {
            DeValue::Array(values) => values.as_ref(),
            _ => one,
        };
        for value in values {
            // The value may be a secret: no complaint shows it.
            let text = string(value, "a header's value")?;
            let mut parsed = HeaderValue::from_str(text)
                .map_err(|_| wrong(value, format!("the value of header {header} is invalid")))?;
            parsed.set_sensitive(true);
            headers.append(header.clone(), parsed);
        }
    }
    Ok(headers)
}

fn path(directory: &Path, value: &Spanned<DeValue<'_>>, what: &str) -> Result<PathBuf, Complaint> {
    let text = string(value, what)?;
    if text.is_empty() || text.contains('\0') {
        return Err(wrong(value, format!("{what} must be the path of a file")));
    }
    Ok(directory.join(text))
}

fn string<'t>(value: &'t Spanned<DeValue<'_>>, what: &str) -> Result<&'t str, Complaint> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text),
        _ => Err(wrong(value, format!("{what} must be a string"))),
    }
}

fn boolean(value: &Spanned<DeValue<'_>>, what: &str) -> Result<bool, Complaint> {
    match value.get_ref() {
        DeValue::Boolean(value) => Ok(*value),
        _ => Err(wrong(value, format!("{what} must be true or false"))),
    }
}

fn array<'t, 'a>(
    value: &'t Spanned<DeValue<'a>>,
    what: &str,
) -> Result<&'t [Spanned<DeValue<'a>>], Complaint> {
    match value.get_ref() {
        DeValue::Array(values) => Ok(values),
        _ => Err(wrong(value, format!("{what} must be an array"))),
    }
}

fn table<'t, 'a>(
    value: &'t Spanned<DeValue<'a>>,
    what: &str,
) -> Result<&'t DeTable<'a>, Complaint> {
    match value.get_ref() {
        DeValue::Table(table) => Ok(table),
        _ => Err(wrong(value, format!("{what} must be a table"))),
    }
}

fn wrong(value: &Spanned<DeValue<'_>>, complaint: String) -> Complaint {
    (value.span(), complaint)
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.complaint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
server = "https://r.example"
ca = "top.pem"

[host."https://z.example:5000"]
capabilities = ["pull"]
ca = ["a.pem", "/etc/b.pem"]
client = [["c.pem", "k.pem"], "both.pem"]
dial_timeout = "1.5s"
[host."https://z.example:5000".header]
Authorization = "Basic s3cret"
x-many = ["1", "2"]

[host."http://a.example/mirror"]
capabilities = ["push", "Resolve"]
skip_verify = true
override_path = true
"#;

    fn read(text: &str) -> Result<Vec<Entry>, String> {
        parse(Path::new("/d"), text).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_registry_last() {
        let entries = read(WHOLE).unwrap();
        let addresses: Vec<_> =
            entries.iter().map(|it| it.address.as_ref().unwrap().to_string()).collect();
        assert_eq!(
            addresses,
            ["https://z.example:5000/", "http://a.example/mirror", "https://r.example/"]
        );
        let [first, second, last] = &entries[..] else { panic!("three hosts") };
        assert_eq!(first.capabilities, Capabilities { pull: true, resolve: false });
        assert_eq!(first.authorities, [Path::new("/d/a.pem"), Path::new("/etc/b.pem")]);
        let pair = |a: &str, b: &str| (PathBuf::from(a), PathBuf::from(b));
        assert_eq!(first.pairs, [pair("/d/c.pem", "/d/k.pem"), pair("/d/both.pem", "/d/both.pem")]);
        assert_eq!(first.connect_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(first.headers["authorization"], "Basic s3cret");
        assert_eq!(first.headers.get_all("x-many").iter().count(), 2);
        assert_eq!(second.capabilities, Capabilities { pull: false, resolve: true });
        assert!(second.skip_verify && second.override_path && !first.skip_verify);
        assert_eq!(last.authorities, [Path::new("/d/top.pem")]);
        assert_eq!(last.capabilities, Capabilities::default());
    }

    #[test]
    fn a_file_without_server_means_the_registry_itself() {
        let entries = read("[host.\"m.example\"]\n").unwrap();
        assert_eq!(entries[0].address, Some(Uri::from_static("https://m.example/")));
        assert_eq!(entries[1], Entry::default());
        assert_eq!(read("").unwrap(), [Entry::default()]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, expected) in [
            ("\nserver = 5", "2:10: server must be a string"),
            ("servr = \"x\"", "1:1: unknown key \"servr\""),
            ("[host.\"x\"]\nserver = \"x\"", "2:1: unknown key \"server\""),
            ("capabilities = [\"fly\"]", "1:17: unknown capability \"fly\""),
            ("capabilities = \"pull\"", "1:16: capabilities must be an array"),
            ("server = \"ftp://x\"", "1:10: \"ftp://x\" must be http or https"),
            ("server = \"https://u:p@x\"", "1:10: "),
            ("server = \"https://x/../y\"", "1:10: "),
            ("[host.\"https://x?y\"]", "1:7: "),
            ("[host]\nx = 1", "2:5: a host must be a table"),
            ("ca = 5", "1:6: ca must be a path"),
            ("ca = \"\"", "1:6: ca must be the path"),
            ("client = [[\"a\"]]", "1:11: a pair of client"),
            ("skip_verify = \"yes\"", "1:15: skip_verify must be true or false"),
            ("dial_timeout = \"soon\"", "1:16: dial_timeout must be like"),
            ("[header]\nHost = \"x\"", "2:1: header \"Host\" cannot be set"),
            ("[header]\nx = \"s3cret\\n\"", "2:5: the value of header x is invalid"),
            ("[header]\nx = 5", "2:5: a header's value must be a string"),
            ("[[host]]\n", "1:1: host must be a table"),
            ("ca = ", "1:"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_header_is_not_shown() {
        assert!(!format!("{:?}", read(WHOLE).unwrap()).contains("s3cret"));
    }
}
