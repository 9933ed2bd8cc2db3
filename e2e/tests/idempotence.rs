//! Every verb, asked again, of what is gone, of what was never there, in the wrong state or
//! with half a request: success where the client has what it wants, otherwise a code that
//! says what is wrong and a message that names it.

use std::collections::HashMap;
use std::pin::Pin;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Cri, Node, Pod, container_config, image, script};
use tonic::{Code, Status};

type Answer = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// A verb on one object, by its id.
struct Verb {
    name: &'static str,
    field: &'static str,
    ask: fn(Cri, String) -> Answer,
    /// What is gone is what its client wants.
    ends: bool,
}

macro_rules! verb {
    ($name:literal, $field:ident, $ends:literal, $method:ident, $request:expr) => {
        Verb {
            name: $name,
            field: stringify!($field),
            ends: $ends,
            ask: |mut cri, $field| {
                let request = $request;
                Box::pin(async move { cri.runtime.$method(request).await.map(drop) })
            },
        }
    };
}

fn container_verbs() -> Vec<Verb> {
    vec![
        verb!("StartContainer", container_id, false, start_container, {
            v1::StartContainerRequest { container_id }
        }),
        verb!("StopContainer", container_id, true, stop_container, {
            v1::StopContainerRequest { container_id, timeout: 0 }
        }),
        verb!("RemoveContainer", container_id, true, remove_container, {
            v1::RemoveContainerRequest { container_id }
        }),
        verb!("ContainerStatus", container_id, false, container_status, {
            v1::ContainerStatusRequest { container_id, verbose: true }
        }),
        verb!("ContainerStats", container_id, false, container_stats, {
            v1::ContainerStatsRequest { container_id }
        }),
        verb!("ReopenContainerLog", container_id, false, reopen_container_log, {
            v1::ReopenContainerLogRequest { container_id }
        }),
        verb!("ExecSync", container_id, false, exec_sync, {
            v1::ExecSyncRequest { container_id, cmd: vec!["true".into()], timeout: 5 }
        }),
    ]
}

fn sandbox_verbs() -> Vec<Verb> {
    vec![
        verb!("StopPodSandbox", pod_sandbox_id, true, stop_pod_sandbox, {
            v1::StopPodSandboxRequest { pod_sandbox_id }
        }),
        verb!("RemovePodSandbox", pod_sandbox_id, true, remove_pod_sandbox, {
            v1::RemovePodSandboxRequest { pod_sandbox_id }
        }),
        verb!("PodSandboxStatus", pod_sandbox_id, false, pod_sandbox_status, {
            v1::PodSandboxStatusRequest { pod_sandbox_id, verbose: true }
        }),
        verb!("PodSandboxStats", pod_sandbox_id, false, pod_sandbox_stats, {
            v1::PodSandboxStatsRequest { pod_sandbox_id }
        }),
        verb!("CreateContainer", pod_sandbox_id, false, create_container, {
            v1::CreateContainerRequest {
                pod_sandbox_id,
                config: Some(container_config("new", "x", &["true"])),
                sandbox_config: None,
            }
        }),
    ]
}

fn all_verbs() -> impl Iterator<Item = Verb> {
    container_verbs().into_iter().chain(sandbox_verbs())
}

fn named(name: &str) -> Result<Verb> {
    all_verbs().find(|verb| verb.name == name).with_context(|| format!("no verb {name}"))
}

