//! After a restart: what the store says, what the shims say, what is on the node.
//!
//! 1. Every sandbox of the store is adopted with its shim, or marked as lost; what a dead
//!    daemon was making is taken back.
//! 2. Every container is adopted with what its shim knows: it runs, or it ended at a time
//!    and with a code.
//! 3. What no record names is removed.
//!
//! When this returns, the board shows what is true.

mod adopt;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_metadata::{ContainerRecord, SandboxPhase};
use berth_model::SandboxId;
use futures_util::StreamExt as _;
use futures_util::future::join_all;

use crate::Error;
use crate::container::Command;
use crate::core::{Core, step, warn_failure};

/// Sandboxes adopted at one time.
const PARALLEL: usize = 32;
/// How long the recording of what ended meanwhile may hold up the start.
const SETTLE: Duration = Duration::from_secs(3);

/// Brings the board up to date, then the node.
pub(crate) async fn recover(core: &Arc<Core>) -> Result<(), Error> {
    let sandboxes = core.stored("list sandboxes", |pods| pods.sandboxes()).await?;
    let containers = core.stored("list containers", |pods| pods.containers()).await?;
    let mut members: HashMap<SandboxId, Vec<ContainerRecord>> = HashMap::new();
    let live_containers: HashSet<_> =
        containers.iter().map(|container| container.id.clone()).collect();
    for container in containers {
        members.entry(container.sandbox.clone()).or_default().push(container);
    }
    let live_sandboxes: HashSet<_> = sandboxes
        .iter()
        .filter(|sandbox| sandbox.phase != SandboxPhase::Creating)
        .map(|sandbox| sandbox.id.clone())
        .collect();

    let adoptions = sandboxes.into_iter().map(|sandbox| {
        let members = members.remove(&sandbox.id).unwrap_or_default();
        async move {
            let id = sandbox.id.clone();
            if let Err(error) = adopt::sandbox(core, sandbox, members).await {
                tracing::error!(
                    sandbox.id = %id,
                    error = &error as &dyn std::error::Error,
                    "adopt sandbox"
                );
            }
        }
    });
    futures_util::stream::iter(adoptions).for_each_concurrent(PARALLEL, |adoption| adoption).await;
    step(Point::RECOVER_ADOPTED).await?;
    settle(core).await;
    step(Point::RECOVER_SETTLED).await?;
    let attached = core.stored("list sandboxes", |pods| pods.sandboxes()).await?;
    let attached = attached.into_iter().filter(|sandbox| sandbox.network.is_some());
    let attached = attached.map(|sandbox| sandbox.id).collect();
    sweep::sweep(core, live_sandboxes, live_containers, attached).await;
    Ok(())
}

/// Waits until the drivers have recorded what ended meanwhile.
async fn settle(core: &Arc<Core>) {
    let containers = core.containers.all();
    let asked = containers.iter().map(|container| container.ask(Command::Sync));
    let settled = async {
        for failure in join_all(asked).await.into_iter().filter_map(Result::err) {
            warn_failure("record what ended meanwhile", &failure);
        }
    };
    if tokio::time::timeout(SETTLE, settled).await.is_err() {
        tracing::warn!("containers that ended meanwhile are recorded later");
    }
}
