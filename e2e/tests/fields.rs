//! Requests that cannot be honoured: refused with the field that is wrong, and never as a
//! failure of the node.

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config};
use tonic::{Code, Status};

#[track_caller]
fn refused(what: &str, answer: Result<(), Status>, words: &[&str]) {
    let status = match answer {
        Ok(()) => panic!("{what}: answered"),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    for word in words {
        assert!(status.message().contains(word), "{what}: {word:?} is not in {status:?}");
    }
}

type Change<T> = (&'static str, fn(&mut T));

fn bad_sandboxes() -> Vec<Change<v1::PodSandboxConfig>> {
    vec![
        ("metadata", |config| config.metadata = None),
        ("metadata.name", |config| config.metadata.get_or_insert_default().name.clear()),
        ("metadata.namespace", |config| config.metadata.get_or_insert_default().namespace.clear()),
        ("metadata.uid", |config| config.metadata.get_or_insert_default().uid.clear()),
        ("metadata.name", |config| config.metadata.get_or_insert_default().name = "a\0b".into()),
        ("hostname", |config| config.hostname = "a\0b".into()),
        ("hostname", |config| config.hostname = "h".repeat(65)),
        ("log_directory", |config| config.log_directory = "relative".into()),
        ("log_directory", |config| config.log_directory = "/a\0b".into()),
        ("dns_config", |config| {
            config.dns_config.get_or_insert_default().servers = vec!["not an address".into()];
        }),
        ("dns_config", |config| {
            config.dns_config.get_or_insert_default().searches = vec!["a\nnameserver x".into()];
        }),
        ("port_mappings", |config| {
            let container_port = 70_000;
            config.port_mappings = vec![v1::PortMapping { container_port, ..<_>::default() }];
        }),
        ("port_mappings", |config| {
            config.port_mappings =
                vec![v1::PortMapping { container_port: 80, host_port: -1, ..<_>::default() }];
        }),
        ("port_mappings", |config| {
            config.port_mappings =
                vec![v1::PortMapping { container_port: 80, protocol: 9, ..<_>::default() }];
        }),
        ("cgroup_parent", |config| {
            config.linux.get_or_insert_default().cgroup_parent = "/../escape".into();
        }),
        ("cgroup_parent", |config| {
            config.linux.get_or_insert_default().cgroup_parent = "/a\0b".into();
        }),
        ("sysctls", |config| {
            let sysctls = &mut config.linux.get_or_insert_default().sysctls;
            sysctls.insert("kernel.core_pattern".into(), "|/x".into());
        }),
        ("namespace_options", |config| {
            berth_testkit::sandbox_security(config)
                .namespace_options
                .get_or_insert_default()
                .network = 77;
        }),
    ]
}

fn bad_containers() -> Vec<Change<v1::ContainerConfig>> {
    vec![
        ("metadata", |config| config.metadata = None),
        ("metadata.name", |config| config.metadata.get_or_insert_default().name.clear()),
        ("image", |config| config.image = None),
        ("image", |config| config.image.get_or_insert_default().image.clear()),
        ("command", |config| config.command = vec!["a\0b".into()]),
        ("command", |config| config.command = vec![String::new()]),
        ("command", |config| config.args = vec!["a\0b".into()]),
        ("working_dir", |config| config.working_dir = "relative".into()),
        ("working_dir", |config| config.working_dir = "/a\0b".into()),
        ("environment", |config| {
            config.envs = vec![v1::KeyValue { key: "A=B".into(), value: b"1".to_vec() }];
        }),
        ("environment", |config| {
            config.envs = vec![v1::KeyValue { key: "A".into(), value: b"1\x002".to_vec() }];
        }),
        ("environment", |config| {
            config.envs = vec![v1::KeyValue { key: String::new(), value: Vec::new() }];
        }),
        ("mounts", |config| config.mounts = vec![v1::Mount::default()]),
        ("mounts", |config| {
            config.mounts = vec![berth_testkit::bind("/a\0b", "/tmp".as_ref())];
        }),
        ("mounts", |config| {
            config.mounts = vec![berth_testkit::bind("/a", "/t\0mp".as_ref())];
        }),
        ("mounts", |config| {
            let mut mount = berth_testkit::bind("/a", "/tmp".as_ref());
            mount.propagation = 77;
            config.mounts = vec![mount];
        }),
        ("devices", |config| {
            let permissions = "rwx".to_owned();
            let (host_path, container_path) = ("/dev/null".to_owned(), "/dev/x".to_owned());
            config.devices = vec![v1::Device { host_path, container_path, permissions }];
        }),
        ("log_path", |config| config.log_path = "../x".into()),
        ("log_path", |config| config.log_path = "a\0b".into()),
        ("stop_signal", |config| config.stop_signal = 9999),
    ]
}

fn bad_security() -> Vec<Change<v1::ContainerConfig>> {
    vec![
        ("user_name", |config| {
            berth_testkit::security(config).run_as_username = "a\0b".into();
        }),
        ("run_as_user", |config| {
            berth_testkit::security(config).run_as_user = Some(v1::Int64Value { value: -1 });
        }),
        ("run_as_group", |config| {
            berth_testkit::security(config).run_as_group = Some(v1::Int64Value { value: 1 });
        }),
        ("supplemental_groups", |config| {
            berth_testkit::security(config).supplemental_groups = vec![1 << 40];
        }),
        ("seccomp", |config| {
            let profile_type = 77;
            berth_testkit::security(config).seccomp =
                Some(v1::SecurityProfile { profile_type, ..<_>::default() });
        }),
        ("masked_paths", |config| {
            berth_testkit::security(config).masked_paths = vec!["/proc/a\0b".into()];
        }),
        ("namespace_options", |config| {
            berth_testkit::security(config).namespace_options.get_or_insert_default().pid = 77;
        }),
        ("target_id", |config| {
            let options = berth_testkit::security(config).namespace_options.get_or_insert_default();
            options.pid = v1::NamespaceMode::Target.into();
            options.target_id = "../x".into();
        }),
        ("oom_score_adj", |config| berth_testkit::resources(config).oom_score_adj = 5000),
        ("cpuset_cpus", |config| berth_testkit::resources(config).cpuset_cpus = "a\0".into()),
        ("memory_limit", |config| berth_testkit::resources(config).memory_limit_in_bytes = -7),
        ("hugepage_limits", |config| {
            berth_testkit::resources(config).hugepage_limits =
                vec![v1::HugepageLimit { page_size: "../../x".into(), limit: 1 }];
        }),
        ("unified", |config| {
            berth_testkit::resources(config).unified.insert("../../x".into(), "1".into());
        }),
    ]
}

/// The name of the field, in the request's spelling or in words.
fn names(message: &str, field: &str) -> bool {
    let last = field.rsplit('.').next().unwrap_or(field);
    message.contains(field) || message.contains(&last.replace('_', " "))
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_refused_by_the_field_that_is_wrong() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut wrong = Vec::new();
    let mut check = |what: String, field: &str, answer: Result<String, Status>| match answer {
        Ok(_) => wrong.push(format!("{what}: taken")),
        Err(status) => {
            if status.code() != Code::InvalidArgument || !names(status.message(), field) {
                wrong.push(format!("{what}: {status:?}"));
            }
        }
    };
    for (number, (field, change)) in bad_sandboxes().into_iter().enumerate() {
        let mut config = node.sandbox_config("bad");
        change(&mut config);
        check(format!("sandbox {number} {field}"), field, node.cri.run_sandbox(&config).await);
    }
    for (number, (field, change)) in bad_containers().into_iter().chain(bad_security()).enumerate()
    {
        let mut config = container_config("bad", &image, &["true"]);
        change(&mut config);
        let answer = node.cri.create_container(&pod.id, &pod.config, &config).await;
        if let Ok(id) = &answer {
            node.cri.remove_container(id).await?;
        }
        check(format!("container {number} {field}"), field, answer);
    }
    let runtime = &mut node.cri.runtime;
    let none = v1::RunPodSandboxRequest::default();
    let answer = runtime.run_pod_sandbox(none).await.map(|_| String::new());
    check("RunPodSandbox of nothing".into(), "config", answer);
    let none = v1::CreateContainerRequest { pod_sandbox_id: pod.id.clone(), ..<_>::default() };
    let answer = runtime.create_container(none).await.map(|_| String::new());
    check("CreateContainer of nothing".into(), "config", answer);
    let id = || pod.id.clone();
    for (what, field, cmd, timeout) in [
        ("no command", "cmd", vec![], 0),
        ("an empty command", "cmd", vec![String::new()], 0),
        ("a negative timeout", "timeout", vec!["true".to_owned()], -1),
    ] {
        let request = v1::ExecSyncRequest { container_id: id(), cmd, timeout };
        let answer = runtime.exec_sync(request).await.map(|_| String::new());
        check(format!("ExecSync: {what}"), field, answer);
    }
    let request = v1::StopContainerRequest { container_id: id(), timeout: -1 };
    check(
        "StopContainer".into(),
        "timeout",
        runtime.stop_container(request).await.map(|_| String::new()),
    );
    let state = Some(v1::ContainerStateValue { state: 77 });
    let filter = Some(v1::ContainerFilter { state, ..<_>::default() });
    let answer = runtime.list_containers(v1::ListContainersRequest { filter }).await;
    check("ListContainers".into(), "filter.state", answer.map(|_| String::new()));
    let state = Some(v1::PodSandboxStateValue { state: 77 });
    let filter = Some(v1::PodSandboxFilter { state, ..<_>::default() });
    let answer = runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter }).await;
    check("ListPodSandbox".into(), "filter.state", answer.map(|_| String::new()));
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(node.cri.sandboxes().await?, [pod.id]);
    assert!(node.cri.containers().await?.is_empty());
    node.assert_clean().await
}

