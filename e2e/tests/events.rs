//! What a client hears of sandboxes and containers, as kubelet's evented PLEG needs it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, Pod, container_config, script};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use v1::ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

type Events = Streaming<v1::ContainerEventResponse>;

/// Longer than any event may take.
const SOON: Duration = Duration::from_secs(20);

async fn listen(node: &mut Node) -> Result<Events> {
    Ok(node.cri.runtime.get_container_events(v1::GetEventsRequest {}).await?.into_inner())
}

async fn listen_after(node: &mut Node, after: i64) -> Result<Events, Status> {
    let mut request = tonic::Request::new(v1::GetEventsRequest {});
    let after = MetadataValue::try_from(after.to_string()).expect("a number");
    request.metadata_mut().insert("berth-events-after", after);
    Ok(node.cri.runtime.get_container_events(request).await?.into_inner())
}

/// The next event, which is whole and later than `last`.
async fn next(events: &mut Events, last: &mut i64) -> Result<v1::ContainerEventResponse> {
    let event = tokio::time::timeout(SOON, events.message()).await.context("no event")??;
    let event = event.context("the stream ended")?;
    anyhow::ensure!(event.created_at > *last, "not later than {last}: {event:?}");
    *last = event.created_at;
    let sandbox = event.pod_sandbox_status.as_ref().context("no sandbox status")?;
    anyhow::ensure!(sandbox.metadata.as_ref().is_some_and(|m| !m.uid.is_empty()), "{event:?}");
    Ok(event)
}

/// Kinds and ids of the next events, in order.
async fn kinds(
    events: &mut Events,
    last: &mut i64,
    count: usize,
) -> Result<Vec<(v1::ContainerEventType, String)>> {
    let mut heard = Vec::new();
    for _ in 0..count {
        let event = next(events, last).await?;
        heard.push((event.container_event_type(), event.container_id));
    }
    Ok(heard)
}

async fn remove(node: &mut Node, pod: &Pod) -> Result<()> {
    Ok(node.cri.remove_sandbox(&pod.id).await?)
}

