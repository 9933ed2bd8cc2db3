//! What the daemon says of its work: spans with ids and durations, JSON off a terminal.

use std::fs;

use anyhow::{Context as _, Result};
use berth_testkit::{Node, NodeOptions, script};
use serde_json::Value;

/// Every line of the daemon's log.
fn lines(node: &Node) -> Result<Vec<Value>> {
    let log = fs::read_to_string(node.daemon().log())?;
    let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("{line:?}"));
    log.lines().map(parse).collect()
}

/// The end of the first span called `name` that has every one of `fields`.
fn span<'a>(lines: &'a [Value], name: &str, fields: &[(&str, &str)]) -> Result<&'a Value> {
    let matches = |line: &&Value| {
        line["message"] == "close"
            && line["span"]["name"] == name
            && line["time.busy"].is_string()
            && fields.iter().all(|(field, value)| line["span"][*field] == *value)
    };
    lines.iter().find(matches).with_context(|| format!("no span {name} with {fields:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_span_with_its_ids_and_its_phases_within() -> Result<()> {
    let options = NodeOptions { log_format: "auto".into(), ..Default::default() };
    let mut node = Node::start_with(options).await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let id = node.run(&pod, &script(&image, "sleep 1000")).await?;
    node.cri.exec(&id, &["true"], 10).await?;
    node.cri.stop_container(&id, 0).await?;
    node.cri.remove_container(&id).await?;
    node.cri.remove_sandbox(&pod.id).await?;

    let lines = lines(&node)?;
    let sandbox = ("sandbox.id", pod.id.as_str());
    let container = ("container.id", id.as_str());
    let reference = ("image.ref", image.as_str());
    for (name, fields) in [
        ("cri.pull_image", vec![reference]),
        ("cri.run_pod_sandbox", vec![sandbox]),
        ("cri.create_container", vec![sandbox, container, reference]),
        ("cri.start_container", vec![container]),
        ("cri.exec_sync", vec![container]),
        ("cri.stop_container", vec![container]),
        ("cri.remove_container", vec![container]),
        ("cri.stop_pod_sandbox", vec![sandbox]),
        ("cri.remove_pod_sandbox", vec![sandbox]),
    ] {
        let closed = span(&lines, name, &fields)?;
        assert!(closed["timestamp"].is_string(), "{closed}");
    }
    // The outermost span around each phase is the request's.
    for (phase, around, (field, value)) in [
        ("image.pull", "cri.pull_image", reference),
        ("network", "cri.run_pod_sandbox", sandbox),
        ("shim_start", "cri.run_pod_sandbox", sandbox),
        ("image", "cri.create_container", sandbox),
        ("start_container", "cri.start_container", container),
        ("exec_start", "cri.exec_sync", container),
        ("remove_container", "cri.remove_container", container),
        ("stop_sandbox", "cri.stop_pod_sandbox", sandbox),
        ("remove_sandbox", "cri.remove_pod_sandbox", sandbox),
    ] {
        let found = lines.iter().any(|line| {
            let spans = || line["spans"].as_array().into_iter().flatten();
            line["span"]["name"] == phase
                && spans().next().is_some_and(|first| first["name"] == around)
                && spans().any(|span| span[field] == value)
        });
        assert!(found, "no {phase} of {value} in {around}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_logged_with_its_reason_once() -> Result<()> {
    let options = NodeOptions { log_format: "json".into(), quiet: true, ..Default::default() };
    let mut node = Node::start_with(options).await?;
    let reference = node.registry.reference("nothing", "here");
    node.cri.pull(&reference).await.err().context("it was pulled")?;
    let told = lines(&node)?;
    let told: Vec<_> = told
        .iter()
        .filter(|line| line["span"]["image.ref"] == reference.as_str() && line["error"].is_string())
        .collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    node.assert_clean().await
}
