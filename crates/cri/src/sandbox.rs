//! Run, stop, remove and describe sandboxes.

use berth_api::v1::*;
use berth_engine::Engine;
use berth_model::container::Timestamp;
use berth_model::sandbox::PodLimits;
use serde_json::json;
use tracing::Span;

use crate::translate::{container_status, noted, sandbox_spec, sandbox_status};
use crate::{Error, ids, node};

pub(crate) async fn run(
    engine: &Engine,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Error> {
    let handler = &request.runtime_handler;
    if !handler.is_empty() && !engine.handlers().iter().any(|known| known.name == *handler) {
        return Err(Error::invalid("runtime_handler", format!("{handler:?} is not configured")));
    }
    let id = engine.run_sandbox(sandbox_spec(&request)?).await?;
    Span::current().record("sandbox.id", id.as_str());
    Ok(RunPodSandboxResponse { pod_sandbox_id: id.into() })
}

pub(crate) async fn stop(
    engine: &Engine,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Error> {
    let id = ids::sandbox(engine, "pod_sandbox_id", &request.pod_sandbox_id);
    if let Some(id) = ids::if_exists(id)? {
        engine.stop_sandbox(&id).await?;
    }
    Ok(StopPodSandboxResponse {})
}

pub(crate) async fn remove(
    engine: &Engine,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Error> {
    let id = ids::sandbox(engine, "pod_sandbox_id", &request.pod_sandbox_id);
    if let Some(id) = ids::if_exists(id)? {
        engine.remove_sandbox(&id).await?;
    }
    Ok(RemovePodSandboxResponse {})
}

pub(crate) async fn status(
    engine: &Engine,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Error> {
    let id = ids::sandbox(engine, "pod_sandbox_id", &request.pod_sandbox_id)?;
    let Timestamp(timestamp) = engine.moment();
    let status = engine.sandbox(&id)?;
    let mut containers = engine.containers();
    containers.retain(|container| container.sandbox == id);
    containers.sort_by_key(|container| container.created_at);
    let shim = if request.verbose { engine.shim_info(&id).await? } else { None };
    let info = request.verbose.then(|| {
        node::info(&json!({
            "pid": status.shim_pid,
            "shimProtocol": shim.as_ref().map(|shim| shim.protocol),
            "shimVersion": shim.as_ref().map(|shim| &shim.version),
            "runtime": status.runtime.as_ref(),
            "networkNamespace": status.netns,
            "limits": *status.limits,
            "request": *status.spec,
        }))
    });
    Ok(PodSandboxStatusResponse {
        status: Some(sandbox_status(&status)),
        info: info.unwrap_or_default(),
        containers_statuses: containers.iter().map(|status| container_status(status)).collect(),
        timestamp,
    })
}

/// kubelet has changed the pod's own cgroup when it tells this (KEP-1287).
pub(crate) async fn update(
    engine: &Engine,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, Error> {
    let limits = PodLimits {
        overhead: noted("overhead", request.overhead.as_ref())?,
        resources: noted("resources", request.resources.as_ref())?,
    };
    let id = ids::sandbox(engine, "pod_sandbox_id", &request.pod_sandbox_id)?;
    engine.update_sandbox(&id, limits).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
