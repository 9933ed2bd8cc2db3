use std::sync::Arc;

use berth_engine::ListItem;
use berth_model::container::{Exit, ExitReason, Resources, Timestamp};
use berth_model::mount::MountOption;
use berth_model::{ContainerId, ContainerSpec, Digest, SandboxId, SandboxSpec};

use super::*;

pub(crate) fn sandbox() -> SandboxStatus {
    let mut spec = SandboxSpec::default();
    spec.name.name = "pod".to_owned();
    spec.name.uid = "uid".to_owned();
    spec.name.namespace = "space".to_owned();
    spec.namespaces.pid = NamespaceMode::Container;
    spec.labels.insert("a".to_owned(), "b".to_owned());
    spec.annotations.insert("c".to_owned(), "d".to_owned());
    SandboxStatus {
        id: SandboxId::new("s1").unwrap(),
        spec: Arc::new(spec),
        state: SandboxState::Ready,
        created_at: Timestamp(5),
        ip: Some([10, 0, 0, 7].into()),
        runtime: "berth".into(),
        shim_pid: 1,
        netns: None,
        limits: Arc::default(),
        list_item: ListItem::default(),
    }
}

pub(crate) fn container(state: ContainerState) -> ContainerStatus {
    let mut spec = ContainerSpec::default();
    spec.name.name = "app".to_owned();
    spec.image = "busybox:1".to_owned();
    spec.user_specified_image = "busybox".to_owned();
    let limits = Resources { cpu_shares: 2, ..Resources::default() };
    ContainerStatus {
        limits: Arc::new(limits),
        id: ContainerId::new("c1").unwrap(),
        sandbox: SandboxId::new("s1").unwrap(),
        spec: Arc::new(spec),
        state,
        created_at: Timestamp(1),
        image_id: Digest::of(b"config"),
        image_ref: "docker.io/library/busybox@sha256:00".into(),
        log_path: Some("/logs/app/0.log".into()),
        stop_signal: "SIGTERM".into(),
        uid: 1,
        gid: 2,
        groups: [2, 3].into(),
        volumes: Arc::default(),
        list_item: ListItem::default(),
    }
}

#[test]
fn a_sandbox_status_has_what_kubelet_insists_on() {
    let status = sandbox_status(&sandbox());
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    let metadata = status.metadata.unwrap();
    assert_eq!((status.id.as_str(), status.created_at), ("s1", 5));
    assert_eq!((metadata.name.as_str(), metadata.namespace.as_str()), ("pod", "space"));
    assert_eq!(metadata.uid, "uid");
    assert_eq!(status.labels["a"], "b");
    assert_eq!(status.annotations["c"], "d");
    assert_eq!(status.network.unwrap().ip, "10.0.0.7");
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.pid(), v1::NamespaceMode::Container);
    let stopped = SandboxStatus { state: SandboxState::NotReady, ip: None, ..sandbox() };
    let status = sandbox_status(&stopped);
    assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(status.network.unwrap_or_default().ip, "");
}

#[test]
fn a_containers_times_appear_as_they_come() {
    let created = container_status(&container(ContainerState::Created));
    assert_eq!((created.created_at, created.started_at, created.finished_at), (1, 0, 0));
    assert_eq!(created.state(), v1::ContainerState::ContainerCreated);
    let state = ContainerState::Running { pid: 7, started_at: Timestamp(2) };
    let running = container_status(&container(state));
    assert_eq!((running.started_at, running.finished_at), (2, 0));
    assert_eq!(running.state(), v1::ContainerState::ContainerRunning);
    let exit = Exit {
        code: 137,
        at: Timestamp(3),
        reason: ExitReason::OomKilled,
        message: "text".to_owned(),
    };
    let state = ContainerState::Exited { started_at: Timestamp(2), exit };
    let exited = container_status(&container(state));
    assert_eq!((exited.started_at, exited.finished_at, exited.exit_code), (2, 3, 137));
    assert_eq!((exited.reason.as_str(), exited.message.as_str()), ("OOMKilled", "text"));
    assert_eq!(exited.state(), v1::ContainerState::ContainerExited);
}

#[test]
fn a_container_status_has_what_kubelet_insists_on() {
    let status = container_status(&container(ContainerState::Created));
    assert_eq!(status.image_ref, "docker.io/library/busybox@sha256:00");
    assert_eq!(status.image_id, Digest::of(b"config").to_string());
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1, 2, vec![2, 3]));
    assert_eq!(status.stop_signal, i32::from(v1::Signal::Sigterm));
    assert_eq!(status.log_path, "/logs/app/0.log");
    assert_eq!(status.resources.unwrap().linux.unwrap().cpu_shares, 2);
}

