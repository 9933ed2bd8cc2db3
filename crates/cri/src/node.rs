//! Who answers, whether pods can be run, and how the runtime is configured.

use std::collections::BTreeMap;

use berth_api::v1::*;
use berth_engine::{
    Condition, Engine, Handler, NamedDevices, PluginStatus, PluginsStatus, UndoStatus,
};
use berth_streaming::Urls;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::Error;

/// kubelet's name for the version of its own request.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Most unfinished steps that a status shows.
const MAX_SHOWN: usize = 50;

pub(crate) async fn version(_: &Engine, _: VersionRequest) -> Result<VersionResponse, Error> {
    Ok(VersionResponse {
        version: KUBELET_API_VERSION.to_owned(),
        runtime_name: "berth".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}

pub(crate) async fn status(
    engine: &Engine,
    request: StatusRequest,
) -> Result<StatusResponse, Error> {
    let status = engine.status().await;
    let handlers = engine.handlers();
    let user_namespaces = engine.user_namespaces().await;
    let info = request.verbose.then(|| {
        info(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "runtimeHandlers": handlers.iter().map(|handler| &handler.name).collect::<Vec<_>>(),
            "cgroupDriver": "cgroupfs",
            "sandboxes": engine.sandboxes().len(),
            "containers": engine.containers().len(),
            "undo": undo(&engine.undo_status()),
        }))
    });
    Ok(StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", status.runtime),
                condition("NetworkReady", status.network),
            ],
        }),
        info: info.unwrap_or_default(),
        runtime_handlers: runtime_handlers(&handlers, user_namespaces),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: user_namespaces,
            mount_options: true,
        }),
    })
}

/// What operators look for when a node is not as they meant it, each under a key of its own:
/// crictl prints them beside the conditions. Nothing of it is secret.
pub(crate) async fn describe(
    info: &mut BTreeMap<String, String>,
    engine: &Engine,
    urls: &Urls,
    config: &watch::Receiver<String>,
) {
    let devices = match engine.named_devices().await {
        Ok(devices) => named_devices(&devices),
        Err(error) => json!({"error": error.to_string()}),
    };
    let network = engine.network();
    let network = json!({
        "bridge": network.bridge,
        "subnet": network.subnet.to_string(),
        "mtu": network.mtu,
        "masquerade": network.masquerade,
    });
    for (key, value) in [
        ("config", config.borrow().clone()),
        ("streaming", json!({"address": urls.base()}).to_string()),
        ("nri", plugins(engine.plugins()).to_string()),
        ("cdi", devices.to_string()),
        ("network", network.to_string()),
    ] {
        info.insert(key.to_owned(), value);
    }
}

fn plugins(status: Option<PluginsStatus>) -> Value {
    let Some(status) = status else { return json!({"enabled": false}) };
    let plugin = |plugin: &PluginStatus| {
        let state = if plugin.connected { "connected" } else { "leaving" };
        json!({"index": plugin.index, "name": plugin.name, "state": state})
    };
    json!({
        "enabled": true,
        "socket": status.socket,
        "listening": status.listening,
        "plugins": status.plugins.iter().map(plugin).collect::<Vec<_>>(),
        "joining": status.joining,
    })
}

fn named_devices(devices: &NamedDevices) -> Value {
    let broken = devices.broken.iter().take(MAX_SHOWN);
    let broken = broken.map(|(path, why)| json!({"path": path, "error": why}));
    json!({
        "directories": devices.directories,
        "devices": devices.devices.len(),
        "names": devices.devices.iter().take(MAX_SHOWN).collect::<Vec<_>>(),
        "broken": devices.broken.len(),
        "errors": broken.collect::<Vec<_>>(),
    })
}

/// What could not be taken back yet: the oldest entries, and how many there are.
fn undo(status: &UndoStatus) -> Value {
    let shown = status.unfinished.iter().take(MAX_SHOWN).map(|left| {
        json!({
            "object": left.object,
            "step": left.step,
            "tries": left.tries,
            "seconds": left.elapsed.as_secs(),
            "error": left.error,
        })
    });
    json!({
        "unfinished": status.unfinished.len(),
        "oldest": shown.collect::<Vec<_>>(),
        "failures": status.failures,
        "recovered": status.recovered,
    })
}

