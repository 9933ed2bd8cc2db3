//! Whose namespaces a container uses: POD, CONTAINER, NODE and TARGET.

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, script, security};
use tonic::Code;

fn processes(mode: v1::NamespaceMode, target: &str) -> Option<v1::NamespaceOption> {
    Some(v1::NamespaceOption {
        pid: mode.into(),
        target_id: target.to_owned(),
        ..Default::default()
    })
}

/// teeth: crates/engine/src/container/start.rs: `if self.target_has_ended() {` → `if false {`
#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_the_processes_of_its_target_and_no_others() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut first = container_config("first", &image, &["sleep", "4321"]);
    security(&mut first).namespace_options = processes(v1::NamespaceMode::Container, "");
    let target = node.run(&pod, &first).await?;
    let mut second = container_config("second", &image, &["sleep", "5432"]);
    security(&mut second).namespace_options = processes(v1::NamespaceMode::Container, "");
    let beside = node.run(&pod, &second).await?;

    let mut looking = container_config("looking", &image, &["ps"]);
    security(&mut looking).namespace_options = processes(v1::NamespaceMode::Target, &target);
    let seen = node.finish(&pod, &looking).await?.stdout;
    assert!(seen.contains("sleep 4321") && !seen.contains("sleep 5432"), "{seen}");
    // Its first process is the target's own, so it is not that of the one that looks.
    assert!(seen.lines().any(|line| line.trim_start().starts_with("1 ")), "{seen}");

    // The target has to be one that runs in the same pod.
    let other = node.pod("other").await?;
    security(&mut looking).namespace_options = processes(v1::NamespaceMode::Target, &beside);
    let refused = node.cri.create_container(&other.id, &other.config, &looking).await.err();
    assert_eq!(refused.context("a foreign target was taken")?.code(), Code::InvalidArgument);
    node.cri.stop_container(&beside, 0).await?;
    for bad in [beside.as_str(), "no-such-container", ""] {
        security(&mut looking).namespace_options = processes(v1::NamespaceMode::Target, bad);
        let refused = node.cri.create_container(&pod.id, &pod.config, &looking).await.err();
        let refused = refused.with_context(|| format!("target {bad:?} was taken"))?;
        assert_ne!(refused.code(), Code::Internal, "{refused:?}");
        assert_ne!(refused.code(), Code::Unknown, "{refused:?}");
    }
    // Nor is it joined by its pid when it has ended meanwhile: somebody else may have that.
    security(&mut looking).namespace_options = processes(v1::NamespaceMode::Target, &target);
    looking.metadata = Some(v1::ContainerMetadata { name: "late".into(), attempt: 0 });
    let late = node.cri.create_container(&pod.id, &pod.config, &looking).await?;
    node.cri.stop_container(&target, 0).await?;
    let refused = node.cri.start_container(&late).await.err().context("it was joined")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("a container that has ended"), "{refused:?}");
    node.assert_clean().await
}

/// The sandbox decides what of the node is shown; a container cannot ask for more.
///
/// teeth: crates/cri/src/container.rs: `*has != NamespaceMode::Node` → `false`
#[tokio::test(flavor = "multi_thread")]
async fn a_container_does_not_get_the_nodes_namespaces_in_a_pod_with_its_own() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "true");
    for (kind, options) in [
        ("network", v1::NamespaceOption { network: 2, ..Default::default() }),
        ("pid", v1::NamespaceOption { pid: 2, ..Default::default() }),
        ("ipc", v1::NamespaceOption { ipc: 2, ..Default::default() }),
    ] {
        security(&mut config).namespace_options = Some(options);
        let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
        let refused = refused.with_context(|| format!("{kind} of the node was given"))?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(kind), "{refused:?}");
    }
    node.assert_clean().await
}

/// Names that other runtimes have taken for something else (CVE-2022-0811, CVE-2022-0532,
/// CVE-2023-6476, CVE-2024-3154).
///
/// teeth: crates/spec/src/resources.rs: `controller != "cgroup"` → `true`
#[tokio::test(flavor = "multi_thread")]
async fn d9_what_steers_the_node_cannot_be_slipped_in() -> Result<()> {
    let (mut node, image, mut pod) = Node::with_pod().await?;
    for (number, (name, value)) in [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/x"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/bin/x"),
        ("kernel.core_pattern", "|/bin/x"),
        ("net/../kernel/core_pattern", "|/bin/x"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/bin/x"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = node.sandbox_config(&format!("bad-{number}"));
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert(name.to_owned(), value.to_owned());
        let refused = node.cri.run_sandbox(&config).await.err();
        let refused = refused.with_context(|| format!("{name}={value} was taken"))?;
        assert_ne!(refused.code(), Code::Unknown, "{refused:?}");
    }
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    assert!(!pattern.contains("/bin/x"), "{pattern}");

    // Annotations of pods and containers are no requests.
    let mut config = script(&image, "cat /proc/self/cgroup | wc -l; grep NoNew /proc/self/status");
    let plain = node.finish(&pod, &config).await?.stdout;
    for (name, value) in [
        ("org.systemd.property.ExecStartPre", "'/bin/x'"),
        ("run.oci.seccomp_bpf_data", "AA=="),
        ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
        ("io.kubernetes.cri-o.userns-mode", "auto"),
        ("dev.berth.mounts.exact", "[\"/etc\"]"),
        ("dev.berth.process.env", "[\"TEVBSz0x\"]"),
    ] {
        config.annotations.insert(name.to_owned(), value.to_owned());
        pod.config.annotations.insert(name.to_owned(), value.to_owned());
    }
    assert_eq!(node.finish(&pod, &config).await?.stdout, plain);

    for bad in ["cgroup.procs", "../memory.max", "memory.max/../../x", "memory max", "memory"] {
        let mut config = script(&image, "true");
        let unified = &mut berth_testkit::resources(&mut config).unified;
        unified.insert(bad.to_owned(), "1".to_owned());
        let refused = node.cri.create_container(&pod.id, &pod.config, &config).await.err();
        let refused = refused.with_context(|| format!("{bad} was taken"))?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    node.assert_clean().await
}
