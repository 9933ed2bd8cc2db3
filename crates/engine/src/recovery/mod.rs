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
mod stranger;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_image::InUse;
use berth_metadata::{ContainerRecord, Pods, SandboxPhase};
use berth_model::SandboxId;
use futures_util::StreamExt as _;
use futures_util::future::join_all;

use crate::container::Command;
use crate::core::{Core, step, warn_failure};
use crate::{Error, files};

/// Sandboxes adopted at one time: shims that do not answer must not keep others waiting.
const PARALLEL: usize = 256;
/// How long the recording of what ended meanwhile may hold up the start.
const SETTLE: Duration = Duration::from_secs(2);

/// Names the boot in which a start brought images and disk in line last.
const BOOT: &str = "boot";

/// Records images again whose records were lost. What a power cut may have torn is left
/// to be swept: only a node that was up all the time has on its disk what it shows.
pub(crate) async fn rebuild_images(core: &Arc<Core>, stored: &Pods) -> Result<(), Error> {
    let path = core.config.state.join(BOOT);
    let booted = core.disk.run(move || files::read_bounded(&path, 128)).await?;
    if !booted.is_ok_and(|booted| booted == core.boot_id.as_bytes()) {
        return Ok(());
    }
    let in_use = |container: &ContainerRecord| InUse {
        image: container.image,
        name: container.image_ref.clone(),
        chain: container.chain.clone(),
    };
    let volumes = stored.containers.iter().flat_map(|container| &container.volumes);
    let volumes = volumes.map(|(name, volume)| InUse {
        image: volume.image,
        name: name.clone(),
        chain: volume.chain.clone(),
    });
    let in_use = stored.containers.iter().map(in_use).chain(volumes).collect();
    let rebuilt = core.images.rebuild(in_use).await;
    rebuilt.map(drop).map_err(Error::image("rebuild images of", "this node"))
}

/// From now on what is on the disk is what was recorded.
async fn note_boot(core: &Arc<Core>) {
    let (path, boot) = (core.config.state.join(BOOT), core.boot_id.clone());
    let noted = core.disk.run(move || {
        if std::fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            files::remove_dir(&path)?;
        }
        files::write_private(&path, boot.as_bytes())
    });
    if let Err(error) = noted.await.flatten() {
        warn_failure("note the boot", &error);
    }
}

/// Brings the board up to date, then the node.
pub(crate) async fn recover(core: &Arc<Core>, stored: Pods) -> Result<(), Error> {
    let Pods { sandboxes, containers } = stored;
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
            let attached = sandbox.network.is_some();
            let adopted = adopt::sandbox(core, sandbox, members).await;
            let attached = adopted.unwrap_or_else(|error| {
                tracing::error!(
                    sandbox.id = %id,
                    error = &error as &dyn std::error::Error,
                    "adopt sandbox"
                );
                attached
            });
            attached.then_some(id)
        }
    });
    let adopted = futures_util::stream::iter(adoptions).buffer_unordered(PARALLEL);
    let attached = adopted.filter_map(std::future::ready).collect().await;
    step(Point::RECOVER_ADOPTED).await?;
    settle(core).await;
    step(Point::RECOVER_SETTLED).await?;
    sweep::sweep(core, live_sandboxes, live_containers, attached).await;
    note_boot(core).await;
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
