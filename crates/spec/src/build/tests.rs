//! A fixture for the tests of this crate, and those of the whole specification.

use std::collections::BTreeMap;

use berth_model::container::{EnvVar, Profile, Security};
use berth_model::sandbox::SandboxName;
use berth_model::{ContainerId, ContainerSpec, SandboxId};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::LinuxNamespaceType;

use super::*;
use crate::user::ResolvedUser;
use crate::{Defaults, SandboxFiles, Shm};

/// Owns all that [`Wanted`] borrows.
#[derive(Debug)]
pub(crate) struct Fixture {
    id: ContainerId,
    sandbox: SandboxId,
    name: SandboxName,
    pub(crate) spec: ContainerSpec,
    pub(crate) image: ImageConfiguration,
    pub(crate) user: ResolvedUser,
    pub(crate) files: SandboxFiles,
    pub(crate) devices: Vec<crate::HostDevice>,
    pub(crate) device_mounts: Vec<crate::DeviceMount>,
    pub(crate) labels: crate::Labels,
    pub(crate) defaults: Defaults,
    pub(crate) seccomp: Option<Vec<u8>>,
    pub(crate) volumes: BTreeMap<String, berth_model::mount::Mount>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let name = SandboxName {
            name: "pod".to_owned(),
            namespace: "space".to_owned(),
            uid: "pod-uid".to_owned(),
            attempt: 0,
        };
        Self {
            id: ContainerId::new("c1").unwrap(),
            sandbox: SandboxId::new("s1").unwrap(),
            name,
            spec: ContainerSpec { args: vec!["arg".to_owned()], ..Default::default() },
            image: image(r#"{"Entrypoint":["/entry"],"Cmd":["cmd"]}"#),
            user: ResolvedUser { uid: 5, gid: 6, groups: vec![6, 7], home: None },
            files: SandboxFiles {
                resolv_conf: Some("/run/s1/resolv.conf".into()),
                hosts: Some("/run/s1/hosts".into()),
                hostname: Some("/run/s1/hostname".into()),
                shm: Some(Shm::Shared),
            },
            devices: Vec::new(),
            device_mounts: Vec::new(),
            labels: crate::Labels::default(),
            defaults: Defaults::default(),
            seccomp: None,
            volumes: BTreeMap::new(),
        }
    }

    pub(crate) fn privileged() -> Self {
        let mut fixture = Self::new();
        fixture.spec.security.privileged = true;
        fixture
    }

    pub(crate) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            id: &self.id,
            sandbox: &self.sandbox,
            sandbox_name: &self.name,
            spec: &self.spec,
            image: &self.image,
            image_name: "docker.io/library/busybox:latest",
            user: &self.user,
            namespaces: vec![
                (LinuxNamespaceType::Network, Some("/proc/self/fd/10".into())),
                (LinuxNamespaceType::Pid, None),
            ],
            cgroup: "/kubepods/pod1/c1",
            hostname: "host",
            ids: None,
            files: self.files.clone(),
            devices: self.devices.clone(),
            device_mounts: self.device_mounts.clone(),
            labels: self.labels.clone(),
            localhost_seccomp: self.seccomp.as_deref(),
            volumes: self.volumes.clone(),
            defaults: &self.defaults,
        }
    }

    pub(crate) fn build(&self) -> Result<Spec, Error> {
        build(&self.wanted())
    }

    #[track_caller]
    pub(crate) fn linux(&self) -> Linux {
        self.build().unwrap().linux().clone().unwrap()
    }

    #[track_caller]
    pub(crate) fn process(&self) -> oci_spec::runtime::Process {
        self.build().unwrap().process().clone().unwrap()
    }
}

