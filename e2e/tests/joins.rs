//! Requests for work in flight get its outcome (decision 16), whatever became of who asked
//! first.
//!
//! A failpoint holds the work where the test wants it.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Cri, Node, Pod, container_config, script};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// A deadline that passes while work is held.
const SHORT: Duration = Duration::from_millis(300);

type Asked<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// A client on a connection of its own.
async fn client(node: &Node) -> Result<Cri> {
    Cri::connect(node.daemon().socket()).await
}

/// Asks in the background, on a connection of its own.
async fn asking<T: Send + 'static, F: Future<Output = T> + Send>(
    node: &Node,
    ask: impl FnOnce(Cri) -> F + Send + 'static,
) -> Result<JoinHandle<T>> {
    let cri = client(node).await?;
    Ok(tokio::spawn(async move { ask(cri).await }))
}

/// As [`asking`], by a client that is gone before it is answered: connection and all.
async fn vanishing<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    node: &Node,
    point: &str,
    ask: impl FnOnce(Cri) -> F + Send + 'static,
) -> Result<()> {
    let asked = asking(node, ask).await?;
    node.daemon().wait_passed(point, 1).await?;
    asked.abort();
    ensure!(asked.await.is_err_and(|error| error.is_cancelled()), "it was answered: nothing held");
    Ok(())
}

/// A request as it is seen to be in the daemon's hands: another on its connection was
/// answered after it was sent.
async fn settle(node: &Node) -> Result<()> {
    for _ in 0..3 {
        client(node).await?.runtime.version(v1::VersionRequest::default()).await?;
    }
    Ok(())
}

fn run(config: &v1::PodSandboxConfig) -> impl FnOnce(Cri) -> Asked<String> + use<> {
    let config = config.clone();
    |mut cri| Box::pin(async move { cri.run_sandbox(&config).await })
}

fn create(pod: &Pod, config: &v1::ContainerConfig) -> impl FnOnce(Cri) -> Asked<String> + use<> {
    let (pod, config) = (pod.clone(), config.clone());
    |mut cri| Box::pin(async move { cri.create_container(&pod.id, &pod.config, &config).await })
}

fn start(id: &str) -> impl FnOnce(Cri) -> Asked<()> + use<> {
    let id = id.to_owned();
    |mut cri| Box::pin(async move { cri.start_container(&id).await })
}

fn times(passed: &[String], point: &str) -> usize {
    passed.iter().filter(|name| *name == point).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_asked_for_at_once_or_again_is_made_once() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.sandbox_config("pod");
    node.daemon().hold(&["run.stored"])?;
    vanishing(&node, "run.stored", run(&config)).await?;

    // Its deadline passes, as the server's answer says too.
    let mut request = tonic::Request::new(v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..<_>::default()
    });
    request.set_timeout(SHORT);
    let late = client(&node).await?.runtime.run_pod_sandbox(request).await.err();
    let late = late.context("it was answered: nothing held")?;
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");

    let again = [asking(&node, run(&config)).await?, asking(&node, run(&config)).await?];
    settle(&node).await?;
    assert!(again.iter().all(|asked| !asked.is_finished()), "nothing is made yet");
    assert!(node.cri.sandboxes().await?.is_empty(), "what is in the making is not shown");
    node.daemon().release()?;
    let mut ids = Vec::new();
    for asked in again {
        ids.push(asked.await??);
    }
    ids.push(node.cri.run_sandbox(&config).await.context("it is there, and asked for again")?);
    assert_eq!(node.cri.sandboxes().await?, [ids[0].clone()]);
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(times(&node.daemon().passed()?, "run.stored"), 1, "it was made once");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_under_a_sandboxs_name_is_refused() -> Result<()> {
    let mut node = Node::start().await?;
    let config = node.sandbox_config("pod");
    let mut other = config.clone();
    other.labels.insert("app".into(), "other".into());
    let mut next = other.clone();
    next.metadata.get_or_insert_default().attempt += 1;
    node.daemon().hold(&["run.stored"])?;
    let first = asking(&node, run(&config)).await?;
    node.daemon().wait_passed("run.stored", 1).await?;

    let refused = node.cri.run_sandbox(&other).await.err().context("it joined")?;
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    assert!(refused.message().contains("tests/pod (uid uid-pod, attempt 0)"), "{refused:?}");
    // kubelet's way on: the next attempt, while the one before is still in the making.
    let bumped = asking(&node, run(&next)).await?;
    node.daemon().wait_passed("run.stored", 2).await?;
    node.daemon().release()?;
    let (first, bumped) = (first.await??, bumped.await??);
    assert_ne!(first, bumped);
    let refused = node.cri.run_sandbox(&other).await.err().context("it is another's")?;
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    assert!(refused.message().contains(&first), "{refused:?}");

    node.cri.remove_sandbox(&first).await?;
    node.cri.run_sandbox(&other).await.context("the name is free again")?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_asked_for_at_once_or_again_is_made_once() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = script(&image, "true");
    node.daemon().hold(&["create.snapshot"])?;
    vanishing(&node, "create.snapshot", create(&pod, &config)).await?;
    let again =
        [asking(&node, create(&pod, &config)).await?, asking(&node, create(&pod, &config)).await?];
    settle(&node).await?;
    assert!(again.iter().all(|asked| !asked.is_finished()), "nothing is made yet");
    assert!(node.cri.containers().await?.is_empty(), "what is in the making is not shown");
    node.daemon().release()?;
    let mut ids = Vec::new();
    for asked in again {
        ids.push(asked.await??);
    }
    ids.push(create(&pod, &config)(client(&node).await?).await.context("it is there")?);
    assert_eq!(node.cri.containers().await?, [ids[0].clone()]);
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(times(&node.daemon().passed()?, "create.snapshot"), 1, "it was made once");
    node.assert_clean().await
}

