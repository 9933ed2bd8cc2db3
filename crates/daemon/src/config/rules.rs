//! What a value must be beyond its type: checked before anything is made, so that
//! `berthd config check` and `berthd` agree.

use std::path::{Component, Path};

use berth_cgroup::CgroupPath;
use berth_model::Reference;
use berth_network::{InvalidConfig, NetworkConfig};
use berth_telemetry::{Filter, Format};
use toml::de::DeValue;

use super::document::{Document, Key};
use super::{Config, Network, Runtime, Streaming};
use crate::metrics::Address;
use crate::settings;

/// Longest `state`: the names of shim sockets follow it in paths of 107 bytes (unix(7)).
const MAX_STATE_BYTES: usize = 80;
/// Longest path of a socket, bytes (unix(7)).
const MAX_SOCKET_BYTES: usize = 107;
/// Longest directory, bytes: `PATH_MAX` (4096, path_resolution(7)) less what lies below.
const MAX_PATH_BYTES: usize = 1024;
/// Longest name of a runtime handler, bytes: that of a label, which kubelet makes of it.
const MAX_HANDLER_BYTES: usize = 253;

/// The least and the most that a number may be; a pids limit ends at `PID_MAX_LIMIT`.
const NUMBERS: &[(&str, i128, i128)] = &[
    ("streaming.idle_timeout", 1, 7 * 24 * 60 * 60),
    ("streaming.creation_timeout", 1, 60 * 60),
    ("image.parallel_layers", 1, 16),
    ("network.mtu", 1280, 65_535),
    ("container.pids_limit", 0, 1 << 22),
    ("container.shm_size", 4096, 1 << 40),
    ("nri.registration_timeout_ms", 100, 60_000),
    ("nri.request_timeout_ms", 100, 60_000),
];

const TABLES: &[&str] = &[
    "cri",
    "streaming",
    "log",
    "image",
    "registry",
    "metrics",
    "network",
    "container",
    "nri",
    "runtime",
];

/// A value that is wrong.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Whose value; if the file has several of these, the first one is to blame.
    pub(super) keys: Vec<Key>,
    /// What is wrong, and what is allowed.
    pub(super) complaint: String,
}

impl Wrong {
    pub(super) fn new(key: impl Into<Key>, complaint: impl Into<String>) -> Self {
        Self { keys: vec![key.into()], complaint: complaint.into() }
    }
}

/// What is allowed for a number, in words, if `key` is one.
pub(super) fn number(key: &str) -> Option<String> {
    let (_, low, high) = NUMBERS.iter().find(|(name, ..)| *name == key)?;
    Some(format!("a whole number from {low} to {high}"))
}

/// The first table that is an array: serde would take its entries for the table's values.
pub(super) fn tables(document: &Document<'_>) -> Result<(), Wrong> {
    let handlers = Key::from("runtime.handlers");
    let mut tables: Vec<Key> = TABLES.iter().copied().map(Key::from).collect();
    if let Some(DeValue::Table(named)) = document.value(&handlers) {
        tables.extend(named.keys().map(|name| handlers.clone().child(name.get_ref())));
    }
    tables.push(handlers);
    let is_array = |key: &Key| matches!(document.value(key), Some(DeValue::Array(_)));
    match tables.into_iter().find(is_array) {
        Some(key) => Err(Wrong::new(key, "must be one table, not an array")),
        None => Ok(()),
    }
}

/// The first number out of its range. They are looked at in the file itself: what does not
/// even fit into its type is no less out of range.
pub(super) fn numbers(document: &Document<'_>) -> Result<(), Wrong> {
    for &(name, low, high) in NUMBERS {
        let Some(DeValue::Integer(written)) = document.value(&name.into()) else { continue };
        let value = i128::from_str_radix(written.as_str(), written.radix());
        if !value.is_ok_and(|value| (low..=high).contains(&value)) {
            let complaint = format!("must be from {low} to {high}, not {}", written.as_str());
            return Err(Wrong::new(name, complaint));
        }
    }
    Ok(())
}

