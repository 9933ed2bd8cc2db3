//! What a value must be beyond its type: checked before anything is made, so that
//! `berthd config check` and `berthd` agree.

use std::path::{Component, Path};

use berth_cgroup::CgroupPath;
use berth_model::Reference;
use berth_network::{InvalidConfig, NetworkConfig};
use berth_telemetry::{Filter, Format};

use super::{Config, Network, Runtime};

/// Longest `state`: the names of shim sockets follow it in paths of 107 bytes (unix(7)).
const MAX_STATE_BYTES: usize = 80;
/// Longest path of a socket, bytes (unix(7)).
const MAX_SOCKET_BYTES: usize = 107;

/// A key, and what is wrong with its value.
type Wrong = (&'static str, String);

/// The first key whose value is wrong, and what is wrong with it.
pub(super) fn check(config: &Config) -> Result<(), Wrong> {
    directories(config)?;
    if let Err(error) = config.log.format.parse::<Format>() {
        return Err(("log.format", format!("is wrong: {error}")));
    }
    if let Err(error) = config.log.filter.parse::<Filter>() {
        return Err(("log.filter", format!("is wrong: {error}")));
    }
    within("image.parallel_layers", config.image.parallel_layers, 1, 16)?;
    for host in &config.image.plain_http {
        if !is_host(host) {
            let complaint = format!("must be hosts, with or without a port; {host:?} is none");
            return Err(("image.plain_http", complaint));
        }
    }
    for file in &config.image.ca_files {
        absolute("image.ca_files", file)?;
    }
    network(&config.network)?;
    if CgroupPath::new(&config.container.cgroup_base).is_err() {
        let complaint = "must be an absolute path below the root of the cgroups, without \"..\"";
        return Err(("container.cgroup_base", complaint.into()));
    }
    within("container.shm_size", config.container.shm_size, 4096, 1 << 40)?;
    absolute("container.seccomp_profiles", &config.container.seccomp_profiles)?;
    runtime(&config.runtime)
}

fn directories(config: &Config) -> Result<(), Wrong> {
    let (root, state, socket) = (&config.root, &config.state, config.socket());
    absolute("root", root)?;
    // It becomes part of overlay's options, which these end or continue.
    if root.as_os_str().as_encoded_bytes().iter().any(|c| matches!(c, b':' | b',' | b'\\')) {
        return Err(("root", "must not hold ':', ',' or '\\'".into()));
    }
    absolute("state", state)?;
    if state.as_os_str().len() > MAX_STATE_BYTES {
        return Err(("state", format!("is longer than {MAX_STATE_BYTES} bytes")));
    }
    if root.starts_with(state) || state.starts_with(root) {
        return Err(("state", "and root must not lie in each other".into()));
    }
    absolute("cri.socket", &socket)?;
    if socket.as_os_str().len() > MAX_SOCKET_BYTES {
        return Err(("cri.socket", format!("is longer than {MAX_SOCKET_BYTES} bytes")));
    }
    Ok(())
}

fn network(network: &Network) -> Result<(), Wrong> {
    within("network.mtu", network.mtu, 1280, 65_535)?;
    let subnet = network.subnet.parse().map_err(|error| ("network.subnet", is_wrong(&error)))?;
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
        (key, is_wrong(&error))
    })
}

fn is_wrong(error: &dyn std::error::Error) -> String {
    format!("is wrong: {error}")
}

fn runtime(runtime: &Runtime) -> Result<(), Wrong> {
    for (name, handler) in &runtime.handlers {
        if name.is_empty() {
            let complaint = "has a table without a name: that stands for the default";
            return Err(("runtime.handlers", complaint.into()));
        }
        let bare = handler.shim.components().count() == 1 && handler.shim.file_name().is_some();
        if !bare && absolute("runtime.handlers", &handler.shim).is_err() {
            let complaint = format!("{name:?} needs a shim by absolute path or by name alone");
            return Err(("runtime.handlers", complaint));
        }
    }
    if !runtime.handlers.contains_key(&runtime.default) {
        let default = &runtime.default;
        return Err(("runtime.default", format!("names handler {default:?}, which has no table")));
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

fn absolute(key: &'static str, path: &Path) -> Result<(), Wrong> {
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir))
        && !path.to_string_lossy().contains(char::is_control);
    if path.is_absolute() && plain && path.parent().is_some() {
        return Ok(());
    }
    Err((key, format!("must be an absolute path below /, not {:?}", path.display())))
}

fn within<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    low: T,
    high: T,
) -> Result<(), Wrong> {
    if value >= low && value <= high {
        return Ok(());
    }
    Err((key, format!("must be between {low} and {high}, not {value}")))
}
