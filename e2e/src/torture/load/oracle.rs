//! What the clients were told is what is there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use tokio::task::block_in_place;

use super::shared::{Expect, Shared};
use crate::stage::Stage;

/// How long an end that just happened may take to be told.
const TOLD: Duration = Duration::from_secs(10);

/// Compares everything; no verb is under way.
pub(super) async fn check(stage: &mut Stage, shared: &Shared) -> Result<()> {
    let mut known = stage.known();
    let (sandboxes, containers, images) = {
        let ledger = shared.ledger();
        (ledger.sandboxes.clone(), ledger.containers.clone(), ledger.images.clone())
    };
    known.sandboxes.extend(sandboxes.keys().cloned());
    known.containers.extend(containers.keys().cloned());
    stage.check_lists(&known).await?;
    stage.check_bystanders(None).await?;
    for (id, ready) in &sandboxes {
        let status = stage.node.cri.sandbox_status(id).await?;
        let found = status.state() == v1::PodSandboxState::SandboxReady;
        ensure!(ready.is_none_or(|ready| ready == found), "{ready:?} expected: {status:?}");
    }
    for (id, expect) in &containers {
        container(shared, id, expect).await?;
    }
    listed_images(stage, images.keys().cloned().collect()).await?;
    block_in_place(|| stage.check_leaks(&known))
}

async fn container(shared: &Shared, id: &str, expect: &Expect) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (status, pid) = shared.look(id).await?;
        let wrong = match (expect, status.state()) {
            (Expect::Created, v1::ContainerState::ContainerCreated) => return Ok(()),
            (Expect::Ended(told), _) if **told == status => return Ok(()),
            (Expect::Alive { process, .. }, v1::ContainerState::ContainerRunning) => {
                ensure!(pid == Some(process.pid), "process {pid:?} was {process:?}: {status:?}");
                if process.runs() {
                    return Ok(());
                }
                // It ends right now.
                begun.elapsed() > TOLD
            }
            (Expect::Alive { process, codes }, v1::ContainerState::ContainerExited) => {
                ensure!(!process.runs(), "told to have ended, and runs: {status:?}");
                ensure!(codes.contains(&status.exit_code), "{codes:?} expected: {status:?}");
                return Ok(());
            }
            _ => true,
        };
        ensure!(!wrong, "{expect:?} expected: {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn listed_images(stage: &mut Stage, mut known: BTreeSet<String>) -> Result<()> {
    let images = stage.node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
    let images = images.into_inner().images;
    let busybox = images.iter().find(|image| image.repo_tags.contains(&stage.image));
    known.insert(busybox.context("busybox is lost")?.id.clone());
    let listed: BTreeSet<String> = images.into_iter().map(|image| image.id).collect();
    ensure!(listed == known, "images: listed {listed:?}, known {known:?}");
    Ok(())
}

/// Anonymous memory, KiB, and descriptors of the daemon.
pub(super) fn size(stage: &Stage) -> Result<(u64, usize)> {
    let pid = stage.node.daemon().pid().context("berthd does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let memory = memory.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((memory.context("no RssAnon")?, descriptors))
}
