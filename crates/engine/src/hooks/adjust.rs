//! What plugins want of a container, in its specification.
//!
//! Plugins are the node administrator's (their socket and directory are root's), so they
//! may give a container more than its pod asked for. They may not break what the daemon
//! relies on: the cgroup, the namespaces by which processes are found and killed, and our
//! own annotations stay as they are. What the runtime cannot do is refused by its name,
//! here, and not when the container is started.

mod limits;

pub(super) use self::limits::refuse as refuse_limits;

use std::path::{Component, Path};

use berth_model::sandbox::NamespaceOptions;
use berth_nri::api::{
    ContainerAdjustment, Hooks, KeyValue, LinuxContainerAdjustment, LinuxDevice, LinuxNamespace,
    LinuxSeccomp, Mount, PosixRlimit,
};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::container;
use crate::Error;

/// Changes the specification to what plugins want.
pub(super) fn apply(
    oci: &mut Spec,
    wanted: ContainerAdjustment,
    namespaces: &NamespaceOptions,
) -> Result<(), Error> {
    if wanted == ContainerAdjustment::default() {
        return Ok(());
    }
    refuse(&wanted)?;
    let mut spec = container::json(oci)?;
    annotations(&mut spec, wanted.annotations)?;
    environment(&mut spec, wanted.env)?;
    if !wanted.args.is_empty() {
        spec["process"]["args"] = json!(wanted.args);
    }
    mounts(&mut spec, wanted.mounts)?;
    hooks(&mut spec, wanted.hooks.unwrap_or_default())?;
    rlimits(&mut spec, wanted.rlimits);
    if let Some(linux) = wanted.linux {
        adjust_linux(&mut spec, linux, namespaces)?;
    }
    *oci = serde_json::from_value(spec)
        .map_err(|error| Error::invalid("adjustment by plugins", error.to_string()))?;
    Ok(())
}

fn invalid(what: &str, problem: impl Into<String>) -> Error {
    Error::Invalid {
        field: "adjustment by plugins",
        problem: format!("{what}: {}", problem.into()),
    }
}

/// What the runtime does not do, by its name.
fn refuse(wanted: &ContainerAdjustment) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::Unsupported(format!("adjustment of {what} by a plugin")));
    let late = |hooks: &Hooks| !hooks.poststart.is_empty() || !hooks.poststop.is_empty();
    if wanted.hooks.as_ref().is_some_and(late) {
        return refuse("OCI hooks after the start");
    }
    let Some(linux) = &wanted.linux else { return Ok(()) };
    let resources = linux.resources.as_ref();
    for (is_wanted, what) in [
        (!linux.cgroups_path.is_empty(), "the cgroup path"),
        (linux.io_priority.is_some(), "the I/O priority"),
        (linux.scheduler.is_some(), "the scheduling policy"),
        (!linux.net_devices.is_empty(), "network devices"),
        (linux.rdt.is_some(), "RDT"),
        (linux.memory_policy.is_some(), "the memory policy"),
        (resources.is_some_and(|all| all.blockio_class.is_some()), "the block I/O class"),
        (resources.is_some_and(|all| all.rdt_class.is_some()), "the RDT class"),
    ] {
        if is_wanted {
            return refuse(what);
        }
    }
    resources.map_or(Ok(()), limits::refuse)
}

/// The list at a place of the specification, made if there is none.
fn list(place: &mut Value) -> &mut Vec<Value> {
    if !place.is_array() {
        *place = json!([]);
    }
    place.as_array_mut().expect("it was made one")
}

fn annotations(
    spec: &mut Value,
    wanted: std::collections::BTreeMap<String, String>,
) -> Result<(), Error> {
    for (key, value) in wanted {
        let name = key.strip_prefix('-').unwrap_or(&key);
        if name.starts_with(berth_spec::PREFIX) {
            return Err(invalid("annotations", format!("{name:?} is one of berth's own")));
        }
        if name == key {
            spec["annotations"][name] = json!(value);
        } else if let Some(all) = spec["annotations"].as_object_mut() {
            all.remove(name);
        }
    }
    Ok(())
}

