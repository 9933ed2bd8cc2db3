//! Where plugins of the Node Resource Interface are told and asked (crate `nri`).
//!
//! ```text
//! run      made ─ RunPodSandbox ─ stored, published
//! create   planned ─ CreateContainer ─ adjusted ─ made, published ─ PostCreateContainer
//! start    StartContainer ─ executed, published ─ PostStartContainer
//! update   UpdateContainer ─ adjusted ─ applied ─ PostUpdateContainer
//! end      stored, published ─ StopContainer
//! stop     containers ended ─ StopPodSandbox ─ let go
//! remove   RemoveContainer, RemovePodSandbox ─ forgotten
//! ```
//!
//! What a plugin refuses before the fact fails the request; afterwards it is logged only.
//! Without a plugin that wants to hear of it, a hook builds no message and waits for
//! nothing.

mod adjust;
mod container;
mod limits;
mod runtime;
mod told;

use std::sync::Arc;

use berth_metadata::{ContainerRecord, SandboxRecord};
use berth_model::ContainerState;
use berth_model::container::Resources;
use berth_model::sandbox::PodLimits;
use berth_nri::api::{ContainerAdjustment, Event};
use berth_nri::{Nri, Passage, Wanted};
use oci_spec::runtime::Spec;
use tracing::{Instrument as _, debug_span};

pub(crate) use self::runtime::Host;
use crate::container::Container;
use crate::core::{Core, warn_failure};
use crate::sandbox::Sandbox;
use crate::undo::Undo;
use crate::{ContainerStatus, Error};

/// Why plugins kept a request from what it wants.
fn refused(id: &impl ToString) -> impl FnOnce(berth_nri::Error) -> Error {
    let id = id.to_string();
    move |source| Error::Plugins { id, source: Box::new(source) }
}

/// Nobody but the log hears that a plugin did not like what has happened.
fn noted(id: &impl ToString, outcome: Result<(), berth_nri::Error>) {
    if let Err(source) = outcome {
        warn_failure("tell plugins", &refused(id)(source));
    }
}

fn listening(core: &Core, event: Event) -> Option<&Nri> {
    core.nri.as_ref().filter(|nri| nri.wants(event))
}

/// Held while something comes to be or ceases to be.
pub(crate) async fn pass(core: &Core, id: &impl ToString) -> Result<Option<Passage>, Error> {
    match &core.nri {
        Some(nri) => nri.pass().await.map(Some).map_err(refused(id)),
        None => Ok(None),
    }
}

/// The sandbox was made, and nobody sees it yet.
pub(crate) async fn run_sandbox(
    core: &Arc<Core>,
    record: &SandboxRecord,
    undo: &Undo,
) -> Result<(), Error> {
    let Some(nri) = listening(core, Event::RunPodSandbox) else { return Ok(()) };
    let pod = told::made(record);
    undo.push("tell plugins that the sandbox is gone", {
        let (nri, pod) = (nri.clone(), pod.clone());
        move || {
            let (nri, pod) = (nri.clone(), pod.clone());
            async move {
                noted(&pod.id, nri.stop_pod_sandbox(&pod).await);
                noted(&pod.id, nri.remove_pod_sandbox(&pod).await);
                Ok(())
            }
        }
    });
    let run = nri.run_pod_sandbox(&pod).instrument(debug_span!("plugins"));
    run.await.map_err(refused(&record.id))
}

/// Its containers have ended, and its network and namespaces are there still.
pub(crate) async fn stop_sandbox(core: &Core, sandbox: &Sandbox) {
    let Some(nri) = listening(core, Event::StopPodSandbox) else { return };
    noted(&sandbox.id, nri.stop_pod_sandbox(&told::pod(sandbox)).await);
}

/// It is about to be forgotten.
pub(crate) async fn remove_sandbox(core: &Core, sandbox: &Sandbox) {
    let Some(nri) = listening(core, Event::RemovePodSandbox) else { return };
    noted(&sandbox.id, nri.remove_pod_sandbox(&told::pod(sandbox)).await);
}