#[track_caller]
fn refused(what: &str, answer: Result<(), Status>, code: Code, words: &[&str]) {
    let status = match answer {
        Ok(()) => panic!("{what}: answered"),
        Err(status) => status,
    };
    assert_eq!(status.code(), code, "{what}: {status:?}");
    for word in words {
        assert!(status.message().contains(word), "{what}: {word:?} is not in {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_none_is_refused_by_its_field() -> Result<()> {
    let node = Node::start().await?;
    let long = "a".repeat(77);
    for id in ["", &long, "../x", "a/b", "a\0b", "-a", ".", "..", "a b", "ä", "a\n"] {
        for verb in all_verbs() {
            let answer = (verb.ask)(node.cri.clone(), id.to_owned()).await;
            refused(&format!("{} {id:?}", verb.name), answer, Code::InvalidArgument, &[verb.field]);
        }
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_its_end_is_success() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let container = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    node.cri.remove_container(&container).await?;
    node.cri.remove_sandbox(&pod.id).await?;
    // Never there, not of our form, removed, and too long for the one that is.
    let unknown = ["f".repeat(64), "zzz.-_".to_owned(), container, pod.id.clone()];
    for id in unknown {
        for verb in all_verbs() {
            for _ in 0..2 {
                let answer = (verb.ask)(node.cri.clone(), id.clone()).await;
                match verb.ends {
                    true => answer.with_context(|| format!("{} {id}", verb.name))?,
                    false => refused(verb.name, answer, Code::NotFound, &[&id]),
                }
            }
        }
    }
    node.assert_clean().await
}

/// containerd takes the unique start of an id too (its index of truncated ids), and crictl
/// shows starts.
#[tokio::test(flavor = "multi_thread")]
async fn the_start_of_an_id_means_it_when_it_is_the_only_one() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut by_digit: HashMap<String, Vec<String>> = HashMap::new();
    // More than there are hexadecimal digits.
    for number in 0..17 {
        let config = container_config(&format!("c{number}"), &image, &["true"]);
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        by_digit.entry(id[..1].to_owned()).or_default().push(id);
    }
    let (digit, ids) = by_digit.iter().find(|(_, ids)| ids.len() > 1).context("17 digits?")?;
    for verb in container_verbs() {
        let answer = (verb.ask)(node.cri.clone(), digit.clone()).await;
        let what = format!("{} {digit}", verb.name);
        refused(&what, answer, Code::InvalidArgument, &[&format!("{digit:?}"), "several"]);
    }
    assert_eq!(node.cri.containers().await?.len(), 17, "nothing was done");
    let status = node.cri.container_status(&ids[0][..13]).await?;
    assert_eq!(status.id, ids[0]);
    assert_eq!(node.cri.sandbox_status(&pod.id[..13]).await?.id, pod.id);
    let longer = format!("{}0", pod.id);
    let answer = node.cri.sandbox_status(&longer).await.map(drop);
    refused("an id with more to it", answer, Code::NotFound, &[&longer]);
    node.cri.remove_container(&ids[0][..13]).await?;
    assert_eq!(node.cri.containers().await?.len(), 16);
    node.assert_clean().await
}

/// Asks each verb of a container and compares: `None` is success.
async fn expect(node: &Node, id: &str, expected: &[(&str, Option<&str>)]) -> Result<()> {
    for (name, wrong) in expected {
        for _ in 0..2 {
            let answer = (named(name)?.ask)(node.cri.clone(), id.to_owned()).await;
            match wrong {
                None => answer.with_context(|| (*name).to_owned())?,
                Some(state) => refused(name, answer, Code::FailedPrecondition, &[id, state]),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_a_container_takes_what_it_can() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = container_config("main", &image, &["sleep", "1000"]);
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    let created = Some("created");
    expect(
        &node,
        &id,
        &[
            ("ContainerStatus", None),
            ("ContainerStats", None),
            ("ExecSync", created),
            ("ReopenContainerLog", created),
            // As containerd has it: what never ran is not stopped, and may still be started.
            ("StopContainer", None),
            ("StartContainer", None),
            ("ContainerStatus", None),
            ("ContainerStats", None),
            ("ExecSync", None),
            ("ReopenContainerLog", None),
        ],
    )
    .await?;
    assert_eq!(node.cri.container_status(&id).await?.state(), v1::ContainerState::ContainerRunning);
    let again = node.cri.create_container(&pod.id, &pod.config, &config).await.map(drop);
    refused("create what runs", again, Code::AlreadyExists, &["main (attempt 0)", &id]);

    node.cri.stop_container(&id, 0).await?;
    let exited = Some("exited");
    expect(
        &node,
        &id,
        &[
            ("StopContainer", None),
            ("ContainerStatus", None),
            ("ContainerStats", None),
            ("StartContainer", exited),
            ("ExecSync", exited),
            ("ReopenContainerLog", exited),
        ],
    )
    .await?;
    let again = node.cri.create_container(&pod.id, &pod.config, &config).await.map(drop);
    refused("create what has ended", again, Code::AlreadyExists, &[&id]);
    expect(&node, &id, &[("RemoveContainer", None)]).await?;
    let new = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    assert_ne!(new, id);
    // Removed while it runs.
    expect(&node, &new, &[("StartContainer", None), ("RemoveContainer", None)]).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_sandbox_takes_nothing_new_and_ends_as_often_as_asked() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = container_config("main", &image, &["true"]);
    let created = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    for _ in 0..3 {
        node.cri.stop_sandbox(&pod.id).await?;
    }
    assert_eq!(
        node.cri.sandbox_status(&pod.id).await?.state(),
        v1::PodSandboxState::SandboxNotready
    );
    expect(&node, &pod.id, &[("PodSandboxStatus", None), ("PodSandboxStats", None)]).await?;
    let late = container_config("late", &image, &["true"]);
    for what in [&config, &late] {
        let answer = node.cri.create_container(&pod.id, &pod.config, what).await.map(drop);
        refused("create", answer, Code::FailedPrecondition, &[&pod.id, "not ready"]);
    }
    let answer = node.cri.start_container(&created).await;
    refused("start", answer, Code::FailedPrecondition, &[&pod.id, "not ready"]);
    expect(&node, &created, &[("StopContainer", None), ("RemoveContainer", None)]).await?;

    let again = node.cri.run_sandbox(&pod.config).await.map(drop);
    refused("run what is stopped", again, Code::AlreadyExists, &[&pod.id, "tests/pod"]);
    expect(&node, &pod.id, &[("RemovePodSandbox", None), ("StopPodSandbox", None)]).await?;
    let new = node.cri.run_sandbox(&pod.config).await?;
    assert_ne!(new, pod.id);
    assert_eq!(node.cri.run_sandbox(&pod.config).await?, new, "asked again");
    node.assert_clean().await
}

fn of(name: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: name.into(), ..<_>::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_found_and_removed_as_often_as_asked() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let other = image::busybox_builder()?.config("User", serde_json::json!("1000")).build()?;
    let other = node.push("other", "latest", &other)?;
    let first = node.cri.pull(&image).await?;
    assert_eq!(node.cri.pull(&image).await?, first);
    let second = node.cri.pull(&other).await?;
    let absent = node.registry.reference("no/such", "image");
    let malformed = ["a/UPPER", "a b", "a\0b", "x:y:z", "r.example/a@sha256:zz", "/", ":", "../x"];
    for name in ["no-such-image", &"f".repeat(64), &absent].into_iter().chain(malformed) {
        let status = v1::ImageStatusRequest { image: of(name), verbose: true };
        let found = node.cri.image.image_status(status).await?.into_inner().image;
        assert!(found.is_none(), "{name:?}: {found:?}");
        node.cri.image.remove_image(v1::RemoveImageRequest { image: of(name) }).await?;
        let filter = Some(v1::ImageFilter { image: of(name) });
        let listed = node.cri.image.list_images(v1::ListImagesRequest { filter }).await?;
        assert!(listed.into_inner().images.is_empty(), "{name:?}");
    }
    for name in malformed {
        let answer = node.cri.pull(name).await.map(drop);
        refused(&format!("pull {name:?}"), answer, Code::InvalidArgument, &["image.image"]);
    }
    for none in [None, of("")] {
        let cri = &mut node.cri.image;
        let pulled = cri.pull_image(v1::PullImageRequest { image: none.clone(), ..<_>::default() });
        refused("pull nothing", pulled.await.map(drop), Code::InvalidArgument, &["image.image"]);
        let request = v1::ImageStatusRequest { image: none.clone(), verbose: false };
        let status = cri.image_status(request).await.map(drop);
        refused("status of nothing", status, Code::InvalidArgument, &["image.image"]);
        let removed = cri.remove_image(v1::RemoveImageRequest { image: none }).await.map(drop);
        refused("remove nothing", removed, Code::InvalidArgument, &["image.image"]);
    }
    for _ in 0..2 {
        node.cri.image.remove_image(v1::RemoveImageRequest { image: of(&first) }).await?;
    }
    let listed = node.cri.image.list_images(v1::ListImagesRequest::default()).await?.into_inner();
    assert_eq!(listed.images.iter().map(|image| &image.id).collect::<Vec<_>>(), [&second]);
    node.assert_clean().await
}

/// kubelet looks for its words at the start of the message, in errors without a code.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pull_says_what_kubelet_understands() -> Result<()> {
    let mut node = Node::start().await?;
    let absent = node.registry.reference("no/such", "image");
    let answer = node.cri.pull(&absent).await.map(drop);
    refused("an image that is not there", answer, Code::NotFound, &[&absent]);
    let nobody = "127.0.0.1:9/no/body:1";
    let status = node.cri.pull(nobody).await.err().context("nobody answered")?;
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    assert!(status.message().starts_with("RegistryUnavailable: "), "{status:?}");
    assert!(status.message().contains(nobody), "{status:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_no_object_answers_as_often_as_asked() -> Result<()> {
    let mut node = Node::start().await?;
    for _ in 0..2 {
        let runtime = &mut node.cri.runtime;
        let version = runtime.version(v1::VersionRequest { version: "9".into() }).await?;
        ensure!(!version.into_inner().runtime_version.is_empty());
        runtime.status(v1::StatusRequest { verbose: true }).await?;
        runtime.runtime_config(v1::RuntimeConfigRequest {}).await?;
        runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest::default()).await?;
        let filter = Some(v1::ContainerFilter { id: "../x\0".into(), ..<_>::default() });
        let none = runtime.list_containers(v1::ListContainersRequest { filter }).await?;
        assert!(none.into_inner().containers.is_empty());
        let filter = Some(v1::PodSandboxFilter { id: "../x\0".into(), ..<_>::default() });
        let none = runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter }).await?;
        assert!(none.into_inner().items.is_empty());
        runtime.list_container_stats(v1::ListContainerStatsRequest::default()).await?;
        runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?;
        node.cri.image.image_fs_info(v1::ImageFsInfoRequest {}).await?;
    }
    let runtime = &mut node.cri.runtime;
    let (id, cmd, stdout) = ("f".repeat(64), vec!["true".to_owned()], true);
    let request = v1::ExecRequest { container_id: id.clone(), cmd, stdout, ..<_>::default() };
    refused("Exec", runtime.exec(request).await.map(drop), Code::NotFound, &["container"]);
    let request = v1::AttachRequest { container_id: id.clone(), stdout, ..<_>::default() };
    refused("Attach", runtime.attach(request).await.map(drop), Code::NotFound, &["container"]);
    let request = v1::PortForwardRequest { pod_sandbox_id: id, ..<_>::default() };
    let answer = runtime.port_forward(request).await.map(drop);
    refused("PortForward", answer, Code::NotFound, &["sandbox"]);
    let request = v1::CheckpointContainerRequest::default();
    let answer = runtime.checkpoint_container(request).await.map(drop);
    refused("CheckpointContainer", answer, Code::Unimplemented, &["checkpoints"]);
    node.assert_clean().await
}

/// A pod whose containers and sandbox are ended by several clients at once, and again.
#[tokio::test(flavor = "multi_thread")]
async fn ends_asked_for_at_once_are_all_success() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let deaf = script(&image, "trap '' TERM; while true; do sleep 0.1; done");
    let id = node.run(&pod, &deaf).await?;
    let Pod { id: sandbox, .. } = pod;
    let mut asked = Vec::new();
    for name in ["StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"] {
        let verb = named(name)?;
        let object = if verb.field == "container_id" { &id } else { &sandbox };
        for _ in 0..3 {
            let cri = Cri::connect(node.daemon().socket()).await?;
            asked.push((name, tokio::spawn((verb.ask)(cri, object.clone()))));
        }
    }
    for (name, answer) in asked {
        answer.await?.context(name)?;
    }
    assert!(node.cri.containers().await?.is_empty() && node.cri.sandboxes().await?.is_empty());
    node.assert_clean().await
}