fn environment(spec: &mut Value, wanted: Vec<KeyValue>) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    if spec["annotations"].get(berth_spec::ENV_ANNOTATION).is_some() {
        return Err(invalid("env", "the environment has values that are not UTF-8"));
    }
    let all = list(&mut spec["process"]["env"]);
    for KeyValue { key, value } in wanted {
        let name = key.strip_prefix('-').unwrap_or(&key);
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid("env", format!("{name:?} cannot be set")));
        }
        let is_it = |entry: &Value| {
            entry.as_str().and_then(|entry| entry.split_once('=')).is_some_and(|(n, _)| n == name)
        };
        let place = all.iter().position(is_it);
        let entry = (name == key).then(|| json!(format!("{name}={value}")));
        match (place, entry) {
            (Some(place), Some(entry)) => all[place] = entry,
            (Some(place), None) => drop(all.remove(place)),
            (None, Some(entry)) => all.push(entry),
            (None, None) => {}
        }
    }
    Ok(())
}

/// A path in the container that leads nowhere else.
fn check_path(what: &str, path: &str) -> Result<(), Error> {
    let clean = Path::new(path).components().all(|part| part != Component::ParentDir);
    if !path.starts_with('/') || !clean || path.contains('\0') {
        return Err(invalid(what, format!("{path:?} is no absolute path without \"..\"")));
    }
    Ok(())
}

fn mounts(spec: &mut Value, wanted: Vec<Mount>) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let all = list(&mut spec["mounts"]);
    for mount in wanted {
        let destination = mount.destination.strip_prefix('-').unwrap_or(&mount.destination);
        check_path("mounts", destination)?;
        let is_it = |known: &Value| known["destination"].as_str() == Some(destination);
        all.retain(|known| !is_it(known));
        if destination.len() < mount.destination.len() {
            continue;
        }
        if mount.r#type == "berth-shared" {
            return Err(invalid("mounts", "the type berth-shared is berth's own"));
        }
        let bind = mount.options.iter().any(|option| option == "bind" || option == "rbind");
        if bind || mount.r#type.ends_with("bind") {
            check_path("mounts", &mount.source)?;
        }
        let mut added = json!({"destination": mount.destination, "options": mount.options});
        if !mount.r#type.is_empty() {
            added["type"] = json!(mount.r#type);
        }
        if !mount.source.is_empty() {
            added["source"] = json!(mount.source);
        }
        all.push(added);
    }
    // A mount hides what is mounted below its destination before it.
    all.sort_by_key(|mount| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        Path::new(destination).components().count()
    });
    Ok(())
}

/// Programs of the node's, but for those of `startContainer`, which are the container's own
/// and run with its rights.
fn hooks(spec: &mut Value, wanted: Hooks) -> Result<(), Error> {
    for (point, hooks) in [
        ("prestart", wanted.prestart),
        ("createRuntime", wanted.create_runtime),
        ("createContainer", wanted.create_container),
        ("startContainer", wanted.start_container),
    ] {
        for hook in hooks {
            check_path("hooks", &hook.path)?;
            if hook.args.iter().chain(&hook.env).any(|text| text.contains('\0')) {
                return Err(invalid("hooks", format!("{:?} cannot be run", hook.path)));
            }
            let mut added = json!({"path": hook.path, "args": hook.args, "env": hook.env});
            if let Some(timeout) = hook.timeout {
                if timeout.value <= 0 {
                    let problem = format!("{:?} has a timeout of {} s", hook.path, timeout.value);
                    return Err(invalid("hooks", problem));
                }
                added["timeout"] = json!(timeout.value);
            }
            list(&mut spec["hooks"][point]).push(added);
        }
    }
    Ok(())
}