/// teeth: crates/engine/src/sandbox/remove.rs: `self.core.tell(EventKind::Deleted,` → `self.core.tell(EventKind::Stopped,`
#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_told_in_order_with_the_statuses_of_its_pod() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (mut events, mut last) = (listen(&mut node).await?, 0);
    let pod = node.pod("pod").await?;
    let main = node.run(&pod, &script(&image, "sleep 1000")).await?;
    let sandbox = || pod.id.clone();
    assert_eq!(
        kinds(&mut events, &mut last, 3).await?,
        [(Created, sandbox()), (Started, sandbox()), (Created, main.clone())]
    );
    let started = next(&mut events, &mut last).await?;
    assert_eq!((started.container_event_type(), &started.container_id), (Started, &main));
    let status = started.pod_sandbox_status.context("no sandbox")?;
    assert_eq!((&status.id, status.state()), (&pod.id, v1::PodSandboxState::SandboxReady));
    assert_eq!(status.network.context("no network")?.ip, node.address(&pod).await?);
    let [container] = started.containers_statuses.as_slice() else { panic!("not one container") };
    assert_eq!((&container.id, container.state()), (&main, v1::ContainerState::ContainerRunning));

    node.cri.stop_container(&main, 0).await?;
    let stopped = next(&mut events, &mut last).await?;
    assert_eq!((stopped.container_event_type(), &stopped.container_id), (Stopped, &main));
    assert_eq!(stopped.containers_statuses[0].exit_code, 137);

    // A status that is read after an event is later than it: kubelet keeps the later one.
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox(), verbose: false };
    let read = node.cri.runtime.pod_sandbox_status(request).await?.into_inner();
    assert!(read.timestamp >= last, "{read:?}");
    last = read.timestamp;

    node.cri.remove_container(&main).await?;
    let deleted = next(&mut events, &mut last).await?;
    assert_eq!((deleted.container_event_type(), &deleted.container_id), (Deleted, &main));
    assert!(deleted.containers_statuses.is_empty(), "{deleted:?}");

    remove(&mut node, &pod).await?;
    assert_eq!(next(&mut events, &mut last).await?.container_event_type(), Stopped);
    let deleted = next(&mut events, &mut last).await?;
    assert_eq!((deleted.container_event_type(), &deleted.container_id), (Deleted, &pod.id));
    // Only when it is the sandbox of the status does kubelet forget the pod.
    let status = deleted.pod_sandbox_status.context("no sandbox")?;
    assert_eq!((&status.id, status.state()), (&pod.id, v1::PodSandboxState::SandboxNotready));
    drop(events);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stopped_with_its_sandbox_or_never_starts_is_told_too() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (mut events, mut last) = (listen(&mut node).await?, 0);
    let bad = container_config("bad", &image, &["/no/such/program"]);
    let bad = node.cri.create_container(&pod.id, &pod.config, &bad).await?;
    node.cri.start_container(&bad).await.err().context("it was started")?;
    let heard = kinds(&mut events, &mut last, 2).await?;
    assert_eq!(heard, [(Created, bad.clone()), (Stopped, bad.clone())]);

    let short = node.run(&pod, &container_config("short", &image, &["true"])).await?;
    let heard = kinds(&mut events, &mut last, 3).await?;
    let short = || short.clone();
    assert_eq!(heard, [(Created, short()), (Started, short()), (Stopped, short())]);

    let left = node.run(&pod, &container_config("left", &image, &["sleep", "1000"])).await?;
    kinds(&mut events, &mut last, 2).await?;
    remove(&mut node, &pod).await?;
    let heard = kinds(&mut events, &mut last, 6).await?;
    let of = |kind| heard.iter().filter(move |heard| heard.0 == kind).map(|heard| heard.1.clone());
    assert_eq!(of(Stopped).collect::<BTreeSet<_>>(), [pod.id.clone(), left.clone()].into());
    assert_eq!(of(Deleted).collect::<BTreeSet<_>>(), [pod.id.clone(), bad, short(), left].into());
    assert_eq!(heard[5], (Deleted, pod.id));
    drop(events);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_goes_on_where_it_left_off() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let (mut events, mut last) = (listen(&mut node).await?, 0);
    let id = node.run(&pod, &container_config("one", &image, &["sleep", "1000"])).await?;
    kinds(&mut events, &mut last, 1).await?;
    drop(events);
    node.cri.stop_container(&id, 0).await?;
    let mut events = listen_after(&mut node, last).await?;
    let heard = kinds(&mut events, &mut last, 2).await?;
    assert_eq!(heard, [(Started, id.clone()), (Stopped, id.clone())]);
    let missed = listen_after(&mut node, 1).await.err().context("events of long ago")?;
    assert_eq!(missed.code(), Code::ResourceExhausted, "{missed:?}");

    // A daemon that ends says so, at once; the next one's events are later.
    let (before, begun) = (last, std::time::Instant::now());
    node.terminate_daemon()?;
    let end = events.message().await.err().context("the stream did not fail")?;
    assert!(matches!(end.code(), Code::Unavailable | Code::Unknown), "{end:?}");
    assert!(begun.elapsed() < SOON, "a listener held the daemon up");
    node.start_daemon().await?;
    let missed = listen_after(&mut node, before).await.err().context("events of another daemon")?;
    assert_eq!(missed.code(), Code::ResourceExhausted, "{missed:?}");
    let mut events = listen(&mut node).await?;
    node.cri.remove_container(&id).await?;
    assert_eq!(kinds(&mut events, &mut last, 1).await?, [(Deleted, id)]);
    assert!(last > before);
    remove(&mut node, &pod).await?;
    assert_eq!(
        kinds(&mut events, &mut last, 2).await?,
        [(Stopped, pod.id.clone()), (Deleted, pod.id)]
    );
    drop(events);
    node.assert_clean().await
}

/// A listener that does not read takes room for its window of HTTP/2, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_does_not_read_holds_nobody_up_and_is_ended() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut deaf = listen(&mut node).await?;
    let mut config = container_config("one", &image, &["true"]);
    // The more each event says, the fewer fill the windows of the connection.
    config.annotations.insert("large".into(), "x".repeat(64 << 10));
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    let mut other = listen(&mut node).await?;
    // Events without end: each says all of the pod.
    let mut last = 0;
    for attempt in 0..560 {
        let mut config = container_config("two", &image, &["true"]);
        config.metadata = Some(v1::ContainerMetadata { name: "two".into(), attempt });
        config.log_path.clear();
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        node.cri.remove_container(&id).await?;
        for kind in [Created, Deleted] {
            assert_eq!(kinds(&mut other, &mut last, 1).await?, [(kind, id.clone())]);
        }
    }
    let mut heard = 0;
    let end = loop {
        match tokio::time::timeout(SOON, deaf.message()).await.context("no end")? {
            Ok(Some(_)) => heard += 1,
            Ok(None) => anyhow::bail!("it ended without a word"),
            Err(end) => break end,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{heard}: {end:?}");
    assert!(end.message().contains("list, and listen again"), "{end:?}");
    assert!(heard < 500, "{heard} events were kept for it");
    node.cri.remove_container(&id).await?;
    drop((deaf, other));
    node.assert_clean().await
}
