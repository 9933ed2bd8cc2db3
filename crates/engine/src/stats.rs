//! Usage, read at most as often as it is worth.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_cgroup::CgroupPath;
use berth_model::stats::DiskUsage;
use berth_model::{ContainerId, ContainerState};
use berth_snapshot::{SnapshotKey, Snapshots};
use berth_stats::Sample;

use crate::container::Container;
use crate::core::{Core, cgroup_error, warn_failure};
use crate::sandbox::Sandbox;
use crate::{ContainerStats, Error, SandboxStats};

/// A measurement of a writable layer is good at least this long.
const LAYER_AGE: Duration = Duration::from_secs(10);
/// And so many times what it cost: a layer of a million files is walked rarely.
const LAYER_COST: u32 = 100;

/// Writable layers as last measured.
#[derive(Debug, Default)]
pub(crate) struct Layers(Mutex<HashMap<ContainerId, Measured>>);

#[derive(Clone, Copy, Debug)]
struct Measured {
    usage: DiskUsage,
    taken: Instant,
    cost: Duration,
}

impl Measured {
    fn is_fresh(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.taken);
        age < LAYER_AGE.max(self.cost * LAYER_COST)
    }
}

impl Layers {
    /// The usage of a layer; measured now unless the last time is good. Blocks.
    fn usage(&self, snapshots: &Snapshots, id: &ContainerId) -> Option<DiskUsage> {
        let now = Instant::now();
        let last = self.lock().get(id).copied();
        if let Some(last) = last.filter(|last| last.is_fresh(now)) {
            return Some(last.usage);
        }
        let usage = match snapshots.usage(&SnapshotKey::from(id)) {
            Ok(usage) => usage,
            // A tree that changes under the walk is measured the next time.
            Err(_) => return last.map(|last| last.usage),
        };
        self.lock().insert(id.clone(), Measured { usage, taken: now, cost: now.elapsed() });
        Some(usage)
    }

    pub(crate) fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Measured>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Usage of the given containers, in their order.
pub(crate) async fn containers(
    core: &Arc<Core>,
    containers: Vec<Arc<Container>>,
) -> Result<Vec<ContainerStats>, Error> {
    let shared = Arc::clone(core);
    let read =
        move || containers.iter().map(|container| container_now(&shared, container)).collect();
    core.disk.run(read).await
}

/// Usage of the given sandboxes, in their order.
pub(crate) async fn sandboxes(
    core: &Arc<Core>,
    sandboxes: Vec<Arc<Sandbox>>,
) -> Result<Vec<SandboxStats>, Error> {
    let shared = Arc::clone(core);
    let read = move || sandboxes.iter().map(|sandbox| sandbox_now(&shared, sandbox)).collect();
    core.disk.run(read).await
}

fn container_now(core: &Core, container: &Container) -> ContainerStats {
    let status = container.status.get();
    let running = matches!(status.state, ContainerState::Running { .. });
    ContainerStats {
        cgroup: running.then(|| sample(core, &container.cgroup)).flatten(),
        writable_layer: layer_now(core, container),
        status,
    }
}

fn layer_now(core: &Core, container: &Container) -> Option<DiskUsage> {
    let usage = core.layers.usage(&core.snapshots, &container.id);
    // Removed during the walk: nobody else would forget it.
    if container.removed.load(Ordering::Acquire) {
        core.layers.forget(&container.id);
    }
    usage
}

fn sandbox_now(core: &Core, sandbox: &Sandbox) -> SandboxStats {
    let status = sandbox.status.get();
    let ready = sandbox.is_ready();
    let members = sandbox.members.made().into_iter();
    let members = members.filter_map(|id| core.containers.get(&id));
    let network = status.netns.as_deref().and_then(|netns| {
        // A sandbox that is being stopped has none any more.
        let netns = std::fs::File::open(netns).ok()?;
        berth_network::interface_counters(std::os::fd::AsFd::as_fd(&netns), "eth0").ok()
    });
    SandboxStats {
        cgroup: ready.then(|| sample(core, &sandbox.cgroup)).flatten(),
        network,
        containers: members.map(|container| container_now(core, &container)).collect(),
        status,
    }
}

fn sample(core: &Core, path: &CgroupPath) -> Option<Sample> {
    let sampled = core.cgroup(path).and_then(|cgroup| {
        let sample = cgroup.map(|cgroup| core.sampler.sample(&cgroup)).transpose();
        sample.map_err(cgroup_error("read", path))
    });
    match sampled {
        Ok(sample) => sample,
        // It ended a moment ago.
        Err(error) if error.kind() == berth_model::ErrorKind::NotFound => None,
        Err(error) => {
            warn_failure("read usage", &error);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_costly_measurement_is_good_for_longer() {
        let taken = Instant::now();
        let measured = |cost| Measured { usage: DiskUsage::default(), taken, cost };
        let later = taken + Duration::from_secs(60);
        assert!(measured(Duration::ZERO).is_fresh(taken + Duration::from_secs(9)));
        assert!(!measured(Duration::ZERO).is_fresh(later));
        assert!(measured(Duration::from_secs(1)).is_fresh(later));
    }
}