fn rlimits(spec: &mut Value, wanted: Vec<PosixRlimit>) {
    for limit in wanted {
        let all = list(&mut spec["process"]["rlimits"]);
        all.retain(|known| known["type"].as_str() != Some(&limit.r#type));
        all.push(json!({"type": limit.r#type, "hard": limit.hard, "soft": limit.soft}));
    }
}

fn adjust_linux(
    spec: &mut Value,
    wanted: LinuxContainerAdjustment,
    options: &NamespaceOptions,
) -> Result<(), Error> {
    devices(spec, wanted.devices)?;
    if let Some(score) = wanted.oom_score_adj {
        if !(-1000..=1000).contains(&score.value) {
            return Err(invalid("oom_score_adj", format!("{} is out of range", score.value)));
        }
        spec["process"]["oomScoreAdj"] = json!(score.value);
    }
    if let Some(policy) = wanted.seccomp_policy {
        spec["linux"]["seccomp"] = seccomp(policy)?;
    }
    namespaces(spec, wanted.namespaces)?;
    sysctls(spec, wanted.sysctl, options)?;
    match wanted.resources {
        Some(resources) => limits::adjust(&mut spec["linux"]["resources"], resources),
        None => Ok(()),
    }
}

fn devices(spec: &mut Value, wanted: Vec<LinuxDevice>) -> Result<(), Error> {
    for device in wanted {
        let path = device.path.strip_prefix('-').unwrap_or(&device.path);
        check_path("devices", path)?;
        let all = list(&mut spec["linux"]["devices"]);
        all.retain(|known| known["path"].as_str() != Some(path));
        if path.len() < device.path.len() {
            continue;
        }
        let mut added = json!({
            "path": path, "type": device.r#type, "major": device.major, "minor": device.minor,
        });
        for (name, value) in
            [("fileMode", device.file_mode), ("uid", device.uid), ("gid", device.gid)]
        {
            if let Some(value) = value {
                added[name] = json!(value.value);
            }
        }
        all.push(added);
        // A FIFO is no device.
        if device.r#type != "p" {
            list(&mut spec["linux"]["resources"]["devices"]).push(json!({
                "allow": true, "type": device.r#type,
                "major": device.major, "minor": device.minor, "access": "rwm",
            }));
        }
    }
    Ok(())
}

fn seccomp(policy: LinuxSeccomp) -> Result<Value, Error> {
    if !policy.listener_path.is_empty() || !policy.listener_metadata.is_empty() {
        let what = "adjustment of a seccomp listener by a plugin";
        return Err(Error::Unsupported(what.to_owned()));
    }
    let mut rules = Vec::new();
    for rule in policy.syscalls {
        let arg = |arg: berth_nri::api::LinuxSeccompArg| {
            json!({
                "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op,
            })
        };
        let args: Vec<_> = rule.args.into_iter().map(arg).collect();
        let mut one = json!({"names": rule.names, "action": rule.action});
        if !args.is_empty() {
            one["args"] = json!(args);
        }
        if let Some(errno) = rule.errno_ret {
            one["errnoRet"] = json!(errno.value);
        }
        rules.push(one);
    }
    let mut profile = json!({"defaultAction": policy.default_action, "syscalls": rules});
    if let Some(errno) = policy.default_errno {
        profile["defaultErrnoRet"] = json!(errno.value);
    }
    if !policy.architectures.is_empty() {
        profile["architectures"] = json!(policy.architectures);
    }
    if !policy.flags.is_empty() {
        profile["flags"] = json!(policy.flags);
    }
    Ok(profile)
}

/// Namespaces to join instead of the pod's.
fn namespaces(spec: &mut Value, wanted: Vec<LinuxNamespace>) -> Result<(), Error> {
    for namespace in wanted {
        let kind = namespace.r#type.as_str();
        if !matches!(kind, "network" | "ipc" | "uts" | "cgroup") {
            let what = format!("adjustment of the namespace {kind:?} by a plugin");
            return Err(Error::Unsupported(what));
        }
        check_path("namespaces", &namespace.path)?;
        let all = list(&mut spec["linux"]["namespaces"]);
        all.retain(|known| known["type"].as_str() != Some(kind));
        all.push(json!({"type": kind, "path": namespace.path}));
    }
    Ok(())
}

/// Only those of namespaces that the pod has of its own, as in a request.
fn sysctls(
    spec: &mut Value,
    wanted: std::collections::BTreeMap<String, String>,
    options: &NamespaceOptions,
) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let (gone, set): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|(name, _)| name.starts_with('-'));
    let set = set.into_iter().collect();
    berth_spec::sysctl::check(&set, options)
        .map_err(|source| invalid("sysctl", source.to_string()))?;
    if let Some(all) = spec["linux"]["sysctl"].as_object_mut() {
        for (name, _) in gone {
            all.remove(name.trim_start_matches('-'));
        }
    }
    for (name, value) in set {
        spec["linux"]["sysctl"][name] = json!(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
