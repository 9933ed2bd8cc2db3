use std::collections::BTreeMap;

use berth_nri::api::{
    Hook, HugepageLimit, LinuxCpu, LinuxIoPriority, LinuxMemory, LinuxMemoryPolicy, LinuxNetDevice,
    LinuxPids, LinuxRdt, LinuxResources, LinuxScheduler, LinuxSyscall, OptionalInt, OptionalString,
    OptionalUInt32, OptionalUInt64,
};

use super::*;

fn spec() -> Spec {
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["old"], "env": ["A=1", "B=2"], "oomScoreAdj": 5},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/host", "options": ["rbind"]},
        ],
        "annotations": {"k": "v"},
        "linux": {
            "cgroupsPath": "/pod/c",
            "namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/self/fd/3"}],
            "resources": {"memory": {"limit": 100, "swap": 100}},
        },
    });
    serde_json::from_value(spec).unwrap()
}

fn adjusted(wanted: ContainerAdjustment) -> Value {
    let mut spec = spec();
    apply(&mut spec, wanted, &NamespaceOptions::default()).unwrap();
    container::json(&spec).unwrap()
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() }
}

fn resources(resources: LinuxResources) -> ContainerAdjustment {
    let resources = Some(resources);
    linux(LinuxContainerAdjustment { resources, ..LinuxContainerAdjustment::default() })
}

#[track_caller]
fn refused(wanted: ContainerAdjustment, words: &str) {
    let mut changed = spec();
    let error = apply(&mut changed, wanted, &NamespaceOptions::default()).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(changed, spec(), "what is refused changes nothing");
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount {
        destination: destination.into(),
        source: source.into(),
        r#type: "bind".into(),
        options: vec!["rbind".into(), "ro".into()],
    }
}

#[test]
fn nothing_wanted_changes_nothing() {
    let mut same = spec();
    apply(&mut same, ContainerAdjustment::default(), &NamespaceOptions::default()).unwrap();
    assert_eq!(same, spec());
}

#[test]
fn the_process_gets_its_arguments_variables_and_limits() {
    let variable = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    let adjusted = adjusted(ContainerAdjustment {
        env: vec![variable("A", "9"), variable("-B", ""), variable("C", "x=y")],
        args: vec!["new".into(), "args".into()],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft: 7 }],
        annotations: [("-k".into(), String::new()), ("n".into(), "1".into())].into(),
        linux: Some(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: -7 }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    });
    let process = &adjusted["process"];
    assert_eq!(process["env"], json!(["A=9", "C=x=y"]));
    assert_eq!(process["args"], json!(["new", "args"]));
    assert_eq!(process["rlimits"], json!([{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 7}]));
    assert_eq!(process["oomScoreAdj"], -7);
    assert_eq!(adjusted["annotations"], json!({"n": "1"}));
}

#[test]
fn mounts_are_replaced_removed_and_ordered_by_depth() {
    let removal = Mount { destination: "-/data".into(), ..Mount::default() };
    let adjusted = adjusted(ContainerAdjustment {
        mounts: vec![mount("/a/b/c", "/deep"), mount("/a", "/top"), removal],
        ..ContainerAdjustment::default()
    });
    let mounts = adjusted["mounts"].as_array().unwrap();
    let destinations: Vec<_> = mounts.iter().map(|mount| &mount["destination"]).collect();
    assert_eq!(destinations, ["/proc", "/a", "/a/b/c"]);
    assert_eq!(mounts[1]["options"], json!(["rbind", "ro"]));
}

#[test]
fn devices_come_with_their_rule() {
    let device = LinuxDevice {
        path: "/dev/x".into(),
        r#type: "c".into(),
        major: 1,
        minor: 3,
        file_mode: Some(OptionalUInt32 { value: 0o600 }),
        ..LinuxDevice::default()
    };
    let devices = vec![device];
    let adjusted = adjusted(linux(LinuxContainerAdjustment {
        devices,
        ..LinuxContainerAdjustment::default()
    }));
    let node = &adjusted["linux"]["devices"][0];
    assert_eq!((&node["path"], &node["fileMode"]), (&json!("/dev/x"), &json!(0o600)));
    let rule = &adjusted["linux"]["resources"]["devices"][0];
    assert_eq!(
        (&rule["allow"], &rule["major"], &rule["minor"]),
        (&json!(true), &json!(1), &json!(3))
    );
}

