#![expect(deprecated, reason = "deprecated fields are honoured")]

use berth_model::container::{Profile, RunAs, SupplementalGroupsPolicy};
use berth_model::sandbox::NamespaceMode;

use super::*;
use berth_model::chain;

fn config() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 3 }),
        image: Some(v1::ImageSpec { image: "busybox".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

fn translate(config: v1::ContainerConfig) -> Result<ContainerSpec, Error> {
    let request = v1::CreateContainerRequest { config: Some(config), ..Default::default() };
    container_spec(&request)
}

#[track_caller]
fn refused(field: &str, change: impl FnOnce(&mut v1::ContainerConfig)) {
    let mut config = config();
    change(&mut config);
    let error = translate(config).expect_err(field);
    assert!(chain(&error).contains(field), "{error}");
}

fn with_security(
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> Result<ContainerSpec, Error> {
    let mut security = v1::LinuxContainerSecurityContext::default();
    change(&mut security);
    let linux = v1::LinuxContainerConfig { security_context: Some(security), resources: None };
    translate(v1::ContainerConfig { linux: Some(linux), ..config() })
}

#[track_caller]
fn refused_security(field: &str, change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) {
    let error = with_security(change).expect_err(field);
    let field = format!("config.linux.security_context.{field}");
    assert!(error.to_string().starts_with(&field), "{error}");
}

#[test]
fn the_least_a_container_needs_is_a_name_and_an_image() {
    let spec = translate(config()).unwrap();
    assert_eq!((spec.name.name.as_str(), spec.name.attempt), ("app", 3));
    assert_eq!(spec.image, "busybox");
    assert_eq!((spec.log_path, spec.working_dir, spec.stop_signal), (None, None, None));
    assert_eq!(spec.security.run_as, RunAs::Image);
    assert_eq!((spec.security.masked_paths, spec.security.readonly_paths), (None, None));
}

#[test]
fn what_is_missing_is_named() {
    let empty = v1::CreateContainerRequest::default();
    assert!(matches!(container_spec(&empty), Err(Error::Missing("config"))));
    refused("config.metadata is missing", |config| config.metadata = None);
    refused("config.metadata.name", |config| config.metadata = Some(Default::default()));
    refused("config.image.image", |config| config.image = None);
    refused("config.image.image", |config| config.image = Some(Default::default()));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    refused("config.windows", |config| config.windows = Some(Default::default()));
    refused("config.stop_signal", |config| config.stop_signal = 99);
    refused_security("apparmor", |security| {
        security.apparmor = Some(v1::SecurityProfile { profile_type: 2, ..Default::default() });
    });
    refused_security("selinux_options", |security| {
        security.selinux_options =
            Some(v1::SeLinuxOption { r#type: "t:u".to_owned(), ..Default::default() });
    });
    refused_security("namespace_options.userns_options", |security| {
        let userns_options = Some(v1::UserNamespace::default());
        security.namespace_options =
            Some(v1::NamespaceOption { userns_options, ..Default::default() });
    });
}

#[test]
fn i9_log_paths_cannot_leave_the_sandboxes_directory() {
    for bad in ["/etc/passwd", "../x", "a/../../x", "..", "a/", "a\0"] {
        refused("config.log_path", |config| config.log_path = bad.to_owned());
    }
    let spec = translate(v1::ContainerConfig { log_path: "app/0.log".to_owned(), ..config() });
    assert_eq!(spec.unwrap().log_path, Some("app/0.log".into()));
}

#[test]
fn devices_are_translated_or_refused_by_name() {
    let device = |host: &str, container: &str, permissions: &str| v1::Device {
        container_path: container.to_owned(),
        host_path: host.to_owned(),
        permissions: permissions.to_owned(),
    };
    let devices = vec![device("/dev/fuse", "", ""), device("/dev/a", "/dev/b", "r")];
    let cdi_devices = vec![v1::CdiDevice { name: "v/c=d".to_owned() }];
    let spec = translate(v1::ContainerConfig { devices, cdi_devices, ..config() }).unwrap();
    assert_eq!(spec.cdi_devices, ["v/c=d"]);
    assert_eq!(spec.devices[0].container_path, PathBuf::from("/dev/fuse"));
    assert_eq!(
        (spec.devices[0].permissions.as_str(), spec.devices[1].permissions.as_str()),
        ("rwm", "r")
    );
    for (field, bad) in [
        ("host_path", device("", "/dev/b", "r")),
        ("host_path", device("/dev/../etc", "/dev/b", "r")),
        ("container_path", device("/dev/a", "b", "r")),
        ("permissions", device("/dev/a", "/dev/b", "rx")),
    ] {
        refused(&format!("config.devices[0].{field}"), |config| config.devices = vec![bad]);
    }
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

#[test]
fn r14_users_are_ids_or_names_and_never_out_of_range() {
    let run_as = |user, name: &str, group| {
        with_security(|security| {
            security.run_as_user = user;
            security.run_as_username = name.to_owned();
            security.run_as_group = group;
        })
    };
    assert_eq!(run_as(id(0), "", None).unwrap().security.run_as, RunAs::Id { uid: 0, gid: None });
    let both = run_as(id(7), "", id(8)).unwrap().security.run_as;
    assert_eq!(both, RunAs::Id { uid: 7, gid: Some(8) });
    let named = run_as(None, "app", id(8)).unwrap().security.run_as;
    assert_eq!(named, RunAs::Name { user: "app".to_owned(), gid: Some(8) });
    for bad in [-1, 1 << 32, (1 << 32) + 1000, i64::MAX, i64::MIN] {
        assert!(run_as(id(bad), "", None).is_err(), "{bad}");
        assert!(run_as(id(0), "", id(bad)).is_err(), "{bad}");
        refused_security("supplemental_groups", |security| {
            security.supplemental_groups = vec![1, bad]
        });
    }
    assert!(run_as(id(1), "app", None).is_err());
    assert!(run_as(None, "", id(1)).is_err());
}

#[test]
fn seccomp_profiles_are_told_apart() {
    let profile = |kind: i32, name: &str| {
        with_security(|security| {
            security.seccomp_profile_path = "localhost/ignored".to_owned();
            security.seccomp =
                Some(v1::SecurityProfile { profile_type: kind, localhost_ref: name.to_owned() });
        })
        .map(|spec| spec.security.seccomp)
    };
    assert_eq!(profile(0, "").unwrap(), Profile::RuntimeDefault);
    assert_eq!(profile(1, "").unwrap(), Profile::Unconfined);
    let path = "/var/lib/kubelet/seccomp/p.json";
    assert_eq!(profile(2, path).unwrap(), Profile::Localhost(path.to_owned()));
    assert!(profile(3, "").is_err());

    let deprecated = |path: &str| {
        with_security(|security| security.seccomp_profile_path = path.to_owned())
            .map(|spec| spec.security.seccomp)
    };
    assert_eq!(deprecated("").unwrap(), Profile::Unconfined);
    assert_eq!(deprecated("runtime/default").unwrap(), Profile::RuntimeDefault);
    assert_eq!(
        deprecated("localhost/a/p.json").unwrap(),
        Profile::Localhost("a/p.json".to_owned())
    );
    assert!(deprecated("whatever").is_err());
}

/// teeth: crates/cri/src/translate/security.rs: `if path.is_empty() ||` → `if`
#[test]
fn d7_a_localhost_profile_has_a_name_that_stays_in_its_directory() {
    for bad in ["", "..", "../p.json", "a/../../p.json", "a/", "a\nb"] {
        refused_security("seccomp.localhost_ref", |security| {
            security.seccomp =
                Some(v1::SecurityProfile { profile_type: 2, localhost_ref: bad.to_owned() });
        });
    }
    refused_security("seccomp_profile_path", |security| {
        security.seccomp_profile_path = "localhost/".to_owned();
    });
}

#[test]
fn the_rest_of_the_security_context_is_handed_on() {
    let security = with_security(|security| {
        security.privileged = true;
        security.readonly_rootfs = true;
        security.no_new_privs = true;
        security.supplemental_groups = vec![5];
        security.supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
        security.masked_paths = vec!["/m".to_owned()];
        security.capabilities = Some(v1::Capability {
            add_capabilities: vec!["A".to_owned()],
            drop_capabilities: vec!["B".to_owned()],
            add_ambient_capabilities: vec!["C".to_owned()],
        });
        security.namespace_options = Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Target.into(),
            target_id: "c1".to_owned(),
            ..Default::default()
        });
    });
    let security = security.unwrap().security;
    assert!(security.privileged && security.readonly_rootfs && security.no_new_privs);
    assert_eq!(security.supplemental_groups, [5]);
    assert_eq!(security.supplemental_groups_policy, SupplementalGroupsPolicy::Strict);
    assert_eq!(security.masked_paths, Some(vec!["/m".to_owned()]));
    assert_eq!(security.readonly_paths, None);
    assert_eq!(security.add_capabilities, ["A"]);
    assert_eq!(security.drop_capabilities, ["B"]);
    assert_eq!(security.add_ambient_capabilities, ["C"]);
    assert_eq!(security.namespaces.pid, NamespaceMode::Target("c1".to_owned()));
    refused_security("supplemental_groups_policy", |security| {
        security.supplemental_groups_policy = 2;
    });
}

#[test]
fn what_is_executed_is_handed_on() {
    let spec = translate(v1::ContainerConfig {
        command: vec!["a".to_owned()],
        args: vec!["b".to_owned()],
        working_dir: "/w".to_owned(),
        envs: vec![v1::KeyValue { key: "K".to_owned(), value: vec![0xff] }],
        stdin: true,
        stdin_once: true,
        tty: true,
        stop_signal: v1::Signal::Sigquit.into(),
        ..config()
    })
    .unwrap();
    assert_eq!((spec.command, spec.args), (vec!["a".to_owned()], vec!["b".to_owned()]));
    assert_eq!(spec.env, [EnvVar { name: "K".to_owned(), value: vec![0xff] }]);
    assert_eq!(spec.working_dir, Some("/w".into()));
    assert!(spec.stdin && spec.stdin_once && spec.tty);
    assert_eq!(spec.stop_signal.as_deref(), Some("SIGQUIT"));
}
