use super::*;
use berth_model::chain;

fn config() -> v1::PodSandboxConfig {
    let metadata = v1::PodSandboxMetadata {
        name: "pod".to_owned(),
        uid: "uid".to_owned(),
        namespace: "space".to_owned(),
        attempt: 2,
    };
    v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
}

fn translate(config: v1::PodSandboxConfig) -> Result<SandboxSpec, Error> {
    let request =
        v1::RunPodSandboxRequest { config: Some(config), runtime_handler: "kata".to_owned() };
    sandbox_spec(&request)
}

#[track_caller]
fn refused(field: &str, change: impl FnOnce(&mut v1::PodSandboxConfig)) {
    let mut config = config();
    change(&mut config);
    let error = translate(config).expect_err(field);
    assert!(chain(&error).contains(field), "{error}");
}

fn linux(change: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> v1::PodSandboxConfig {
    let mut linux = v1::LinuxPodSandboxConfig::default();
    change(&mut linux);
    v1::PodSandboxConfig { linux: Some(linux), ..config() }
}

fn security(change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> v1::PodSandboxConfig {
    linux(|linux| change(linux.security_context.get_or_insert_default()))
}

#[test]
fn the_least_a_sandbox_needs_is_its_name() {
    let spec = translate(config()).unwrap();
    assert_eq!((spec.name.name.as_str(), spec.name.attempt), ("pod", 2));
    assert_eq!(spec.runtime_handler, "kata");
    assert_eq!(spec.namespaces, NamespaceOptions::default());
    assert_eq!((spec.log_directory, spec.cgroup_parent, spec.dns), (None, None, None));
    assert!(!spec.privileged);
}

#[test]
fn what_is_missing_is_named() {
    let empty = v1::RunPodSandboxRequest::default();
    assert!(matches!(sandbox_spec(&empty), Err(Error::Missing("config"))));
    refused("config.metadata is missing", |config| config.metadata = None);
    let metadata = |config: &mut v1::PodSandboxConfig| config.metadata.clone().unwrap();
    refused("config.metadata.name", |config| {
        config.metadata = Some(v1::PodSandboxMetadata { name: String::new(), ..metadata(config) });
    });
    refused("config.metadata.uid", |config| {
        config.metadata = Some(v1::PodSandboxMetadata { uid: String::new(), ..metadata(config) });
    });
    refused("config.metadata.namespace", |config| {
        let namespace = "a\nb".to_owned();
        config.metadata = Some(v1::PodSandboxMetadata { namespace, ..metadata(config) });
    });
}

#[test]
fn what_makes_no_sense_is_named() {
    refused("config.windows", |config| config.windows = Some(Default::default()));
    for bad in ["relative", "/a/../b", "/a\0"] {
        refused("config.log_directory", |config| config.log_directory = bad.to_owned());
    }
    let long = "a".repeat(65);
    for bad in ["a b", "a\nb", "-a", "a\t1.2.3.4 evil", &long] {
        refused("config.hostname", |config| config.hostname = bad.to_owned());
    }
    for bad in ["x.slice", "kubepods/x", "/a/../..", "/a\nb"] {
        refused("cgroup_parent", |config| {
            *config = linux(|linux| linux.cgroup_parent = bad.to_owned())
        });
    }
    refused("run_as_group", |config| {
        *config = security(|security| security.run_as_group = Some(v1::Int64Value { value: 1 }));
    });
}

#[test]
fn i10_resolv_conf_cannot_be_given_lines_of_its_own() {
    for bad in ["a\nnameserver 1.2.3.4", "a b", "", "a\0"] {
        let list = vec![bad.to_owned()];
        let dns = v1::DnsConfig { searches: list.clone(), ..Default::default() };
        refused("dns_config.searches", |config| config.dns_config = Some(dns));
        let dns = v1::DnsConfig { servers: list.clone(), ..Default::default() };
        refused("dns_config.servers", |config| config.dns_config = Some(dns));
        let dns = v1::DnsConfig { options: list, ..Default::default() };
        refused("dns_config.options", |config| config.dns_config = Some(dns));
    }
}

fn options(network: Mode, pid: Mode, ipc: Mode) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ipc: ipc.into(),
        ..Default::default()
    }
}

