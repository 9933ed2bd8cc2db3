//! The configuration file: one tree, parsed once into types.
//!
//! Wire form and valid form are the same structs; what serde cannot check is checked by
//! [`Config::parse`], which names key and line. The defaults are those of the commented
//! file in `deploy/`, which is the only place that lists them for people; a test holds
//! the two together.

mod rules;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The default configuration with its comments, as `berthd config default` prints it.
pub(crate) const DEFAULT: &str = include_str!("../../../deploy/berthd.toml");

/// Largest configuration file read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Larger than any configuration.
    #[error("configuration {} is larger than {MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not TOML, an unknown key, or a value of the wrong type; the source says where.
    #[error("configuration {} is not valid", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
    /// A value that is of the right type and yet wrong.
    #[error("configuration {}, line {line}: {key} {complaint}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line of the key, counted from 1.
        line: usize,
        /// The key with its table.
        key: String,
        /// What is wrong.
        complaint: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) cri: Cri,
    pub(crate) log: Log,
    pub(crate) image: Image,
    pub(crate) network: Network,
    pub(crate) container: Container,
    pub(crate) runtime: Runtime,
}

/// The CRI front.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cri {
    /// `None` means `berth.sock` below the state directory.
    pub(crate) socket: Option<PathBuf>,
}

/// Logging.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    pub(crate) format: String,
    pub(crate) filter: String,
}

/// Pulling.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Image {
    pub(crate) plain_http: Vec<String>,
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) parallel_layers: usize,
}

/// Pod networks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    pub(crate) bridge: String,
    pub(crate) subnet: String,
    pub(crate) mtu: u32,
    pub(crate) masquerade: bool,
    pub(crate) table: String,
}

/// What containers get when the client does not say.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Container {
    pub(crate) cgroup_base: String,
    pub(crate) pids_limit: u32,
    pub(crate) shm_size: u64,
    pub(crate) seccomp_profiles: PathBuf,
}

/// Runtime handlers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Runtime {
    pub(crate) default: String,
    pub(crate) handlers: BTreeMap<String, Handler>,
}

/// One runtime handler.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Handler {
    pub(crate) shim: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            cri: Cri::default(),
            log: Log::default(),
            image: Image::default(),
            network: Network::default(),
            container: Container::default(),
            runtime: Runtime::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: "auto".into(), filter: "info".into() }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self { plain_http: Vec::new(), ca_files: Vec::new(), parallel_layers: 3 }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            bridge: "berth0".into(),
            subnet: "10.85.0.0/16".into(),
            mtu: 1500,
            masquerade: true,
            table: "berth".into(),
        }
    }
}