#[test]
fn a_containers_mounts_are_told_as_they_were_asked_for() {
    let image = ImageMount {
        name: "busybox".to_owned(),
        user_specified: "busybox:1".to_owned(),
        sub_path: "etc".to_owned(),
    };
    let mut status = container(ContainerState::Created);
    let mut spec = ContainerSpec::clone(&status.spec);
    spec.mounts = vec![
        BindMount {
            container_path: "/c".into(),
            host_path: "/h".into(),
            readonly: true,
            recursive_readonly: true,
            selinux_relabel: true,
            propagation: Propagation::HostToContainer,
            options: vec![MountOption::NoSuid, MountOption::NoExec],
            ..BindMount::default()
        },
        BindMount { container_path: "/i".into(), image: Some(image), ..BindMount::default() },
    ];
    status.spec = Arc::new(spec);
    let id = Digest::of(b"volume");
    status.volumes = Arc::new([("busybox".to_owned(), id)].into());
    let told = container_status(&status).mounts;
    let first = v1::Mount {
        container_path: "/c".to_owned(),
        host_path: "/h".to_owned(),
        readonly: true,
        recursive_read_only: true,
        selinux_relabel: true,
        propagation: v1::MountPropagation::PropagationHostToContainer.into(),
        mount_options: vec!["nosuid".to_owned(), "noexec".to_owned()],
        ..Default::default()
    };
    assert_eq!(told[0], first);
    let image = told[1].image.clone().unwrap();
    assert_eq!(
        (image.image.as_str(), image.user_specified_image.as_str()),
        ("busybox", "busybox:1")
    );
    assert_eq!((image.image_ref, told[1].image_sub_path.as_str()), (id.to_string(), "etc"));
}

#[test]
fn an_image_is_called_as_people_know_it() {
    let called = |asked: &str, specified: &str| {
        let mut status = container(ContainerState::Created);
        let mut spec = ContainerSpec::clone(&status.spec);
        spec.image = asked.to_owned();
        spec.user_specified_image = specified.to_owned();
        status.spec = Arc::new(spec);
        container_item(&status).image.unwrap_or_default().image
    };
    let id = Digest::of(b"config");
    assert_eq!(called("busybox:1", "busybox"), "busybox:1");
    assert_eq!(called(&id.to_string(), "busybox"), "busybox");
    assert_eq!(called(&id.to_string(), ""), "docker.io/library/busybox@sha256:00");
    assert_eq!(called(&id.hex()[..12], "busybox"), "busybox");
}

#[test]
fn an_images_user_is_a_number_or_a_name() {
    let with = |user: &str| {
        let record = ImageRecord {
            id: Digest::of(b"config"),
            tags: vec![],
            digests: vec![],
            manifest: Digest::of(b"manifest"),
            blobs: vec![],
            chain: vec![],
            size: 9,
            user: user.to_owned(),
            pulled_at: Timestamp(1),
        };
        let image = image(&record);
        (image.uid.map(|uid| uid.value), image.username)
    };
    assert_eq!(with(""), (None, String::new()));
    assert_eq!(with("1002"), (Some(1002), String::new()));
    assert_eq!(with("1003:1004"), (Some(1003), String::new()));
    assert_eq!(with("www-data:1004"), (None, "www-data".to_owned()));
    assert_eq!(with("+0"), (None, "+0".to_owned()));
    assert_eq!(with("99999999999"), (None, "99999999999".to_owned()));
}

/// teeth: crates/engine/src/status.rs: `        Self::default()\n    }\n}\n\n/// It is made of the rest.` → `        Self(self.0.clone())\n    }\n}\n\n/// It is made of the rest.`
#[test]
fn the_list_item_of_a_snapshot_is_not_that_of_its_successor() {
    let created = container(ContainerState::Created);
    let first = container_item(&created);
    assert_eq!(first.state(), v1::ContainerState::ContainerCreated);
    assert_eq!(container_item(&created), first);
    let state = ContainerState::Running { pid: 7, started_at: Timestamp(3) };
    let running = ContainerStatus { state, ..created.clone() };
    assert_eq!(container_item(&running).state(), v1::ContainerState::ContainerRunning);
    let ready = sandbox();
    assert_eq!(sandbox_item(&ready).state(), v1::PodSandboxState::SandboxReady);
    let stopped = SandboxStatus { state: SandboxState::NotReady, ..ready.clone() };
    assert_eq!(sandbox_item(&stopped).state(), v1::PodSandboxState::SandboxNotready);
}