/// kubelet looks the default handler up under the empty name. Of another's program it is not
/// known what it can: kubelet then refuses what needs it, before anything is made.
fn runtime_handlers(handlers: &[Handler], user_namespaces: bool) -> Vec<RuntimeHandler> {
    let told = |name: &str, handler: &Handler| RuntimeHandler {
        name: name.to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.in_tree,
            user_namespaces: handler.in_tree && user_namespaces,
        }),
    };
    let unnamed = handlers.first().map(|default| told("", default));
    unnamed.into_iter().chain(handlers.iter().map(|handler| told(&handler.name, handler))).collect()
}

fn condition(kind: &str, condition: Condition) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status: condition.ready,
        reason: condition.reason,
        message: condition.message,
    }
}

pub(crate) async fn runtime_config(
    _: &Engine,
    _: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, Error> {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
    Ok(RuntimeConfigResponse { linux: Some(linux) })
}

/// kubelet tells the pod CIDR it was given; the subnet of sandboxes is the daemon's own
/// configuration, so this is only noted.
pub(crate) async fn update_runtime_config(
    _: &Engine,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Error> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
    if !pod_cidr.split(',').all(|one| pod_cidr.is_empty() || is_cidr(one)) {
        let field = "runtime_config.network_config.pod_cidr";
        return Err(Error::invalid(field, "must be subnets, joined by commas"));
    }
    tracing::debug!(pod_cidr, "runtime configuration noted");
    Ok(UpdateRuntimeConfigResponse {})
}

/// An address and how many of its bits are the subnet's (RFC 4632).
fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(bits)) = (address.parse::<std::net::IpAddr>(), bits.parse::<u8>()) else {
        return false;
    };
    bits <= if address.is_ipv4() { 32 } else { 128 }
}

/// What `verbose` adds to an answer: one JSON object under the key crictl prints.
pub(crate) fn info(value: &Value) -> BTreeMap<String, String> {
    [("info".to_owned(), value.to_string())].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_handler_is_listed_under_the_empty_name_too() {
        let handlers = runtime_handlers(&[handler("berth"), handler("kata")], false);
        let names: Vec<_> = handlers.iter().map(|handler| handler.name.as_str()).collect();
        assert_eq!(names, ["", "berth", "kata"]);
        assert!(handlers.iter().all(|handler| !handler.features.unwrap().user_namespaces));
    }

    fn handler(name: &str) -> Handler {
        Handler { name: name.to_owned(), in_tree: name == "berth" }
    }

    /// teeth: crates/cri/src/node.rs: `recursive_read_only_mounts: handler.in_tree` → `recursive_read_only_mounts: true`
    #[test]
    fn nothing_is_promised_of_a_program_of_another() {
        for (handlers, expected) in [
            (["berth", "kata"], [("", true), ("berth", true), ("kata", false)]),
            (["kata", "berth"], [("", false), ("kata", false), ("berth", true)]),
        ] {
            for told in runtime_handlers(&handlers.map(handler), true).iter().zip(expected) {
                let (told, (name, can)) = told;
                let features = RuntimeHandlerFeatures {
                    recursive_read_only_mounts: can,
                    user_namespaces: can,
                };
                assert_eq!((told.name.as_str(), told.features), (name, Some(features)));
            }
        }
    }

    #[test]
    fn a_condition_keeps_its_reason() {
        let down = Condition {
            ready: false,
            reason: "NoBridge".to_owned(),
            message: "bridge berth0 is down".to_owned(),
        };
        let told = condition("NetworkReady", down);
        assert_eq!((told.r#type.as_str(), told.status), ("NetworkReady", false));
        assert_eq!(
            (told.reason.as_str(), told.message.as_str()),
            ("NoBridge", "bridge berth0 is down")
        );
    }
}
