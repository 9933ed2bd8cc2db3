//! What plugins may know and change: everything that exists, limits, and who is stopped.

use std::sync::Weak;
use std::time::Duration;

use berth_model::{ContainerId, ContainerState};
use berth_nri::api::{ContainerEviction, ContainerUpdate};
use berth_nri::{Answer, Runtime, Snapshot};
use futures_util::StreamExt as _;

use super::{container, limits, told};
use crate::Error;
use crate::container::Command;
use crate::core::{Core, warn_failure};

/// Specifications read at one time.
const PARALLEL: usize = 8;
/// How long one change may take that a plugin wants.
const CHANGE: Duration = Duration::from_secs(10);

/// The engine, as long as there is one.
pub(crate) struct Host(pub(crate) Weak<Core>);

impl Runtime for Host {
    fn snapshot(&self) -> Answer<'_, Snapshot> {
        Box::pin(self.all())
    }

    fn update(
        &self,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Answer<'_, Vec<ContainerUpdate>> {
        Box::pin(self.apply(updates, evictions))
    }
}

impl Host {
    async fn all(&self) -> Snapshot {
        let Some(core) = self.0.upgrade() else { return Snapshot::default() };
        let mut snapshot = Snapshot::default();
        let pods = core.sandboxes.all();
        snapshot.pods.extend(pods.iter().map(|sandbox| told::pod(sandbox)));
        let mut living = Vec::new();
        for container in core.containers.all() {
            let status = container.status.get();
            if matches!(status.state, ContainerState::Exited { .. }) {
                snapshot.ended.push(status.id.to_string());
            } else {
                living.push((container, status));
            }
        }
        let told = living.into_iter().map(|(container, status)| {
            let core = core.clone();
            async move {
                let oci = container::stored(&core, &container.bundle).await;
                container::container(&status, &oci)
            }
        });
        snapshot.containers = futures_util::stream::iter(told).buffered(PARALLEL).collect().await;
        snapshot
    }

    /// One after the other; returns what failed, unless that is to be ignored.
    pub(super) async fn apply(
        &self,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Vec<ContainerUpdate> {
        let mut failed = Vec::new();
        let Some(core) = self.0.upgrade() else { return updates };
        for eviction in evictions {
            if let Err(error) = evict(&core, &eviction).await {
                warn_failure("stop container that a plugin evicts", &error);
            }
        }
        for update in updates {
            if let Err(error) = change(&core, &update).await {
                warn_failure("change limits that a plugin wants changed", &error);
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        failed
    }
}

fn id(text: &str) -> Result<ContainerId, Error> {
    ContainerId::new(text).map_err(|_| Error::invalid("container_id", "is no container's id"))
}

/// Stops a container at once: whoever wants it to run starts another.
async fn evict(core: &Core, eviction: &ContainerEviction) -> Result<(), Error> {
    let container = core.container(&id(&eviction.container_id)?)?;
    tracing::warn!(container.id = %container.id, reason = eviction.reason, "plugin evicts container");
    within(&container.id, container.ask(|reply| Command::Stop(Duration::ZERO, reply))).await
}

async fn change(core: &Core, update: &ContainerUpdate) -> Result<(), Error> {
    let container = core.container(&id(&update.container_id)?)?;
    let resources = update.linux.clone().and_then(|linux| linux.resources);
    let Some(resources) = resources else { return Ok(()) };
    let limits = Box::new(limits::wanted(resources)?);
    within(&container.id, container.ask(|reply| Command::Update(limits, reply))).await
}

async fn within(
    id: &ContainerId,
    change: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let changed = tokio::time::timeout(CHANGE, change).await;
    changed
        .unwrap_or_else(|_| Err(Error::Deadline { what: format!("change of {id}"), limit: CHANGE }))
}
