//! A pod as kubelet wants one: what the paths work on.

use anyhow::{Context as _, Result};
use berth_metadata::{AttachmentRecord, ContainerRecord, SandboxPhase, SandboxRecord, ShimRecord};
use berth_model::container::{EnvVar, Resources, Timestamp};
use berth_model::mount::BindMount;
use berth_model::sandbox::SandboxName;
use berth_model::{
    ChainId, ContainerId, ContainerSpec, ContainerState, DiffId, Digest, SandboxId, SandboxSpec,
};
use berth_spec::user::ResolvedUser;
use berth_spec::{Defaults, SandboxFiles, Shm, Wanted};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::LinuxNamespaceType;
use serde_json::json;

/// Layers of the image.
const LAYERS: u8 = 12;

/// Owns what a specification is built from.
#[derive(Debug)]
pub(crate) struct Fixture {
    id: ContainerId,
    sandbox: SandboxId,
    name: SandboxName,
    spec: ContainerSpec,
    image: ImageConfiguration,
    user: ResolvedUser,
    files: SandboxFiles,
    defaults: Defaults,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        let name = |name: &str| SandboxName {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: "5f7f4f5e-8f3c-4d7e-9d0e-0c5b7d6f1a2b".to_owned(),
            attempt: 0,
        };
        let seen = |file: &str| Some(format!("/run/berth/sandboxes/s/{file}").into());
        Ok(Self {
            id: ContainerId::new("c".repeat(64)).context("a container id")?,
            sandbox: SandboxId::new("5".repeat(64)).context("a sandbox id")?,
            name: name("web-6d4cf56db6-x2x7q"),
            spec: spec(),
            image: serde_json::from_slice(&image_config()?)?,
            user: ResolvedUser { uid: 0, gid: 0, groups: vec![0], home: None },
            files: SandboxFiles {
                resolv_conf: seen("resolv.conf"),
                hosts: seen("hosts"),
                hostname: seen("hostname"),
                shm: Some(Shm::Shared),
            },
            defaults: Defaults::default(),
        })
    }

    pub(crate) fn wanted(&self) -> Wanted<'_> {
        let namespace = |kind, number| (kind, Some(format!("/proc/self/fd/{number}").into()));
        Wanted {
            id: &self.id,
            sandbox: &self.sandbox,
            sandbox_name: &self.name,
            spec: &self.spec,
            image: &self.image,
            image_name: "registry.example/team/web:1.2.3",
            user: &self.user,
            namespaces: vec![
                namespace(LinuxNamespaceType::Network, 10),
                namespace(LinuxNamespaceType::Ipc, 11),
                namespace(LinuxNamespaceType::Uts, 12),
                (LinuxNamespaceType::Pid, None),
            ],
            cgroup: "/kubepods/burstable/pod5f7f4f5e/c",
            ids: None,
            hostname: "web-6d4cf56db6-x2x7q",
            files: self.files.clone(),
            devices: Vec::new(),
            device_mounts: Vec::new(),
            labels: Default::default(),
            localhost_seccomp: None,
            volumes: Default::default(),
            defaults: &self.defaults,
        }
    }

    /// The record of the pod's sandbox.
    pub(crate) fn sandbox_record(&self) -> SandboxRecord {
        SandboxRecord {
            limits: None,
            id: self.sandbox.clone(),
            spec: SandboxSpec { name: self.name.clone(), ..SandboxSpec::default() },
            phase: SandboxPhase::Ready,
            created_at: Timestamp(1_795_000_000_000_000_000),
            boot_id: "3b0c6f0e-6d53-4b52-8f0c-7f6c2d1e0a9b".to_owned(),
            runtime: "berth".to_owned(),
            cgroup: "/kubepods/burstable/pod5f7f4f5e".to_owned(),
            owns_cgroup: true,
            shim: Some(ShimRecord {
                address: "unix:///run/berth/s/0123456789abcdef0123".to_owned(),
                version: 3,
                pid: 12_345,
                started_ticks: 987_654_321,
            }),
            network: Some(AttachmentRecord {
                address: [10, 88, 0, 7].into(),
                prefix: 16,
                gateway: [10, 88, 0, 1].into(),
                mac: "02:00:0a:58:00:07".to_owned(),
                host_interface: "berth0a580007".to_owned(),
                host_index: 42,
                ports: Vec::new(),
            }),
        }
    }

    /// The record of its container, with another `id` if there is one.
    pub(crate) fn container_record(&self, id: Option<ContainerId>) -> ContainerRecord {
        let mut spec = self.spec.clone();
        let id = id.unwrap_or_else(|| self.id.clone());
        // Names are unique within a sandbox.
        spec.name.name = id.to_string();
        ContainerRecord {
            limits: None,
            changing: None,
            id,
            sandbox: self.sandbox.clone(),
            spec,
            state: ContainerState::Created,
            created_at: Timestamp(1_795_000_000_000_000_000),
            image: Digest::of(b"config"),
            image_ref: "registry.example/team/web:1.2.3".to_owned(),
            cgroup: "/kubepods/burstable/pod5f7f4f5e/c".to_owned(),
            log_path: Some("/var/log/pods/default_web_5f7f4f5e/main/0.log".into()),
            stop_signal: "SIGTERM".to_owned(),
            user: (0, 0),
            groups: vec![0],
            chain: ChainId::chain(
                &(0..LAYERS).map(|layer| DiffId(Digest::of(&[layer]))).collect::<Vec<_>>(),
            ),
            volumes: Default::default(),
        }
    }
}

/// As kubelet asks: variables of services, a token, hosts and termination log, limits.
fn spec() -> ContainerSpec {
    let env = (0..20).map(|number| EnvVar {
        name: format!("SERVICE_{number}_PORT_80_TCP_ADDR"),
        value: b"tcp://10.96.0.1:80".to_vec(),
    });
    let mount = |path: &str, readonly| BindMount {
        container_path: path.into(),
        host_path: format!("/var/lib/kubelet/pods/5f7f4f5e{path}").into(),
        readonly,
        ..BindMount::default()
    };
    ContainerSpec {
        image: "registry.example/team/web:1.2.3".to_owned(),
        args: vec!["--listen=:8080".to_owned()],
        env: env.collect(),
        mounts: vec![
            mount("/var/run/secrets/kubernetes.io/serviceaccount", true),
            mount("/etc/hosts", false),
            mount("/dev/termination-log", false),
            mount("/data", false),
        ],
        resources: Resources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit: 128 << 20,
            oom_score_adj: 900,
            ..Resources::default()
        },
        ..ContainerSpec::default()
    }
}

/// The configuration of an image with some layers, as a registry has it.
pub(crate) fn image_config() -> Result<Vec<u8>> {
    let digests = (0..LAYERS).map(|layer| Digest::of(&[layer]).to_string());
    let step = |layer| json!({"created_by": format!("RUN step {layer}"), "empty_layer": false});
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/entry"],
            "Cmd": ["serve"],
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
            "WorkingDir": "/srv",
            "Labels": {"org.opencontainers.image.title": "web"},
        },
        "rootfs": {"type": "layers", "diff_ids": digests.collect::<Vec<_>>()},
        "history": (0..LAYERS).map(step).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_vec(&config)?)
}
