//! Containers as plugins are told of them: what was asked for, and the specification that
//! came of it.

use std::path::Path;

use berth_model::ContainerState as State;
use berth_model::container::Profile;
use berth_nri::api::{
    CdiDevice, Container, ContainerState, Hook, Hooks, HugepageLimit, Image, LinuxContainer,
    LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace, LinuxPids,
    LinuxResources, Mount, OptionalBool, OptionalInt, OptionalUInt32, OptionalUInt64, PosixRlimit,
    SecurityProfile, User,
};
use oci_spec::runtime::Spec;
use serde_json::Value;

use crate::core::{Core, warn_failure};
use crate::{ContainerStatus, Error, files};

/// Largest specification that is read, bytes.
const MAX_SPEC: u64 = 16 << 20;

/// A specification as JSON, by whose names this module and `adjust` go.
pub(super) fn json(oci: &Spec) -> Result<Value, Error> {
    serde_json::to_value(oci).map_err(|source| Error::Io {
        action: "write specification for plugins",
        path: "config.json".into(),
        source: source.into(),
    })
}

/// The specification in a bundle; nothing, if it cannot be read.
pub(super) async fn stored(core: &Core, bundle: &Path) -> Value {
    let path = bundle.join("config.json");
    let read = core.disk.run(move || {
        let json = files::read_bounded(&path, MAX_SPEC)?;
        let parsed = serde_json::from_slice(&json);
        parsed.map_err(|source| Error::Io { action: "read", path, source: source.into() })
    });
    read.await.flatten().unwrap_or_else(|error| {
        warn_failure("read specification for plugins", &error);
        Value::Null
    })
}

pub(super) fn container(status: &ContainerStatus, oci: &Value) -> Container {
    let spec = &status.spec;
    let (process, linux) = (&oci["process"], &oci["linux"]);
    let mut annotations: std::collections::BTreeMap<_, _> = entries(&oci["annotations"]).collect();
    annotations.extend(spec.annotations.clone());
    let state = match &status.state {
        State::Created => ContainerState::ContainerCreated,
        State::Running { .. } => ContainerState::ContainerRunning,
        State::Exited { .. } => ContainerState::ContainerStopped,
    };
    let started_at = match &status.state {
        State::Created => 0,
        State::Running { started_at, .. } | State::Exited { started_at, .. } => started_at.0,
    };
    let exit = match &status.state {
        State::Exited { exit, .. } => Some(exit),
        State::Created | State::Running { .. } => None,
    };
    Container {
        id: status.id.to_string(),
        pod_sandbox_id: status.sandbox.to_string(),
        name: spec.name.name.clone(),
        state: state.into(),
        labels: spec.labels.clone(),
        annotations,
        args: texts(&process["args"]),
        env: texts(&process["env"]),
        mounts: list(&oci["mounts"]).map(mount).collect(),
        hooks: oci["hooks"].as_object().map(|_| hooks(&oci["hooks"])),
        linux: Some(LinuxContainer {
            namespaces: list(&linux["namespaces"]).map(namespace).collect(),
            devices: list(&linux["devices"]).map(device).collect(),
            resources: Some(resources(&linux["resources"])),
            oom_score_adj: process["oomScoreAdj"].as_i64().map(|value| OptionalInt { value }),
            cgroups_path: text(&linux["cgroupsPath"]),
            seccomp_profile: Some(profile(&spec.security.seccomp)),
            sysctl: entries(&linux["sysctl"]).collect(),
            ..LinuxContainer::default()
        }),
        pid: status.pid().unwrap_or_default(),
        rlimits: list(&process["rlimits"]).map(rlimit).collect(),
        created_at: status.created_at.0,
        started_at,
        finished_at: exit.map_or(0, |exit| exit.at.0),
        exit_code: exit.map_or(0, |exit| exit.code),
        status_reason: exit.map_or("", |exit| exit.reason.as_str()).to_owned(),
        status_message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        cdi_devices: spec.cdi_devices.iter().map(|name| CdiDevice { name: name.clone() }).collect(),
        user: Some(User {
            uid: status.uid,
            gid: status.gid,
            additional_gids: status.groups.to_vec(),
        }),
        image: Some(Image {
            name: spec.image.clone(),
            digest: status.image_ref.split_once('@').map(|(_, d)| d.to_owned()).unwrap_or_default(),
            config_digest: status.image_id.to_string(),
        }),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    list(value).map(text).collect()
}

fn entries(value: &Value) -> impl Iterator<Item = (String, String)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value)))
}