#[test]
fn limits_are_set_one_by_one() {
    let adjusted = adjusted(resources(LinuxResources {
        memory: Some(LinuxMemory {
            limit: Some(OptionalInt { value: 200 }),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: Some(OptionalUInt64 { value: 7 }),
            cpus: "0-1".into(),
            ..LinuxCpu::default()
        }),
        pids: Some(LinuxPids { limit: 9 }),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 }],
        unified: [("memory.high".into(), "50".into())].into(),
        ..LinuxResources::default()
    }));
    let all = &adjusted["linux"]["resources"];
    assert_eq!((&all["memory"]["limit"], &all["memory"]["swap"]), (&json!(200), &json!(200)));
    assert_eq!((&all["cpu"]["shares"], &all["cpu"]["cpus"]), (&json!(7), &json!("0-1")));
    assert_eq!(all["pids"]["limit"], 9);
    assert_eq!(all["hugepageLimits"], json!([{"pageSize": "2MB", "limit": 4}]));
    assert_eq!(all["unified"], json!({"memory.high": "50"}));
}

/// teeth: crates/engine/src/hooks/adjust.rs: `("createContainer", wanted.create_container),` → ``
#[test]
fn hooks_are_added_to_those_that_devices_brought() {
    let hook = |path: &str, seconds: i64| Hook {
        path: path.into(),
        args: vec!["tool".into()],
        timeout: Some(OptionalInt { value: seconds }),
        ..Hook::default()
    };
    let hooks = |hook: Hook| {
        let hooks = Hooks { create_container: vec![hook], ..Hooks::default() };
        ContainerAdjustment { hooks: Some(hooks), ..ContainerAdjustment::default() }
    };
    let mut spec = spec();
    let device = json!({"createContainer": [{"path": "/bin/device"}]});
    spec.set_hooks(Some(serde_json::from_value(device).unwrap()));
    apply(&mut spec, hooks(hook("/bin/added", 7)), &NamespaceOptions::default()).unwrap();
    let all = container::json(&spec).unwrap();
    let list = &all["hooks"]["createContainer"];
    assert_eq!((&list[0]["path"], &list[1]["path"]), (&json!("/bin/device"), &json!("/bin/added")));
    assert_eq!(list[1]["timeout"], 7);
    refused(hooks(hook("bin/added", 7)), "hooks");
    refused(hooks(hook("/bin/added", 0)), "timeout");
}

