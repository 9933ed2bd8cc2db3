//! What must be there after a daemon died amid a verb, and what may.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use berth_api::v1;
use berth_testkit::Known;

use crate::scene::{Props, Scene};
use crate::stage::Stage;

/// The rules that hold after each round; they are told with the results.
pub(crate) const RULES: &[&str] = &[
    "what a client was told exists is listed, once, under its name; what it was told is gone is not; a verb that was cut off is done or undone, and succeeds when it is tried again",
    "every workload ended with the code, or by the signal, that the harness chose; 255 if its shim was killed; its end is not before its start, nor after the moment at which it was seen gone",
    "every log of a shim that lived is numbered lines in CRI format without gap, repetition or tear, also of what was written while no daemon ran",
    "pods that no verb concerns have the same first process, with the same start time, and answer the same status as before",
    "nothing is on the node beside what is known to exist: mounts, network links, addresses, cgroups, snapshots, records, bundles, sockets, FIFOs, ingests, descriptors of namespaces and processes, processes; no zombie but below a shim that the harness has stopped",
    "at the end nothing at all is left, and berthd is as large as it was",
];

/// What exists after the daemon died amid a verb: all that is certain, and of what the verb
/// makes or removes, what is listed.
pub(crate) async fn known_after(stage: &mut Stage, scene: Scene, props: &Props) -> Result<Known> {
    let (mut known, unsure) = (stage.known(), scene.unsure());
    let request = v1::ListPodSandboxRequest::default();
    let sandboxes = stage.node.cri.runtime.list_pod_sandbox(request).await?.into_inner().items;
    let request = v1::ListContainersRequest::default();
    let containers = stage.node.cri.runtime.list_containers(request).await?.into_inner().containers;

    let mut names = BTreeSet::new();
    for sandbox in &sandboxes {
        let name = sandbox.metadata.clone().unwrap_or_default();
        ensure!(
            names.insert((name.namespace, name.name, name.uid, name.attempt)),
            "two sandboxes have one name: {sandbox:?}"
        );
        if unsure.sandbox && sandbox.metadata == props.sandbox.metadata {
            known.sandboxes.insert(sandbox.id.clone());
        }
    }
    if !unsure.sandbox && !props.sandbox_id.is_empty() {
        known.sandboxes.insert(props.sandbox_id.clone());
    }
    let mut names = BTreeSet::new();
    for container in &containers {
        let name = container.metadata.clone().unwrap_or_default();
        ensure!(
            names.insert((container.pod_sandbox_id.clone(), name.name, name.attempt)),
            "two containers of a sandbox have one name: {container:?}"
        );
        let member = props.is_member(container);
        ensure!(
            !member || known.sandboxes.contains(&container.pod_sandbox_id),
            "a container without its sandbox: {container:?}"
        );
        if unsure.container && member {
            known.containers.insert(container.id.clone());
        }
    }
    if !unsure.container {
        let ids = [&props.container_id, &props.other_id].into_iter();
        known.containers.extend(ids.filter(|id| !id.is_empty()).cloned());
    }
    stage.check_lists(&known).await?;
    Ok(known)
}

/// What a cut-off verb had made before it was asked for again.
pub(crate) fn made(known: &Known, stage: &Stage, props: &Props) -> Option<String> {
    let before = stage.known();
    let sandbox =
        known.sandboxes.difference(&before.sandboxes).find(|_| props.sandbox_id.is_empty());
    let container =
        known.containers.difference(&before.containers).find(|_| props.container_id.is_empty());
    sandbox.or(container).cloned()
}