impl Default for Container {
    fn default() -> Self {
        Self {
            cgroup_base: "/berth".into(),
            pids_limit: 0,
            shm_size: 64 << 20,
            seccomp_profiles: "/var/lib/kubelet/seccomp".into(),
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        let berth = Handler { shim: "containerd-shim-berth-v1".into() };
        Self { default: "berth".into(), handlers: BTreeMap::from([("berth".into(), berth)]) }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
        if u64::try_from(text.len()).is_ok_and(|read| read > MAX_BYTES) {
            return Err(Error::TooLarge(path.to_owned()));
        }
        Self::parse(path, &text)
    }

    /// Checks `text`; `path` is for messages.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let config: Self = toml::from_str(text)
            .map_err(|source| Error::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        rules::check(&config).map_err(|(key, complaint)| Error::Value {
            path: path.to_owned(),
            line: line_of(text, key),
            key: key.to_owned(),
            complaint,
        })?;
        Ok(config)
    }

    /// The socket of the CRI.
    pub(crate) fn socket(&self) -> PathBuf {
        self.cri.socket.clone().unwrap_or_else(|| self.state.join("berth.sock"))
    }
}

/// The line of `key` (with its tables, dotted) in `text`; 1 when only the default has it.
fn line_of(text: &str, key: &str) -> usize {
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    let mut current = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            current = header.split(']').next().unwrap_or_default().trim().to_owned();
        } else if let Some((written, _)) = line.split_once('=') {
            let written = written.trim();
            if (current == table && written == name) || (current.is_empty() && written == key) {
                return index + 1;
            }
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("test.toml"), text)
    }

    fn whole(error: &Error) -> String {
        let source = std::error::Error::source(error);
        source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
    }

    #[test]
    fn the_commented_file_is_the_default() {
        let mut written = parse(DEFAULT).unwrap();
        assert_eq!(written.cri.socket, Some(Config::default().socket()));
        written.cri.socket = None;
        assert_eq!(written, Config::default());
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = parse("root = \"/a\"\n\n[network]\nmtuu = 9000\n").unwrap_err();
        let text = whole(&error);
        assert!(text.contains("line 4") && text.contains("mtuu"), "{text}");
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_line() {
        let text = whole(&parse("\n[network]\nmtu = \"big\"\n").unwrap_err());
        assert!(text.contains("line 3"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_refused_with_key_and_line() {
        let long_state = format!("state = \"/{}\"", "a".repeat(80));
        for (text, key, line) in [
            ("root = \"relative\"", "root", 1),
            ("\nstate = \"/run/../etc\"", "state", 2),
            ("root = \"/a\"\nstate = \"/a/b\"", "state", 2),
            (&long_state, "state", 1),
            ("[network]\n# small\nmtu = 5", "network.mtu", 3),
            ("network.mtu = 5", "network.mtu", 1),
            ("[network]\nbridge = \"a-name-of-sixteen\"", "network.bridge", 2),
            ("[log]\nformat = \"xml\"", "log.format", 2),
            ("[log]\n\nfilter = \"a=b=c\"", "log.filter", 3),
            ("[image]\nparallel_layers = 0", "image.parallel_layers", 2),
            ("[container]\nshm_size = 1", "container.shm_size", 2),
            ("[runtime]\ndefault = \"kata\"", "runtime.default", 2),
            ("[cri]\nsocket = \"berth.sock\"", "cri.socket", 2),
        ] {
            refused(text, key, line);
        }
    }

    #[track_caller]
    fn refused(text: &str, key: &str, line: usize) {
        match parse(text) {
            Err(Error::Value { key: found, line: at, .. }) => {
                assert_eq!((found.as_str(), at), (key, line), "{text}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    /// teeth: crates/daemon/src/config/rules.rs: `network(&config.network)?;` → ``
    #[test]
    fn what_no_daemon_could_use_is_refused_before_it_starts() {
        for (key, values) in [
            ("root", &["'/a:b'", "'/a,b'", "'/a\\b'", "\"/a\\nb\""][..]),
            ("state", &["\"/a\\u0000b\""]),
            ("cri.socket", &[&format!("'/{}'", "a".repeat(107))]),
            (
                "log.filter",
                &["''", "'infoo'", "'warning'", "'info,,'", "'berth_engine'", "'=info'"],
            ),
            ("image.plain_http", &["['']", "['http://a.b']", "['a.b/c']", "['*.b']", "['a:x']"]),
            ("image.ca_files", &["['x.pem']", "['']"]),
            ("network.bridge", &["'..'", "'lo'", "'all'", "\"a\\tb\"", "''"]),
            ("network.table", &["''", "'a b'", "'a;flush'", "'0a'"]),
            (
                "network.subnet",
                &["''", "'x'", "'10.0.0.0/31'", "'10.0.0.1/16'", "'127.0.0.0/8'", "'fd00::/64'"],
            ),
            ("container.cgroup_base", &["''", "'/'", "'a'", "'/a/../b'"]),
            ("container.seccomp_profiles", &["''", "'a'", "'/a/../b'"]),
        ] {
            for value in values {
                let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
                let table = if table.is_empty() { String::new() } else { format!("[{table}]") };
                refused(&format!("{table}\n{name} = {value}\n"), key, 2);
            }
        }
        for handler in ["[runtime.handlers.x]\nshim = ''", "[runtime.handlers.'']\nshim = 'x'"] {
            let text = format!("[runtime.handlers.berth]\nshim = 'x'\n{handler}\n");
            refused(&text, "runtime.handlers", 1);
        }
        for shim in ["a/b", "../b", "/a/../b"] {
            refused(&format!("[runtime.handlers.berth]\nshim = '{shim}'"), "runtime.handlers", 1);
        }
    }

    #[test]
    fn registries_without_tls_are_named_as_in_references() {
        let hosts = "['r.example', 'r.example:80', 'registry', 'registry:5000', '[::1]:80']";
        parse(&format!("[image]\nplain_http = {hosts}")).unwrap();
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        assert!(matches!(Config::read(Path::new("/dev/zero")), Err(Error::TooLarge(_))));
    }
}