#[test]
fn a_seccomp_policy_and_a_namespace_replace_what_was_there() {
    let rule = LinuxSyscall {
        names: vec!["mkdirat".into()],
        action: "SCMP_ACT_ERRNO".into(),
        errno_ret: Some(OptionalUInt32 { value: 38 }),
        ..LinuxSyscall::default()
    };
    let adjusted = adjusted(linux(LinuxContainerAdjustment {
        seccomp_policy: Some(LinuxSeccomp {
            default_action: "SCMP_ACT_ALLOW".into(),
            syscalls: vec![rule],
            ..LinuxSeccomp::default()
        }),
        namespaces: vec![LinuxNamespace { r#type: "network".into(), path: "/run/ns".into() }],
        sysctl: [("net.ipv4.ip_forward".into(), "1".into())].into(),
        ..LinuxContainerAdjustment::default()
    }));
    let linux = &adjusted["linux"];
    assert_eq!(linux["seccomp"]["syscalls"][0]["errnoRet"], 38);
    assert_eq!(linux["namespaces"][1], json!({"type": "network", "path": "/run/ns"}));
    assert_eq!(linux["sysctl"]["net.ipv4.ip_forward"], "1");
}

/// teeth: crates/engine/src/hooks/adjust.rs: `refuse(&wanted)?;` → ``
#[test]
fn what_the_runtime_cannot_do_is_refused_by_its_name() {
    let hooks = Hooks { poststop: vec![Hook::default()], ..Hooks::default() };
    refused(ContainerAdjustment { hooks: Some(hooks), ..Default::default() }, "OCI hooks");
    let none = LinuxContainerAdjustment::default;
    let net_devices: BTreeMap<_, _> = [("eth9".into(), LinuxNetDevice::default())].into();
    for (wanted, words) in [
        (LinuxContainerAdjustment { cgroups_path: "/x".into(), ..none() }, "cgroup path"),
        (
            LinuxContainerAdjustment { io_priority: Some(LinuxIoPriority::default()), ..none() },
            "I/O priority",
        ),
        (
            LinuxContainerAdjustment { scheduler: Some(LinuxScheduler::default()), ..none() },
            "scheduling",
        ),
        (LinuxContainerAdjustment { net_devices, ..none() }, "network devices"),
        (LinuxContainerAdjustment { rdt: Some(LinuxRdt::default()), ..none() }, "RDT"),
        (
            LinuxContainerAdjustment {
                memory_policy: Some(LinuxMemoryPolicy::default()),
                ..none()
            },
            "memory policy",
        ),
    ] {
        refused(linux(wanted), words);
    }
    let class = Some(OptionalString::default());
    refused(resources(LinuxResources { rdt_class: class.clone(), ..Default::default() }), "RDT");
    refused(resources(LinuxResources { blockio_class: class, ..Default::default() }), "block I/O");
    let swappiness = Some(OptionalUInt64 { value: 1 });
    let memory = Some(LinuxMemory { swappiness, ..LinuxMemory::default() });
    refused(resources(LinuxResources { memory, ..Default::default() }), "swappiness");
}

/// teeth: crates/engine/src/hooks/adjust/limits.rs: `if !file || !name.chars().all(word) || name.contains("..") {` → `if false {`
#[test]
fn no_adjustment_leads_out_of_the_container() {
    let annotations = [("dev.berth.process.env".into(), "[]".into())].into();
    refused(ContainerAdjustment { annotations, ..Default::default() }, "berth's own");
    for mounts in [
        vec![mount("relative", "/x")],
        vec![mount("/a/../../etc", "/x")],
        vec![mount("/a", "x")],
        vec![Mount { r#type: "berth-shared".into(), ..mount("/a", "/x") }],
    ] {
        refused(ContainerAdjustment { mounts, ..Default::default() }, "mounts");
    }
    for key in ["cgroup.procs", "../x.y", "memory.high/../x", "nodot"] {
        let unified = [(key.to_owned(), "1".to_owned())].into();
        refused(resources(LinuxResources { unified, ..Default::default() }), "unified");
    }
    let none = LinuxContainerAdjustment::default;
    let sysctl = [("kernel.core_pattern".into(), "|/x".into())].into();
    refused(linux(LinuxContainerAdjustment { sysctl, ..none() }), "sysctl");
    for kind in ["pid", "user", "mount", "time", ""] {
        let namespaces = vec![LinuxNamespace { r#type: kind.into(), path: "/x".into() }];
        refused(linux(LinuxContainerAdjustment { namespaces, ..none() }), "namespace");
    }
    let namespaces = vec![LinuxNamespace { r#type: "-network".into(), path: String::new() }];
    refused(linux(LinuxContainerAdjustment { namespaces, ..none() }), "namespace");
    let seccomp_policy =
        Some(LinuxSeccomp { default_action: "SCMP_ACT_NONE".into(), ..LinuxSeccomp::default() });
    refused(linux(LinuxContainerAdjustment { seccomp_policy, ..none() }), "SCMP_ACT_NONE");
    let variable = KeyValue { key: "A=B".into(), value: String::new() };
    refused(ContainerAdjustment { env: vec![variable], ..Default::default() }, "env");
}