/// NUL in a command is not for execve(2); its length is not for anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_is_refused() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    for command in [&["a\0b"][..], &["true", "\0"], &["/no/such/program"], &["/etc"]] {
        let answer = node.cri.exec(&id, command, 5).await.map(drop);
        refused(&format!("{command:?}"), answer, &[&id]);
    }
    let long = "x".repeat(3 << 20);
    let answer = node.cri.exec(&id, &["echo", &long], 5).await.map(drop);
    refused("a long argument", answer, &[&id]);
    assert_eq!(node.cri.exec(&id, &["true"], 5).await?.exit_code, 0);
    node.assert_clean().await
}

/// Its form is right, and what it asks for is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_node_cannot_give_fails_the_start_as_the_requests_fault() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let limits: [Change<v1::LinuxContainerResources>; 6] = [
        ("cpus", |limits| limits.cpuset_cpus = "9999".into()),
        ("mems", |limits| limits.cpuset_mems = "999".into()),
        ("hugepages", |limits| {
            limits.hugepage_limits = vec![v1::HugepageLimit { page_size: "3MB".into(), limit: 1 }];
        }),
        ("unified", |limits| _ = limits.unified.insert("memory.no_such".into(), "1".into())),
        ("quota", |limits| (limits.cpu_period, limits.cpu_quota) = (1, 1)),
        ("memory", |limits| limits.memory_limit_in_bytes = 1),
    ];
    for (number, (what, change)) in limits.into_iter().enumerate() {
        let mut config = container_config(&format!("c{number}"), &image, &["true"]);
        change(berth_testkit::resources(&mut config));
        let answer = node.run(&pod, &config).await;
        let status = answer.err().with_context(|| format!("{what} was taken"))?;
        let status = status.downcast_ref::<Status>().context("no status")?;
        assert!(
            matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition),
            "{what}: {status:?}"
        );
    }
    node.assert_clean().await
}
