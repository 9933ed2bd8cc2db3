//! What kubelet does with pods all day: init containers, sidecars, kills for memory, and the
//! questions it asks at its start.

use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, resources, script};
use tonic::Code;

fn count(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One pod as kubelet runs it: init containers one after the other, a sidecar that stays,
/// then the main container; ended in the other order.
async fn live(life: Life, number: u32) -> Result<()> {
    let Life { mut cri, image, config } = life;
    let pod = cri.run_sandbox(&config).await?;
    for (init, ending) in [("setup", "exit 0"), ("migrate", "echo done")] {
        let id = cri.create_container(&pod, &config, &named(init, &image, ending)).await?;
        cri.start_container(&id).await?;
        loop {
            let status = cri.container_status(&id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                anyhow::ensure!(status.reason == "Completed", "{number} {init}: {status:?}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let polite = "trap 'exit 0' TERM; while true; do sleep 0.05; done";
    let sidecar = cri.create_container(&pod, &config, &named("sidecar", &image, polite)).await?;
    cri.start_container(&sidecar).await?;
    let main = named("main", &image, "sleep 0.2; exit 7");
    let main = cri.create_container(&pod, &config, &main).await?;
    cri.start_container(&main).await?;
    // Probes of the sidecar go on while the main container lives.
    for _ in 0..3 {
        anyhow::ensure!(cri.exec(&sidecar, &["true"], 100).await?.exit_code == 0, "{number}");
    }
    while cri.container_status(&main).await?.state() != v1::ContainerState::ContainerExited {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let status = cri.container_status(&main).await?;
    anyhow::ensure!((status.exit_code, status.reason.as_str()) == (7, "Error"), "{status:?}");
    let status = cri.container_status(&sidecar).await?;
    anyhow::ensure!(status.state() == v1::ContainerState::ContainerRunning, "{status:?}");
    cri.stop_container(&sidecar, 30).await?;
    let status = cri.container_status(&sidecar).await?;
    anyhow::ensure!(status.exit_code == 0, "{number} was killed: {status:?}");
    cri.remove_sandbox(&pod).await?;
    Ok(())
}

/// What one pod's life needs of a node.
struct Life {
    cri: berth_testkit::Cri,
    image: String,
    config: v1::PodSandboxConfig,
}

fn named(name: &str, image: &str, ending: &str) -> v1::ContainerConfig {
    container_config(name, image, &["sh", "-c", ending])
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_and_sidecars_of_many_pods_keep_their_order() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pods = (0..count("BERTH_PODS", 12)).map(|number| {
        let config = node.sandbox_config(&format!("pod{number}"));
        let of = Life { cri: node.cri.clone(), image: image.clone(), config };
        tokio::spawn(live(of, number))
    });
    for pod in pods.collect::<Vec<_>>() {
        pod.await??;
    }
    node.assert_clean().await
}

/// teeth: crates/engine/src/container/decide.rs: `_ if oom_kills > 0 => ExitReason::OomKilled` → `_ if oom_kills > 9 => ExitReason::OomKilled`
#[tokio::test(flavor = "multi_thread")]
async fn every_kill_for_memory_is_told_whoever_of_the_container_it_hits() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let eat = "x=a; while true; do x=$x$x; done";
    for (number, (name, ending, code, reason)) in [
        ("first", eat.to_owned(), 137, "OOMKilled"),
        // The child is killed, and its parent fails because of it.
        ("child", format!("sh -c '{eat}'; exit 3"), 3, "OOMKilled"),
        // The parent copes.
        ("borne", format!("sh -c '{eat}'; exit 0"), 0, "Completed"),
    ]
    .into_iter()
    .cycle()
    .take(usize::try_from(count("BERTH_OOMS", 6))?)
    .enumerate()
    {
        let mut config = script(&image, &ending);
        resources(&mut config).memory_limit_in_bytes = 16 << 20;
        let status = node.finish(&pod, &config).await?.status;
        let told = (status.exit_code, status.reason.as_str());
        assert_eq!(told, (code, reason), "{number} {name}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubelet_asks_at_its_start_is_answered() -> Result<()> {
    let mut node = Node::start().await?;
    let runtime = &mut node.cri.runtime;
    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
    let linux = config.linux.context("no linux")?;
    assert_eq!(linux.cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    for (pod_cidr, taken) in
        [("", true), ("10.1.0.0/16", true), ("10.1.0.0/16,fd00::/64", true), ("10.1/x", false)]
    {
        let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request = v1::UpdateRuntimeConfigRequest {
            runtime_config: Some(v1::RuntimeConfig { network_config }),
        };
        let answer = runtime.update_runtime_config(request).await;
        assert_eq!(answer.is_ok(), taken, "{pod_cidr:?}: {answer:?}");
        if let Err(refused) = answer {
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains("pod_cidr"), "{refused:?}");
        }
    }
    let request = v1::CheckpointContainerRequest {
        container_id: "f".repeat(64),
        location: "/tmp/checkpoint.tar".into(),
        timeout: 10,
    };
    let refused = runtime.checkpoint_container(request).await.err().context("a checkpoint")?;
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("switched off"), "{refused:?}");
    node.assert_clean().await
}

/// teeth: crates/cri/src/list.rs: `Ok(parts(items, |containers|` → `Ok(parts(items.skip(1), |containers|`
#[tokio::test(flavor = "multi_thread")]
async fn lists_in_parts_say_what_lists_say() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for number in 0..5 {
        let mut config = container_config(&format!("c{number}"), &image, &["true"]);
        // Two of them fill a part.
        config.annotations.insert("large".into(), "x".repeat(400 << 10));
        config.labels.insert("even".into(), (number % 2 == 0).to_string());
        node.cri.create_container(&pod.id, &pod.config, &config).await?;
    }
    let runtime = &mut node.cri.runtime;
    let even = v1::ContainerFilter {
        label_selector: [("even".to_owned(), "true".to_owned())].into(),
        ..Default::default()
    };
    for (filter, expected, least) in [(None, 5, 3), (Some(even), 3, 2)] {
        let request = v1::ListContainersRequest { filter: filter.clone() };
        let listed = runtime.list_containers(request).await?.into_inner().containers;
        let request = v1::StreamContainersRequest { filter };
        let mut parts = runtime.stream_containers(request).await?.into_inner();
        let (mut all, mut number) = (Vec::new(), 0);
        while let Some(part) = parts.message().await? {
            all.extend(part.containers);
            number += 1;
        }
        assert_eq!(all, listed);
        assert_eq!((all.len(), number), (expected, least));
    }
    let state = v1::PodSandboxState::SandboxReady.into();
    let filter = v1::PodSandboxFilter {
        id: pod.id.clone(),
        state: Some(v1::PodSandboxStateValue { state }),
        ..Default::default()
    };
    let request = v1::StreamPodSandboxesRequest { filter: Some(filter) };
    let mut parts = runtime.stream_pod_sandboxes(request).await?.into_inner();
    let part = parts.message().await?.context("no part")?;
    assert_eq!(part.pod_sandboxes.len(), 1);
    assert_eq!(part.pod_sandboxes[0].id, pod.id);
    let request = v1::StreamImagesRequest::default();
    let mut parts = node.cri.image.stream_images(request).await?.into_inner();
    let part = parts.message().await?.context("no part")?;
    assert!(part.images[0].repo_tags.contains(&image), "{part:?}");
    node.assert_clean().await
}