/// The first key whose value is wrong, and what is wrong with it.
pub(super) fn check(config: &Config) -> Result<(), Wrong> {
    directories(config)?;
    config.log.format.parse::<Format>().map_err(|error| is_wrong("log.format", &error))?;
    config.log.filter.parse::<Filter>().map_err(|error| is_wrong("log.filter", &error))?;
    for (index, host) in config.image.plain_http.iter().enumerate() {
        if !is_host(host) {
            let complaint = format!("must be a host, with or without a port, not {host:?}");
            return Err(Wrong::new(Key::from("image.plain_http").entry(index), complaint));
        }
    }
    for (index, file) in config.image.ca_files.iter().enumerate() {
        absolute(Key::from("image.ca_files").entry(index), file)?;
    }
    absolute("registry.config_path", &config.registry.config_path)?;
    streaming(config)?;
    metrics(config)?;
    network(&config.network)?;
    if CgroupPath::new(&config.container.cgroup_base).is_err() {
        let written = &config.container.cgroup_base;
        let complaint = format!(
            "must be an absolute path below the root of the cgroups, without \"..\", not {written:?}"
        );
        return Err(Wrong::new("container.cgroup_base", complaint));
    }
    absolute("container.seccomp_profiles", &config.container.seccomp_profiles)?;
    for (index, directory) in config.container.cdi_spec_dirs.iter().enumerate() {
        absolute(Key::from("container.cdi_spec_dirs").entry(index), directory)?;
    }
    nri(config)?;
    runtime(&config.runtime)
}

fn streaming(config: &Config) -> Result<(), Wrong> {
    let Streaming { address, certificate, key, .. } = &config.streaming;
    for (name, file) in [("streaming.certificate", certificate), ("streaming.key", key)] {
        if !file.as_os_str().is_empty() {
            absolute(name, file)?;
        }
    }
    let (certificate_key, key_key) = ("streaming.certificate".into(), "streaming.key".into());
    if certificate.as_os_str().is_empty() != key.as_os_str().is_empty() {
        let complaint = "a certificate and its key go together".to_owned();
        return Err(Wrong { keys: vec![certificate_key, key_key], complaint });
    }
    let settings = settings::streaming(config).map_err(|_| {
        let complaint =
            format!("must be an IP address with a port, such as \"127.0.0.1:0\", not {address:?}");
        Wrong::new("streaming.address", complaint)
    })?;
    settings.check().map_err(|error| is_wrong("streaming.address", &error))
}

fn directories(config: &Config) -> Result<(), Wrong> {
    let (root, state, socket) = (&config.root, &config.state, config.socket());
    absolute("root", root)?;
    // It becomes part of overlay's options, which these end or continue.
    if root.as_os_str().as_encoded_bytes().iter().any(|c| matches!(c, b':' | b',' | b'\\')) {
        return Err(Wrong::new("root", "must not hold ':', ',' or '\\'"));
    }
    no_longer("root", root, MAX_PATH_BYTES)?;
    absolute("state", state)?;
    no_longer("state", state, MAX_STATE_BYTES)?;
    if root.starts_with(state) || state.starts_with(root) {
        let (root, state) = (root.display(), state.display());
        let complaint = format!("state {state} and root {root} must not lie in each other");
        return Err(Wrong { keys: vec!["state".into(), "root".into()], complaint });
    }
    absolute("cri.socket", &socket)?;
    no_longer("cri.socket", &socket, MAX_SOCKET_BYTES)?;
    apart("cri.socket", root, state, &socket)
}

/// The socket is no directory of berthd's, nor where its records and shims are.
fn apart(key: &str, root: &Path, state: &Path, socket: &Path) -> Result<(), Wrong> {
    let over = |dir: &Path| dir.starts_with(socket);
    let own = ["s", "sandboxes", "containers", "exec", "events", "boot", "berthd.lock"];
    if over(root) || over(state) || socket.starts_with(root) {
        let complaint = "must lie neither in root nor above root or state";
        return Err(Wrong::new(key, complaint));
    }
    if own.iter().any(|name| socket.starts_with(state.join(name))) {
        return Err(Wrong::new(key, "is a name that berthd uses itself below state"));
    }
    Ok(())
}

