//! How containers start, end, are stopped, removed and listed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, image, resources, script};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_end_has_its_code_and_reason() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for (ending, code, reason) in
        [("exit 0", 0, "Completed"), ("exit 3", 3, "Error"), ("exit 255", 255, "Error")]
    {
        let status = node.finish(&pod, &script(&image, ending)).await?.status;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{ending}");
        assert!(status.finished_at >= status.started_at && status.started_at > 0);
    }
    let mut config = script(&image, "x=a; while true; do x=$x$x; done");
    resources(&mut config).memory_limit_in_bytes = 16 << 20;
    let status = node.finish(&pod, &config).await?.status;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_executed_is_a_start_error_that_names_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for program in ["/no/such/program", "no-such-program", "/etc/passwd", "/etc"] {
        let config = container_config("main", &image, &[program]);
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let refused = node.cri.start_container(&id).await.err().context("it was executed")?;
        assert!(refused.message().contains(program), "{refused:?}");
        let status = node.cri.container_status(&id).await?;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{program}");
        assert!(status.message.contains(program), "{status:?}");
        node.cri.remove_container(&id).await?;
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_first_and_kills_after_the_grace_period() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let polite =
        script(&image, "trap 'echo bye; exit 5' TERM; echo ready; while true; do sleep 0.1; done");
    let id = node.run(&pod, &polite).await?;
    node.wait_for_line("pod", "main", "ready").await?;
    node.cri.stop_container(&id, 20).await?;
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 5);
    node.cri.stop_container(&id, 20).await.context("stopping twice is success")?;
    node.cri.remove_container(&id).await?;

    let mut quitter =
        script(&image, "trap 'exit 6' QUIT; echo ready; while true; do sleep 0.1; done");
    quitter.stop_signal = v1::Signal::Sigquit.into();
    quitter.log_path = "quitter.log".into();
    let id = node.run(&pod, &quitter).await?;
    node.wait_for_line("pod", "quitter", "ready").await?;
    node.cri.stop_container(&id, 20).await?;
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 6);
    node.cri.remove_container(&id).await?;

    let deaf = container_config("deaf", &image, &["sleep", "1000"]);
    let id = node.run(&pod, &deaf).await?;
    node.cri.stop_container(&id, 1).await?;
    assert_eq!(node.cri.container_status(&id).await?.exit_code, 137);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_listed_by_state_label_and_sandbox() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = container_config("one", &image, &["sleep", "1000"]);
    config.labels.insert("app".into(), "a".into());
    let one = node.run(&pod, &config).await?;
    let two = node
        .cri
        .create_container(&pod.id, &pod.config, &container_config("two", &image, &["true"]))
        .await?;
    let other = node.pod("other").await?;
    let created = v1::ContainerState::ContainerCreated.into();
    for (filter, expected) in [
        (v1::ContainerFilter { id: two.clone(), ..Default::default() }, vec![&two]),
        (
            v1::ContainerFilter {
                state: Some(v1::ContainerStateValue { state: created }),
                ..Default::default()
            },
            vec![&two],
        ),
        (
            v1::ContainerFilter {
                label_selector: [("app".to_owned(), "a".to_owned())].into(),
                ..Default::default()
            },
            vec![&one],
        ),
        (v1::ContainerFilter { pod_sandbox_id: other.id.clone(), ..Default::default() }, vec![]),
    ] {
        let request = v1::ListContainersRequest { filter: Some(filter.clone()) };
        let listed = node.cri.runtime.list_containers(request).await?.into_inner().containers;
        let ids: Vec<_> = listed.iter().map(|container| &container.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    let request = v1::ListContainerStatsRequest::default();
    let stats = node.cri.runtime.list_container_stats(request).await?.into_inner().stats;
    assert_eq!(stats.len(), 2);
    for of in &stats {
        let layer = of.writable_layer.as_ref().context("no writable layer")?;
        assert!(layer.fs_id.is_some(), "{of:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_never_ran_can_be_stopped_and_removed() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = script(&image, "true");
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    let status = node.cri.container_status(&id).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerCreated);
    assert!(status.created_at > 0 && status.started_at == 0 && status.finished_at == 0);
    node.cri.stop_container(&id, 10).await?;
    node.cri.remove_container(&id).await?;
    let gone = node.cri.container_status(&id).await.err().context("it is still there")?;
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    node.cri.stop_container(&id, 10).await.context("stopping what is gone is success")?;
    node.cri.remove_container(&id).await.context("removing what is gone is success")?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_running_container_ends_its_processes() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = script(&image, "trap '' TERM; sleep 1000 & sleep 1000 & wait; sleep 1000");
    let id = node.run(&pod, &config).await?;
    let pid = node.container_pid(&id).await?;
    node.cri.remove_container(&id).await?;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(node.cri.containers().await?.is_empty());
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_a_sandbox_kills_what_runs_in_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let deaf = script(&image, "trap '' TERM; while true; do sleep 1; done");
    let running = node.run(&pod, &deaf).await?;
    let other = container_config("created", &image, &["true"]);
    let created = node.cri.create_container(&pod.id, &pod.config, &other).await?;
    let pid = node.container_pid(&running).await?;
    node.cri.stop_sandbox(&pod.id).await?;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let status = node.cri.container_status(&running).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);

    let refused = node.cri.start_container(&created).await.err().context("it was started")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let late = container_config("late", &image, &["true"]);
    let refused = node.cri.create_container(&pod.id, &pod.config, &late).await.err();
    let refused = refused.context("a stopped sandbox took a container")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_sandbox_removes_its_containers() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let running = node.run(&pod, &container_config("running", &image, &["sleep", "1000"])).await?;
    let ended = node.run(&pod, &container_config("ended", &image, &["true"])).await?;
    node.wait_exit(&ended).await?;
    let created = container_config("created", &image, &["true"]);
    node.cri.create_container(&pod.id, &pod.config, &created).await?;
    let pid = node.container_pid(&running).await?;
    // Without a stop before.
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    node.cri.runtime.remove_pod_sandbox(request).await?;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(node.cri.containers().await?.is_empty() && node.cri.sandboxes().await?.is_empty());
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_restarted_as_the_next_attempt() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut ids = BTreeMap::new();
    for attempt in 0..3 {
        let mut config = container_config("main", &image, &["false"]);
        config.metadata = Some(v1::ContainerMetadata { name: "main".into(), attempt });
        config.log_path = format!("main/{attempt}.log");
        let id = node.run(&pod, &config).await?;
        assert_eq!(node.wait_exit(&id).await?.exit_code, 1);
        ids.insert(attempt, id);
    }
    for (attempt, id) in &ids {
        let metadata = node.cri.container_status(id).await?.metadata.context("no metadata")?;
        assert_eq!((metadata.name.as_str(), metadata.attempt), ("main", *attempt));
    }
    let mut listed = node.cri.containers().await?;
    listed.sort();
    let mut expected: Vec<_> = ids.into_values().collect();
    expected.sort();
    assert_eq!(listed, expected);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_only_once() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &script(&image, "echo started; sleep 1000")).await?;
    node.wait_for_line("pod", "main", "started").await?;
    let pid = node.container_pid(&id).await?;
    node.cri.start_container(&id).await.context("a client that lost the answer asks again")?;
    assert_eq!(node.container_pid(&id).await?, pid);
    node.cri.stop_container(&id, 0).await?;
    let refused = node.cri.start_container(&id).await.err().context("it was started again")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(node.read_log("pod", "main")?.len(), 1);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_stop_signal_is_sent_unless_the_request_names_one() -> Result<()> {
    let mut node = Node::start().await?;
    let made =
        image::busybox_builder()?.config("StopSignal", serde_json::json!("SIGUSR1")).build()?;
    let image = node.push("signal", "latest", &made)?;
    node.cri.pull(&image).await?;
    let pod = node.pod("pod").await?;
    let catch = "trap 'exit 1' USR1; trap 'exit 2' USR2; trap 'exit 3' TERM; echo ready; \
                 while true; do sleep 0.05; done";
    for (name, asked, code) in
        [("images", v1::Signal::RuntimeDefault, 1), ("own", v1::Signal::Sigusr2, 2)]
    {
        let mut config = container_config(name, &image, &["sh", "-c", catch]);
        config.stop_signal = asked.into();
        let id = node.run(&pod, &config).await?;
        node.wait_for_line("pod", name, "ready").await?;
        node.cri.stop_container(&id, 20).await?;
        assert_eq!(node.cri.container_status(&id).await?.exit_code, code, "{name}");
    }
    node.assert_clean().await
}