#[test]
fn namespaces_are_translated_or_refused() {
    let with = |options| translate(security(|security| security.namespace_options = Some(options)));
    let spec = with(options(Mode::Node, Mode::Container, Mode::Node)).unwrap();
    assert_eq!(
        spec.namespaces,
        NamespaceOptions {
            network: NamespaceMode::Node,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Node,
            user: None,
        }
    );
    for (field, bad) in [
        ("namespace_options.network", options(Mode::Container, Mode::Pod, Mode::Pod)),
        ("namespace_options.pid", options(Mode::Pod, Mode::Target, Mode::Pod)),
        ("namespace_options.ipc", options(Mode::Pod, Mode::Pod, Mode::Container)),
        ("namespace_options.ipc", v1::NamespaceOption { ipc: 9, ..Default::default() }),
        (
            "namespace_options.userns_options",
            v1::NamespaceOption {
                userns_options: Some(v1::UserNamespace::default()),
                ..Default::default()
            },
        ),
    ] {
        let error = with(bad).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}

/// teeth: crates/cri/src/translate/sandbox.rs: `berth_spec::sysctl::check(&linux.sysctls, &namespaces).map_err(Error::Sysctls)?;` → ``
#[test]
fn d9_sysctls_of_the_node_are_refused() {
    let with = |name: &str, network: Mode| {
        let mut config = security(|security| {
            security.namespace_options = Some(options(network, Mode::Pod, Mode::Pod));
        });
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        sysctls.insert(name.to_owned(), "1".to_owned());
        translate(config)
    };
    assert!(with("net.core.somaxconn", Mode::Pod).is_ok());
    let error = with("kernel.core_pattern", Mode::Pod).unwrap_err();
    assert!(chain(&error).contains("kernel.core_pattern"), "{error}");
    assert!(with("net.core.somaxconn", Mode::Node).is_err());
}

#[test]
fn ports_are_mapped_only_where_they_lead_somewhere() {
    let port = |host_port, container_port, host_ip: &str| v1::PortMapping {
        protocol: v1::Protocol::Udp.into(),
        container_port,
        host_port,
        host_ip: host_ip.to_owned(),
    };
    let with = |ports: Vec<v1::PortMapping>| {
        translate(v1::PodSandboxConfig { port_mappings: ports, ..config() })
    };
    let mapped = with(vec![port(0, 80, ""), port(8080, 80, "127.0.0.1"), port(53, 53, "0.0.0.0")]);
    let mapped = mapped.unwrap().port_mappings;
    assert_eq!(mapped.len(), 2);
    assert_eq!((mapped[0].host_port, mapped[0].container_port), (8080, 80));
    assert_eq!(mapped[0].host_ip, Some([127, 0, 0, 1].into()));
    assert_eq!((mapped[1].host_ip, mapped[1].protocol), (None, Protocol::Udp));
    for (field, bad) in [
        ("host_port", port(65_536, 80, "")),
        ("host_port", port(-1, 80, "")),
        ("container_port", port(80, 0, "")),
        ("container_port", port(80, 70_000, "")),
        ("host_ip", port(80, 80, "localhost")),
        ("protocol", v1::PortMapping { protocol: 3, ..port(80, 80, "") }),
    ] {
        let error = with(vec![port(1, 1, ""), bad]).unwrap_err();
        assert!(error.to_string().contains(&format!("port_mappings[1].{field}")), "{error}");
    }
    let mut shared = security(|security| {
        security.namespace_options = Some(options(Mode::Node, Mode::Pod, Mode::Pod));
    });
    shared.port_mappings = vec![port(80, 80, "")];
    assert_eq!(translate(shared).unwrap().port_mappings, []);
}