fn metrics(config: &Config) -> Result<(), Wrong> {
    let address = Address::parse(&config.metrics.address)
        .map_err(|complaint| Wrong::new("metrics.address", complaint))?;
    let Some(Address::Unix(socket)) = address else { return Ok(()) };
    absolute("metrics.address", &socket)?;
    if socket == config.socket() || socket == config.nri.socket {
        return Err(Wrong::new("metrics.address", "must not be the socket of the CRI or NRI"));
    }
    apart("metrics.address", &config.root, &config.state, &socket)
}

fn nri(config: &Config) -> Result<(), Wrong> {
    let nri = &config.nri;
    absolute("nri.plugins", &nri.plugins)?;
    absolute("nri.plugin_configs", &nri.plugin_configs)?;
    if nri.socket.as_os_str().is_empty() {
        return Ok(());
    }
    absolute("nri.socket", &nri.socket)?;
    no_longer("nri.socket", &nri.socket, MAX_SOCKET_BYTES)?;
    if nri.socket == config.socket() {
        return Err(Wrong::new("nri.socket", "must not be the socket of the CRI"));
    }
    apart("nri.socket", &config.root, &config.state, &nri.socket)
}

fn network(network: &Network) -> Result<(), Wrong> {
    let subnet = network.subnet.parse().map_err(|error| is_wrong("network.subnet", &error))?;
    let built = NetworkConfig {
        bridge: network.bridge.clone(),
        subnet,
        mtu: network.mtu,
        masquerade: network.masquerade,
        table: network.table.clone(),
    };
    built.validate().map_err(|error| {
        let key = match error {
            InvalidConfig::Bridge(_) => "network.bridge",
            InvalidConfig::Table(_) => "network.table",
            InvalidConfig::Mtu(_) => "network.mtu",
        };
        is_wrong(key, &error)
    })
}

fn is_wrong(key: &str, error: &dyn std::error::Error) -> Wrong {
    Wrong::new(key, error.to_string())
}

fn runtime(runtime: &Runtime) -> Result<(), Wrong> {
    let handlers = Key::from("runtime.handlers");
    for (name, handler) in &runtime.handlers {
        let key = handlers.clone().child(name);
        if name.is_empty() {
            return Err(Wrong::new(key, "a handler without a name stands for the default"));
        }
        if name.len() > MAX_HANDLER_BYTES || name.contains(char::is_control) {
            let complaint = format!("must be at most {MAX_HANDLER_BYTES} printable bytes");
            return Err(Wrong::new(key, complaint));
        }
        let bare = handler.shim.components().count() == 1 && handler.shim.file_name().is_some();
        if !bare && absolute("", &handler.shim).is_err() {
            let complaint = format!(
                "must be an absolute path, or a name alone, not {:?}",
                handler.shim.display()
            );
            return Err(Wrong::new(key.child("shim"), complaint));
        }
    }
    if !runtime.handlers.contains_key(&runtime.default) {
        let known: Vec<_> = runtime.handlers.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let complaint = format!("handler {:?} has no table; handlers: {known}", runtime.default);
        return Err(Wrong { keys: vec!["runtime.default".into(), handlers], complaint });
    }
    Ok(())
}

/// Whether a reference can have `text` as its domain, perhaps with a port added.
fn is_host(text: &str) -> bool {
    let is_domain = |domain: &str| {
        let reference = format!("{domain}/x").parse::<Reference>();
        reference.is_ok_and(|reference| reference.domain() == domain)
    };
    is_domain(text) || is_domain(&format!("{text}:1"))
}

fn absolute(key: impl Into<Key>, path: &Path) -> Result<(), Wrong> {
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir))
        && !path.to_string_lossy().contains(char::is_control);
    if path.is_absolute() && plain && path.parent().is_some() {
        return Ok(());
    }
    let complaint = format!("must be an absolute path below /, not {:?}", path.display());
    Err(Wrong::new(key, complaint))
}

fn no_longer(key: &str, path: &Path, bytes: usize) -> Result<(), Wrong> {
    let found = path.as_os_str().len();
    if found <= bytes {
        return Ok(());
    }
    Err(Wrong::new(key, format!("must be at most {bytes} bytes long, not {found}")))
}