/// kubelet makes a new termination log for each request, and lists variables in no order.
#[tokio::test(flavor = "multi_thread")]
async fn kubelets_retry_of_a_container_joins_and_another_configuration_does_not() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let kubelets = |log: &str, env: [&str; 2]| -> Result<v1::ContainerConfig> {
        let host = node.dir().join("termination").join(log);
        std::fs::create_dir_all(host.parent().context("it has a parent")?)?;
        std::fs::write(&host, "")?;
        let mut config = script(&image, "echo end > /dev/termination-log");
        config.envs =
            env.map(|key| v1::KeyValue { key: key.into(), value: b"1".to_vec() }).to_vec();
        config.mounts = vec![berth_testkit::bind("/dev/termination-log", &host)];
        let annotation = "io.kubernetes.container.terminationMessagePath";
        config.annotations.insert(annotation.into(), "/dev/termination-log".into());
        Ok(config)
    };
    let (first, again) = (kubelets("1a2b3c4d", ["A", "B"])?, kubelets("5e6f7a8b", ["B", "A"])?);
    let mut other = first.clone();
    other.envs.clear();
    node.daemon().hold(&["create.snapshot"])?;
    vanishing(&node, "create.snapshot", create(&pod, &first)).await?;
    let refused = create(&pod, &other)(client(&node).await?).await.err().context("it joined")?;
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    assert!(refused.message().contains("main (attempt 0)"), "{refused:?}");
    let mut next = other.clone();
    next.metadata.get_or_insert_default().attempt += 1;
    let bumped = asking(&node, create(&pod, &next)).await?;
    node.daemon().wait_passed("create.snapshot", 2).await?;
    let joined = asking(&node, create(&pod, &again)).await?;
    settle(&node).await?;
    node.daemon().release()?;
    let (id, bumped) = (joined.await??, bumped.await??);
    assert_ne!(id, bumped);
    assert_eq!(create(&pod, &again)(client(&node).await?).await?, id);

    // What kubelet then looks for is where the status says.
    node.cri.start_container(&id).await?;
    let status = node.wait_exit(&id).await?;
    let log = &status.mounts.first().context("no mount is shown")?.host_path;
    assert_eq!(std::fs::read_to_string(log)?, "end\n");
    let refused = create(&pod, &first)(client(&node).await?).await.err().context("it ran")?;
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    assert!(refused.message().contains(&id), "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_asked_for_at_once_or_again_is_pulled_once() -> Result<()> {
    let node = Node::start().await?;
    let reference = node.push("busybox", "latest", &berth_testkit::image::busybox()?)?;
    let pull = |reference: &str| {
        let reference = reference.to_owned();
        move |mut cri: Cri| async move { cri.pull(&reference).await }
    };
    node.daemon().hold(&["pull.unpacked"])?;
    vanishing(&node, "pull.unpacked", pull(&reference)).await?;
    let again = [asking(&node, pull(&reference)).await?, asking(&node, pull(&reference)).await?];
    settle(&node).await?;
    assert!(again.iter().all(|asked| !asked.is_finished()), "nothing is here yet");
    node.daemon().release()?;
    let mut ids = Vec::new();
    for asked in again {
        ids.push(asked.await??);
    }
    assert_eq!(ids[0], ids[1]);
    let passed = node.daemon().passed()?;
    assert_eq!(times(&passed, "pull.claimed"), 1, "it was pulled once: {passed:?}");
    assert_eq!(times(&passed, "pull.recorded"), 1, "{passed:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_fails_or_whose_daemon_is_killed_leaves_its_name_free() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let sandbox = node.sandbox_config("second");
    let container = script(&image, "true");
    // Another specification each time: nobody can have joined, or been answered from before.
    let labelled = |number: u32| {
        let (mut sandbox, mut container) = (sandbox.clone(), container.clone());
        sandbox.labels.insert("try".into(), number.to_string());
        container.labels.insert("try".into(), number.to_string());
        (sandbox, container)
    };
    node.daemon().arm("run.made error EIO\ncreate.snapshot error EIO\n")?;
    for number in 0..2 {
        let (sandbox, container) = labelled(number);
        let failed = node.cri.run_sandbox(&sandbox).await.err().context("it was made")?;
        assert_eq!(failed.code(), Code::Internal, "{failed:?}");
        let failed = create(&pod, &container)(client(&node).await?).await.err();
        let failed = failed.context("it was made")?;
        assert_eq!(failed.code(), Code::Internal, "{failed:?}");
    }

    let (sandbox, container) = labelled(2);
    node.daemon().hold(&["run.made", "create.snapshot"])?;
    vanishing(&node, "run.made", run(&sandbox)).await?;
    vanishing(&node, "create.snapshot", create(&pod, &container)).await?;
    node.kill_daemon()?;
    node.daemon().release()?;
    node.kill_and_restart().await?;

    let (sandbox, container) = labelled(3);
    let second = node.cri.run_sandbox(&sandbox).await.context("the name is free")?;
    let id = create(&pod, &container)(client(&node).await?).await.context("the name is free")?;
    assert_eq!(node.cri.containers().await?, [id]);
    let mut sandboxes = node.cri.sandboxes().await?;
    sandboxes.retain(|id| *id != pod.id);
    assert_eq!(sandboxes, [second]);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_at_once_or_after_a_deadline_run_a_program_once() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    // It has ended long before a second start would have its turn.
    let id =
        node.cri.create_container(&pod.id, &pod.config, &script(&image, "echo started")).await?;
    node.daemon().hold(&["start.executed"])?;
    vanishing(&node, "start.executed", start(&id)).await?;
    let again = [asking(&node, start(&id)).await?, asking(&node, start(&id)).await?];
    settle(&node).await?;
    assert!(again.iter().all(|asked| !asked.is_finished()));
    node.daemon().release()?;
    for asked in again {
        asked.await?.context("it asked for the start that succeeded")?;
    }
    node.wait_exit(&id).await?;
    assert_eq!(node.read_log("pod", "main")?.len(), 1);
    let refused = node.cri.start_container(&id).await.err().context("it has ended")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");

    let missing = container_config("missing", &image, &["/no/such/program"]);
    let id = node.cri.create_container(&pod.id, &pod.config, &missing).await?;
    node.daemon().hold(&["start.refused"])?;
    let asked = [asking(&node, start(&id)).await?, asking(&node, start(&id)).await?];
    node.daemon().wait_passed("start.refused", 1).await?;
    settle(&node).await?;
    node.daemon().release()?;
    for asked in asked {
        let refused = asked.await?.err().context("it was executed")?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains("/no/such/program"), "{refused:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_or_removal_waits_for_the_start_in_flight() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for remove in [false, true] {
        let name = if remove { "removed" } else { "stopped" };
        let config = container_config(name, &image, &["sleep", "1000"]);
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        node.daemon().hold(&["start.executed"])?;
        let started = asking(&node, start(&id)).await?;
        node.daemon().wait_passed("start.executed", 1).await?;
        let mut ends = Vec::new();
        for _ in 0..2 {
            let id = id.clone();
            let end = asking(&node, move |mut cri| async move {
                match remove {
                    true => cri.remove_container(&id).await,
                    false => cri.stop_container(&id, 0).await,
                }
            });
            ends.push(end.await?);
        }
        settle(&node).await?;
        assert!(ends.iter().all(|end| !end.is_finished()), "the start is not over");
        node.daemon().release()?;
        started.await??;
        for end in ends {
            end.await?.context("the second of two is success as well")?;
        }
        let status = node.cri.container_status(&id).await;
        match remove {
            false => assert_eq!(status?.exit_code, 137),
            true => assert_eq!(status.err().context("it is there")?.code(), Code::NotFound),
        }
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_sandbox_takes_what_is_being_created_in_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    node.daemon().hold(&["create.snapshot"])?;
    let created = asking(&node, create(&pod, &script(&image, "true"))).await?;
    node.daemon().wait_passed("create.snapshot", 1).await?;
    let id = pod.id.clone();
    let removed = asking(&node, |mut cri| async move { cri.remove_sandbox(&id).await }).await?;
    settle(&node).await?;
    assert!(!removed.is_finished(), "a container is in the making");
    let late = create(&pod, &container_config("late", &image, &["true"]))(client(&node).await?);
    let refused = late.await.err().context("a sandbox that is stopped took a container")?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    node.daemon().release()?;
    created.await?.context("it was asked for before the removal")?;
    removed.await??;
    assert!(node.cri.containers().await?.is_empty() && node.cri.sandboxes().await?.is_empty());
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_what_is_in_the_making_is_success_and_stops_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = node.sandbox_config("second");
    node.daemon().hold(&["run.stored"])?;
    let made = asking(&node, run(&config)).await?;
    node.daemon().wait_passed("run.stored", 1).await?;
    // No client can know this id yet; the store does.
    let pods = node.stored_sandboxes()?;
    let hidden = pods.into_iter().find(|id| *id != pod.id).context("it is not stored")?;
    node.cri.remove_sandbox(&hidden).await?;
    node.daemon().release()?;
    assert_eq!(made.await??, hidden);
    assert_eq!(node.cri.sandbox_status(&hidden).await?.state(), v1::PodSandboxState::SandboxReady);

    // An image: forgotten by name when it is not there yet, and whole once it is.
    let reference = node.push("other", "latest", &berth_testkit::image::busybox()?)?;
    let remove = |name: &str| v1::RemoveImageRequest {
        image: Some(v1::ImageSpec { image: name.into(), ..<_>::default() }),
    };
    node.cri.image.remove_image(remove(&image)).await?;
    node.daemon().hold(&["pull.synced"])?;
    let asked = reference.clone();
    let pulled = asking(&node, |mut cri| async move { cri.pull(&asked).await }).await?;
    node.daemon().wait_passed("pull.synced", 1).await?;
    node.cri.image.remove_image(remove(&reference)).await?;
    node.daemon().release()?;
    pulled.await??;
    let finished = node.finish(&pod, &script(&reference, "echo whole")).await?;
    assert_eq!(finished.stdout, "whole\n");

    // An image of a container in the making.
    node.daemon().hold(&["create.image_held"])?;
    let created = asking(&node, create(&pod, &script(&reference, "echo kept"))).await?;
    node.daemon().wait_passed("create.image_held", 1).await?;
    node.cri.image.remove_image(remove(&reference)).await?;
    node.daemon().release()?;
    let id = created.await??;
    let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?.into_inner();
    assert!(images.images.is_empty(), "{images:?}");
    node.cri.start_container(&id).await?;
    assert_eq!(node.wait_exit(&id).await?.exit_code, 0);
    node.assert_clean().await
}