/// A container is about to be made as `oci` says: what plugins want of it, which is for
/// [`adjust`] but for the devices that they name, `None` if there is nobody to ask.
pub(crate) async fn create_container(
    core: &Arc<Core>,
    sandbox: &Sandbox,
    record: &ContainerRecord,
    oci: &Spec,
    undo: &Undo,
) -> Result<Option<Wanted>, Error> {
    let asked = [Event::CreateContainer, Event::ValidateContainerAdjustment];
    let Some(nri) = asked.into_iter().find_map(|event| listening(core, event)) else {
        return Ok(None);
    };
    let status = crate::container::status_of(record, Arc::new(record.spec.clone()));
    let pod = told::pod(sandbox);
    let container = container::container(&status, &container::json(oci)?);
    undo.push("tell plugins that the container is gone", {
        let (core, nri) = (Arc::clone(core), nri.clone());
        let (pod, container) = (pod.clone(), container.clone());
        move || {
            let (core, nri) = (Arc::clone(&core), nri.clone());
            let (pod, container) = (pod.clone(), container.clone());
            async move {
                match nri.stop_container(&pod, &container).await {
                    Ok(wanted) => apply_to_others(&core, wanted),
                    Err(error) => noted(&container.id, Err(error)),
                }
                noted(&container.id, nri.remove_container(&pod, &container).await);
                Ok(())
            }
        }
    });
    let asked = nri.create_container(&pod, &container).instrument(debug_span!("plugins"));
    asked.await.map(Some).map_err(refused(&record.id))
}

/// Changes what a container is going to be to what plugins want.
pub(crate) fn adjust(
    core: &Arc<Core>,
    sandbox: &Sandbox,
    record: &mut ContainerRecord,
    oci: &mut Spec,
    mut wanted: Wanted,
) -> Result<(), Error> {
    let adjustment = std::mem::take(&mut wanted.adjustment);
    let limits = adjusted_limits(&record.spec.resources, &adjustment);
    adjust::apply(oci, adjustment, &sandbox.spec.namespaces)?;
    // A later change begins with what it has.
    record.limits = limits.or_else(|| record.limits.take());
    apply_to_others(core, wanted);
    Ok(())
}

/// What an adjustment makes of the limits that can be changed later, as `adjust` makes it.
fn adjusted_limits(asked: &Resources, wanted: &ContainerAdjustment) -> Option<Resources> {
    let linux = wanted.linux.as_ref()?;
    if linux.resources.is_none() && linux.oom_score_adj.is_none() {
        return None;
    }
    let mut resources = linux.resources.clone().unwrap_or_default();
    resources.devices.clear();
    if let Some(memory) = &mut resources.memory {
        memory.reservation = None;
    }
    // What cannot be is refused when the adjustment is made.
    let limits = limits::wanted(resources).unwrap_or_default();
    let mut all = asked.changed(&limits);
    if let Some(score) = linux.oom_score_adj {
        all.oom_score_adj = score.value;
    }
    Some(all)
}

/// The container was made.
pub(crate) async fn post_create_container(core: &Core, container: &Container) {
    let Some(nri) = listening(core, Event::PostCreateContainer) else { return };
    let (pod, told) = told(core, container).await;
    noted(&container.id, nri.post_create_container(&pod, &told).await);
}

/// Its program is about to be executed.
pub(crate) async fn start_container(core: &Core, container: &Container) -> Result<(), Error> {
    let Some(nri) = listening(core, Event::StartContainer) else { return Ok(()) };
    let (pod, told) = told(core, container).await;
    nri.start_container(&pod, &told).await.map_err(refused(&container.id))
}

/// Its program was executed.
pub(crate) async fn post_start_container(core: &Core, container: &Container) {
    let Some(nri) = listening(core, Event::PostStartContainer) else { return };
    let (pod, told) = told(core, container).await;
    noted(&container.id, nri.post_start_container(&pod, &told).await);
}

/// Its limits are about to change: to what plugins make of what was asked.
pub(crate) async fn update_container(
    core: &Arc<Core>,
    container: &Container,
    asked: Resources,
) -> Result<Resources, Error> {
    let Some(nri) = listening(core, Event::UpdateContainer) else { return Ok(asked) };
    let (pod, told) = told(core, container).await;
    let updated = nri.update_container(&pod, &told, limits::told(&asked));
    let (resources, wanted) = updated.await.map_err(refused(&container.id))?;
    let limits = limits::wanted(resources)?;
    apply_to_others(core, wanted);
    Ok(Resources { oom_score_adj: asked.oom_score_adj, ..limits })
}