fn hooks(value: &Value) -> Hooks {
    let hooks = |point: &str| list(&value[point]).map(hook).collect();
    Hooks {
        prestart: hooks("prestart"),
        create_runtime: hooks("createRuntime"),
        create_container: hooks("createContainer"),
        start_container: hooks("startContainer"),
        poststart: hooks("poststart"),
        poststop: hooks("poststop"),
    }
}

fn hook(value: &Value) -> Hook {
    Hook {
        path: text(&value["path"]),
        args: texts(&value["args"]),
        env: texts(&value["env"]),
        timeout: value["timeout"].as_i64().map(|value| OptionalInt { value }),
    }
}

fn mount(value: &Value) -> Mount {
    Mount {
        destination: text(&value["destination"]),
        r#type: text(&value["type"]),
        source: text(&value["source"]),
        options: texts(&value["options"]),
    }
}

fn namespace(value: &Value) -> LinuxNamespace {
    LinuxNamespace { r#type: text(&value["type"]), path: text(&value["path"]) }
}

fn narrow(value: &Value) -> Option<OptionalUInt32> {
    let value = value.as_u64().and_then(|value| u32::try_from(value).ok());
    value.map(|value| OptionalUInt32 { value })
}

fn device(value: &Value) -> LinuxDevice {
    LinuxDevice {
        path: text(&value["path"]),
        r#type: text(&value["type"]),
        major: value["major"].as_i64().unwrap_or_default(),
        minor: value["minor"].as_i64().unwrap_or_default(),
        file_mode: narrow(&value["fileMode"]),
        uid: narrow(&value["uid"]),
        gid: narrow(&value["gid"]),
    }
}

fn rlimit(value: &Value) -> PosixRlimit {
    PosixRlimit {
        r#type: text(&value["type"]),
        hard: value["hard"].as_u64().unwrap_or_default(),
        soft: value["soft"].as_u64().unwrap_or_default(),
    }
}

fn profile(profile: &Profile) -> SecurityProfile {
    let (profile_type, localhost_ref) = match profile {
        Profile::RuntimeDefault => (0, String::new()),
        Profile::Unconfined => (1, String::new()),
        Profile::Localhost(name) => (2, name.clone()),
    };
    SecurityProfile { profile_type, localhost_ref }
}

fn resources(value: &Value) -> LinuxResources {
    let signed = |value: &Value| value.as_i64().map(|value| OptionalInt { value });
    let unsigned = |value: &Value| value.as_u64().map(|value| OptionalUInt64 { value });
    let flag = |value: &Value| value.as_bool().map(|value| OptionalBool { value });
    let (memory, cpu) = (&value["memory"], &value["cpu"]);
    let rule = |rule: &Value| LinuxDeviceCgroup {
        allow: rule["allow"].as_bool().unwrap_or_default(),
        r#type: text(&rule["type"]),
        major: signed(&rule["major"]),
        minor: signed(&rule["minor"]),
        access: text(&rule["access"]),
    };
    let hugepages = |limit: &Value| HugepageLimit {
        page_size: text(&limit["pageSize"]),
        limit: limit["limit"].as_u64().unwrap_or_default(),
    };
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(&memory["limit"]),
            reservation: signed(&memory["reservation"]),
            swap: signed(&memory["swap"]),
            kernel: None,
            kernel_tcp: None,
            swappiness: unsigned(&memory["swappiness"]),
            disable_oom_killer: flag(&memory["disableOOMKiller"]),
            use_hierarchy: None,
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(&cpu["shares"]),
            quota: signed(&cpu["quota"]),
            period: unsigned(&cpu["period"]),
            realtime_runtime: None,
            realtime_period: None,
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
        }),
        hugepage_limits: list(&value["hugepageLimits"]).map(hugepages).collect(),
        blockio_class: None,
        rdt_class: None,
        unified: entries(&value["unified"]).collect(),
        devices: list(&value["devices"]).map(rule).collect(),
        pids: value["pids"]["limit"].as_i64().map(|limit| LinuxPids { limit }),
    }
}
