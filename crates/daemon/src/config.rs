//! The configuration file: one tree, parsed once into types.
//!
//! ```text
//! file ──read──▶ text ──document──▶ TOML ──serde──▶ Config ──rules──▶ ──host──▶ usable
//! ```
//!
//! Wire form and valid form are the same structs. Each step may refuse, with the file, the
//! line and the column, the key, what is wrong and what is allowed; nothing is made before
//! the last one agreed. The defaults are those of the commented file in `deploy/`, which
//! is the only place that lists them for people; a test holds the two together.

mod document;
mod file;
mod host;
mod rules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use document::{Document, Key, Position};
use rules::Wrong;
use serde::{Deserialize, Serialize};

pub(crate) use host::find_shim;

/// The default configuration with its comments, as `berthd config default` prints it.
pub(crate) const DEFAULT: &str = include_str!("../../../deploy/berthd.toml");

/// Largest configuration file read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why there is no configuration. The words begin with the file, and with the place in it
/// as far as there is one: `/etc/berth/berthd.toml:12:7: container.pids_limit: …`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something else has its name.
    #[error("{}: is a {kind}, not a file", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Larger than any configuration.
    #[error("{}: is larger than {MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Something in it is wrong: not TOML, an unknown key, or a value that cannot be used.
    #[error("{}:{at}: {}{complaint}", path.display(), prefix(key.as_ref()))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where in it.
        at: Position,
        /// The key with its tables; `None` where the file is not TOML.
        key: Option<Key>,
        /// What is wrong, and what is allowed.
        complaint: String,
    },
}

fn prefix(key: Option<&Key>) -> String {
    key.map_or_else(String::new, |key| format!("{key}: "))
}

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) cri: Cri,
    pub(crate) streaming: Streaming,
    pub(crate) log: Log,
    pub(crate) image: Image,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) network: Network,
    pub(crate) container: Container,
    pub(crate) nri: Nri,
    pub(crate) runtime: Runtime,
}

/// The CRI front.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cri {
    /// `None` means `berth.sock` below the state directory.
    pub(crate) socket: Option<PathBuf>,
}

/// The server for exec, attach and port-forward.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Streaming {
    pub(crate) address: String,
    /// Empty means none, as does the key.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) idle_timeout: u32,
    pub(crate) creation_timeout: u32,
}

/// Logging.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    pub(crate) format: String,
    pub(crate) filter: String,
}

/// Pulling.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Image {
    pub(crate) plain_http: Vec<String>,
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) parallel_layers: usize,
}

/// Who serves the images of which registry.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    pub(crate) config_path: PathBuf,
}

/// Numbers for Prometheus.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Where they are served; empty means nowhere.
    pub(crate) address: String,
}

/// Pod networks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    pub(crate) bridge: String,
    pub(crate) subnet: String,
    pub(crate) mtu: u32,
    pub(crate) masquerade: bool,
    pub(crate) table: String,
}

/// What containers get when the client does not say.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Container {
    pub(crate) cgroup_base: String,
    pub(crate) pids_limit: u32,
    pub(crate) shm_size: u64,
    pub(crate) seccomp_profiles: PathBuf,
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
}

/// Plugins of the Node Resource Interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Nri {
    pub(crate) enabled: bool,
    pub(crate) socket: PathBuf,
    pub(crate) plugins: PathBuf,
    pub(crate) plugin_configs: PathBuf,
    pub(crate) registration_timeout_ms: u64,
    pub(crate) request_timeout_ms: u64,
}

/// Runtime handlers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Runtime {
    pub(crate) default: String,
    pub(crate) handlers: BTreeMap<String, Handler>,
}

/// One runtime handler.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
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
            streaming: Streaming::default(),
            log: Log::default(),
            image: Image::default(),
            registry: Registry::default(),
            metrics: Metrics::default(),
            network: Network::default(),
            container: Container::default(),
            nri: Nri::default(),
            runtime: Runtime::default(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".into(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            idle_timeout: 4 * 60 * 60,
            creation_timeout: 30,
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

impl Default for Registry {
    fn default() -> Self {
        Self { config_path: "/etc/berth/certs.d".into() }
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
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            enabled: true,
            socket: "/var/run/nri/nri.sock".into(),
            plugins: "/opt/nri/plugins".into(),
            plugin_configs: "/etc/nri/conf.d".into(),
            registration_timeout_ms: 5000,
            request_timeout_ms: 2000,
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
    /// Reads and checks the file at `path`, and that this host has what it names.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = file::read(path)?;
        let config = Self::parse(path, &text)?;
        let about = |wrong| Document::parse(&text).map(|document| blame(path, &document, wrong));
        match host::check(&config).map_err(about) {
            Ok(()) => Ok(config),
            Err(wrong) => Err(wrong.unwrap_or_else(|error| syntax(path, &text, &error))),
        }
    }

    /// Checks `text`; `path` is for messages.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let document = Document::parse(text).map_err(|error| syntax(path, text, &error))?;
        let shape = rules::tables(&document).and_then(|()| rules::numbers(&document));
        shape.map_err(|wrong| blame(path, &document, wrong))?;
        let config: Self =
            toml::from_str(text).map_err(|error| mistyped(path, text, &document, &error))?;
        rules::check(&config).map_err(|wrong| blame(path, &document, wrong))?;
        Ok(config)
    }

    /// The socket of the CRI.
    pub(crate) fn socket(&self) -> PathBuf {
        self.cri.socket.clone().unwrap_or_else(|| self.state.join("berth.sock"))
    }
}

/// What is not TOML, or names a key twice.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let offset = error.span().map_or(0, |span| span.start);
    let at = Position::of(text.as_bytes(), offset);
    Error::Wrong { path: path.to_owned(), at, key: None, complaint: error.message().to_owned() }
}

/// A key that is unknown or missing, or a value of the wrong type.
fn mistyped(path: &Path, text: &str, document: &Document<'_>, error: &toml::de::Error) -> Error {
    let span = error.span().unwrap_or(0..0);
    let key = document.key_at(&span);
    let mut complaint = error.message().to_owned();
    let known = Document::parse(DEFAULT).ok();
    if let (Some(key), Some(known)) = (&key, &known) {
        if let Some(allowed) = rules::number(&key.to_string()) {
            complaint = format!("{complaint}; must be {allowed}");
        } else if complaint.starts_with("unknown field")
            && let Some(meant) = known.resembling(key)
        {
            complaint = format!("{complaint}; did you mean `{meant}`?");
        }
    }
    let at = Position::of(text.as_bytes(), span.start);
    Error::Wrong { path: path.to_owned(), at, key, complaint }
}

/// A value that cannot be used.
fn blame(path: &Path, document: &Document<'_>, wrong: Wrong) -> Error {
    let Wrong { mut keys, complaint } = wrong;
    let written = keys.iter().position(|key| document.value(key).is_some()).unwrap_or(0);
    let key = keys.swap_remove(written);
    let at = document.position(&key);
    Error::Wrong { path: path.to_owned(), at, key: Some(key), complaint }
}

#[cfg(test)]
mod tests;