/// Its limits have changed.
pub(crate) async fn post_update_container(core: &Core, container: &Container) {
    let Some(nri) = listening(core, Event::PostUpdateContainer) else { return };
    let (pod, told) = told(core, container).await;
    noted(&container.id, nri.post_update_container(&pod, &told).await);
}

/// The limits of the whole pod are about to change.
pub(crate) async fn update_sandbox(
    core: &Core,
    sandbox: &Sandbox,
    asked: &PodLimits,
) -> Result<(), Error> {
    let Some(nri) = listening(core, Event::UpdatePodSandbox) else { return Ok(()) };
    let (overhead, resources) = (limits::told(&asked.overhead), limits::told(&asked.resources));
    let updated =
        nri.update_pod_sandbox(&told::pod(sandbox), Some(overhead), Some(resources)).await;
    updated.map_err(refused(&sandbox.id))
}

/// The limits of the whole pod have changed.
pub(crate) async fn post_update_sandbox(core: &Core, sandbox: &Sandbox) {
    let Some(nri) = listening(core, Event::PostUpdatePodSandbox) else { return };
    noted(&sandbox.id, nri.post_update_pod_sandbox(&told::pod(sandbox)).await);
}

/// It has ended, or could not be started.
pub(crate) async fn stop_container(core: &Arc<Core>, container: &Container) {
    let Some(nri) = listening(core, Event::StopContainer) else { return };
    let (pod, told) = told(core, container).await;
    match nri.stop_container(&pod, &told).await {
        Ok(wanted) => apply_to_others(core, wanted),
        Err(error) => noted(&container.id, Err(error)),
    }
}

/// It is about to be forgotten. One that never ran has not been told to have ended.
pub(crate) async fn remove_container(core: &Arc<Core>, container: &Container) {
    if matches!(container.status.get().state, ContainerState::Created) {
        stop_container(core, container).await;
    }
    let Some(nri) = listening(core, Event::RemoveContainer) else { return };
    let (pod, told) = told(core, container).await;
    noted(&container.id, nri.remove_container(&pod, &told).await);
}

async fn told(
    core: &Core,
    container: &Container,
) -> (berth_nri::api::PodSandbox, berth_nri::api::Container) {
    let status: Arc<ContainerStatus> = container.status.get();
    let oci = container::stored(core, &container.bundle).await;
    (told::pod(&container.sandbox), container::container(&status, &oci))
}

/// What the end or the making of one container gives to others is done beside it: their
/// drivers may be waiting for a plugin themselves.
fn apply_to_others(core: &Arc<Core>, wanted: Wanted) {
    if wanted.updates.is_empty() && wanted.evictions.is_empty() {
        return;
    }
    let host = Host(Arc::downgrade(core));
    let apply = async move {
        for failed in host.apply(wanted.updates, wanted.evictions).await {
            let id = failed.container_id;
            tracing::warn!(container.id = id, "an update that a plugin wants failed");
        }
    };
    core.tasks.spawn(apply.instrument(debug_span!(parent: None, "plugins_updates")));
}

#[cfg(test)]
mod tests {
    use berth_nri::api::{
        LinuxContainerAdjustment, LinuxMemory, LinuxResources, OptionalInt as Int,
    };

    use super::*;

    /// teeth: crates/engine/src/hooks/mod.rs: `let mut all = asked.changed(&limits);` → `let mut all = asked.clone();`
    #[test]
    fn limits_that_are_noted_are_those_that_the_container_gets() {
        let asked = Resources {
            memory_limit: 100,
            memory_swap_limit: 100,
            oom_score_adj: 300,
            cpu_shares: 7,
            ..Resources::default()
        };
        let memory = LinuxMemory { limit: Some(Int { value: 200 }), ..LinuxMemory::default() };
        let resources = LinuxResources { memory: Some(memory), ..LinuxResources::default() };
        let linux = LinuxContainerAdjustment {
            resources: Some(resources),
            oom_score_adj: Some(Int { value: 0 }),
            ..LinuxContainerAdjustment::default()
        };
        let wanted = ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() };
        let expected = Resources {
            memory_limit: 200,
            memory_swap_limit: 200,
            oom_score_adj: 0,
            ..asked.clone()
        };
        assert_eq!(adjusted_limits(&asked, &wanted), Some(expected));
        assert_eq!(adjusted_limits(&asked, &ContainerAdjustment::default()), None);
    }
}