/// The configuration of an image with this `config` object.
pub(crate) fn image(config: &str) -> ImageConfiguration {
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{config},
            "rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

#[test]
fn namespaces_are_the_sandboxes_and_the_containers_own() {
    let kinds = |fixture: Fixture| -> Vec<_> {
        let namespaces = fixture.linux().namespaces().clone().unwrap();
        namespaces.iter().map(|ns| (ns.typ().to_string(), ns.path().clone())).collect()
    };
    let shared = ("net".to_owned(), Some("/proc/self/fd/10".into()));
    let own = |kind: &str| (kind.to_owned(), None);
    assert_eq!(kinds(Fixture::new()), [shared.clone(), own("pid"), own("mnt"), own("cgroup")]);
    assert_eq!(kinds(Fixture::privileged()), [shared, own("pid"), own("mnt")]);
}

#[test]
fn annotations_say_what_containerds_say_and_nothing_of_the_request() {
    let mut fixture = Fixture::new();
    fixture.spec.name.name = "app".to_owned();
    for key in ["dev.berth.process.env", "org.systemd.property.X", "run.oci.handler", "a"] {
        fixture.spec.annotations.insert(key.to_owned(), "evil".to_owned());
    }
    fixture.image = image(r#"{"Cmd":["c"],"Labels":{"dev.berth.x":"evil"}}"#);
    let spec = fixture.build().unwrap();
    let annotations: BTreeMap<_, _> = spec.annotations().clone().unwrap().into_iter().collect();
    let expected = [
        ("io.kubernetes.cri.container-name", "app"),
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.image-name", "docker.io/library/busybox:latest"),
        ("io.kubernetes.cri.sandbox-id", "s1"),
        ("io.kubernetes.cri.sandbox-name", "pod"),
        ("io.kubernetes.cri.sandbox-namespace", "space"),
        ("io.kubernetes.cri.sandbox-uid", "pod-uid"),
    ];
    assert_eq!(annotations, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert!(!serde_json::to_string(&spec).unwrap().contains("evil"));
}

#[test]
fn an_environment_that_is_not_utf8_is_whole_in_an_annotation() {
    let mut fixture = Fixture::new();
    fixture.spec.env = vec![EnvVar { name: "RAW".to_owned(), value: vec![0xff, b'x'] }];
    let spec = fixture.build().unwrap();
    let text = &spec.annotations().as_ref().unwrap()[crate::ENV_ANNOTATION];
    let entries: Vec<String> = serde_json::from_str(text).unwrap();
    use base64::Engine as _;
    let decode = |entry: &String| base64::engine::general_purpose::STANDARD.decode(entry).unwrap();
    let decoded: Vec<_> = entries.iter().map(decode).collect();
    assert_eq!(decoded.len(), spec.process().as_ref().unwrap().env().as_ref().unwrap().len());
    assert!(decoded.contains(&b"RAW=\xffx".to_vec()));
    assert!(decoded.contains(&b"HOSTNAME=host".to_vec()));
}

#[test]
fn a_privileged_container_has_all_that_the_node_can_give() {
    let fixture = Fixture::privileged();
    let linux = fixture.linux();
    assert_eq!(linux.seccomp(), &None);
    assert_eq!(linux.masked_paths().as_deref(), Some(&[][..]));
    assert_eq!(linux.readonly_paths().as_deref(), Some(&[][..]));
    let capabilities = fixture.process().capabilities().clone().unwrap();
    assert_eq!(capabilities.bounding(), &Some(crate::capabilities::all()));
    assert_eq!(capabilities.inheritable(), &Some([].into()));
}

#[test]
fn r22_default_masks_hide_what_leaks_of_the_node() {
    let linux = Fixture::new().linux();
    let masked = linux.masked_paths().clone().unwrap();
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/interrupts",
        "/proc/scsi",
        "/proc/acpi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ] {
        assert!(masked.iter().any(|masked| masked == path), "{path}");
    }
    assert!(linux.readonly_paths().as_ref().unwrap().iter().any(|path| path == "/proc/sys"));

    let mut fixture = Fixture::new();
    fixture.spec.security = Security {
        masked_paths: Some(vec!["/a".to_owned()]),
        readonly_paths: Some(vec![]),
        ..Security::default()
    };
    assert_eq!(fixture.linux().masked_paths().clone().unwrap(), ["/a"]);
    assert_eq!(fixture.linux().readonly_paths().clone().unwrap(), [] as [&str; 0]);
}

#[test]
fn the_seccomp_profile_is_the_one_asked_for() {
    let mut fixture = Fixture::new();
    assert!(fixture.linux().seccomp().is_some());
    fixture.spec.security.seccomp = Profile::Unconfined;
    assert_eq!(fixture.linux().seccomp(), &None);
    fixture.spec.security.seccomp = Profile::Localhost("p.json".to_owned());
    assert!(matches!(fixture.build(), Err(Error::SeccompMissing(_))));
    fixture.seccomp = Some(br#"{"defaultAction":"SCMP_ACT_LOG"}"#.to_vec());
    let action = fixture.linux().seccomp().as_ref().unwrap().default_action();
    assert_eq!(action, oci_spec::runtime::LinuxSeccompAction::ScmpActLog);
}

#[test]
fn the_version_is_the_lowest_that_knows_the_fields() {
    let mut fixture = Fixture::new();
    let version = |fixture: &Fixture| fixture.build().unwrap().version().clone();
    assert_eq!(version(&fixture), "1.1.0");
    fixture.spec.security.seccomp = Profile::Unconfined;
    assert_eq!(version(&fixture), "1.0.2");
    fixture.spec.resources.unified.insert("memory.high".to_owned(), "max".to_owned());
    assert_eq!(version(&fixture), "1.1.0");
    fixture.spec.resources.unified.clear();
    fixture.spec.mounts = vec![berth_model::mount::BindMount {
        container_path: "/a".into(),
        host_path: "/b".into(),
        readonly: true,
        recursive_readonly: true,
        ..Default::default()
    }];
    assert_eq!(version(&fixture), "1.1.0");
}

#[test]
fn nothing_of_the_types_sample_container_is_left() {
    let mut fixture = Fixture::new();
    fixture.spec.security.seccomp = Profile::Unconfined;
    fixture.defaults.rlimits.clear();
    let spec = fixture.build().unwrap();
    assert_eq!((spec.hostname(), spec.hooks(), spec.domainname()), (&None, &None, &None));
    let root = spec.root().clone().unwrap();
    assert_eq!((root.path().to_str(), root.readonly()), (Some("rootfs"), Some(false)));
    let process = spec.process().clone().unwrap();
    assert_eq!((process.rlimits(), process.apparmor_profile()), (&None, &None));
    let linux = spec.linux().clone().unwrap();
    assert_eq!((linux.devices(), linux.sysctl(), linux.intel_rdt()), (&None, &None, &None));
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}

#[test]
fn labels_are_the_containers_and_of_what_runs_in_it_later() {
    let mut fixture = Fixture::new();
    let spec = fixture.build().unwrap();
    assert_eq!(spec.linux().as_ref().unwrap().mount_label(), &None);
    assert_eq!(fixture.process().apparmor_profile(), &None);
    fixture.labels = crate::Labels {
        apparmor: Some("profile".to_owned()),
        selinux: Some("u:r:t:s0".to_owned()),
        mount: Some("u:object_r:f:s0".to_owned()),
    };
    assert_eq!(fixture.linux().mount_label().as_deref(), Some("u:object_r:f:s0"));
    let first = fixture.process();
    let later = crate::exec_process(&first, vec!["ls".to_owned()], false).unwrap();
    for process in [first, later] {
        assert_eq!(process.apparmor_profile().as_deref(), Some("profile"));
        assert_eq!(process.selinux_label().as_deref(), Some("u:r:t:s0"));
    }
}
