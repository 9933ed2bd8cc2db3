//! What each part of the daemon is told, out of the one configuration.

use std::fs;
use std::net::AddrParseError;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_engine::RuntimeConfig;
use berth_network::NetworkConfig;
use berth_registry::Proxies;

use crate::config::{Config, find_shim};

/// The name of the shim that lives in this repository.
const IN_TREE_SHIM: &str = "containerd-shim-berth-v1";
/// How long a reading of a cgroup stays good.
const STATS_AGE: Duration = Duration::from_secs(1);

pub(crate) fn registry(config: &Config, proxies: Proxies) -> berth_registry::Config {
    berth_registry::Config {
        plain_http: config.image.plain_http.clone(),
        certificate_authorities: config.image.ca_files.clone(),
        hosts: Some(config.registry.config_path.clone()),
        proxies,
        ..Default::default()
    }
}

pub(crate) fn streaming(config: &Config) -> Result<berth_streaming::Config, AddrParseError> {
    let streaming = &config.streaming;
    let tls = (!streaming.certificate.as_os_str().is_empty()).then(|| berth_streaming::TlsFiles {
        certificate: streaming.certificate.clone(),
        key: streaming.key.clone(),
    });
    let seconds = |seconds| Duration::from_secs(u64::from(seconds));
    Ok(berth_streaming::Config {
        address: streaming.address.parse()?,
        tls,
        idle_timeout: seconds(streaming.idle_timeout),
        creation_timeout: seconds(streaming.creation_timeout),
        ..Default::default()
    })
}

/// The configuration as `crictl info` shows it. It names files with secrets, and has none.
pub(crate) fn shown(config: &Config) -> String {
    serde_json::to_string(config).unwrap_or_else(|error| format!("{:?}", error.to_string()))
}

/// Proxies that the environment names.
pub(crate) fn proxies() -> Proxies {
    Proxies::from_environment(|name| std::env::var(name).ok())
}

/// Most processes of a container that names no limit itself.
pub(crate) fn pids_limit(config: &Config) -> Option<i64> {
    let limit = config.container.pids_limit;
    (limit > 0).then_some(i64::from(limit))
}

pub(crate) fn images(config: &Config) -> berth_image::Config {
    berth_image::Config { parallel_layers: config.image.parallel_layers, ..Default::default() }
}

pub(crate) fn engine(config: &Config) -> Result<berth_engine::Config> {
    let mut runtimes = std::collections::BTreeMap::new();
    for (name, handler) in &config.runtime.handlers {
        let shim = find_shim(handler)
            .with_context(|| format!("runtime.handlers.{name}.shim {}", handler.shim.display()))?;
        let in_tree = shim.file_name().is_some_and(|name| name == IN_TREE_SHIM);
        runtimes.insert(name.clone(), RuntimeConfig { shim, in_tree });
    }
    Ok(berth_engine::Config {
        root: config.root.clone(),
        state: config.state.clone(),
        runtimes,
        default_runtime: config.runtime.default.clone(),
        network: network(config)?,
        cgroup_base: config.container.cgroup_base.clone(),
        shim_cgroup: fs::read_to_string("/proc/self/cgroup").ok().and_then(|own| shim_cgroup(&own)),
        shm_bytes: config.container.shm_size,
        pids_limit: pids_limit(config),
        events_address: String::new(),
        cdi_dirs: config.container.cdi_spec_dirs.clone(),
        seccomp_profiles: config.container.seccomp_profiles.clone(),
        stats_age: STATS_AGE,
        nri: nri(config),
    })
}

fn nri(config: &Config) -> Option<berth_nri::Config> {
    let nri = &config.nri;
    nri.enabled.then(|| berth_nri::Config {
        socket: Some(nri.socket.clone()).filter(|socket| !socket.as_os_str().is_empty()),
        plugins: nri.plugins.clone(),
        configurations: nri.plugin_configs.clone(),
        registration_timeout: Duration::from_millis(nri.registration_timeout_ms),
        request_timeout: Duration::from_millis(nri.request_timeout_ms),
        runtime: ("berth".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    })
}

fn network(config: &Config) -> Result<NetworkConfig> {
    let network = &config.network;
    let built = NetworkConfig {
        bridge: network.bridge.clone(),
        subnet: network.subnet.parse().context("network.subnet")?,
        mtu: network.mtu,
        masquerade: network.masquerade,
        table: network.table.clone(),
    };
    built.validate().context("network")?;
    Ok(built)
}

/// A leaf of this process's own cgroup v2, out of its `/proc/self/cgroup`.
///
/// kubelet kills every process it finds in a dead pod's cgroup, so shims live in ours. In
/// the root cgroup there is nothing to leave: shims stay there.
fn shim_cgroup(own: &str) -> Option<String> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    (path != "/").then(|| format!("{path}/shims"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_live_beside_the_daemon_unless_it_is_at_the_root() {
        assert_eq!(
            shim_cgroup("5:memory:/x\n0::/berth.service\n"),
            Some("/berth.service/shims".into())
        );
        assert_eq!(shim_cgroup("5:memory:/x\n0::/\n"), None);
        assert_eq!(shim_cgroup("5:memory:/x\n"), None);
    }
}
