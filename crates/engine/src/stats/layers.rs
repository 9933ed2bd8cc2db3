//! What containers have written.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_model::stats::DiskUsage;
use berth_model::{ContainerId, ContainerState};
use berth_snapshot::SnapshotKey;
use berth_stats::Readings;
use tracing::{Instrument as _, debug_span};

use crate::container::Container;
use crate::core::{Core, warn_failure};
use crate::worker::Pool;

/// A measurement of a writable layer is good at least this long; a while longer it is told,
/// with its time, while the layer is measured anew.
const AGE: Duration = Duration::from_secs(10);
/// Threads that measure anew what nobody waits for.
const WALKERS: usize = 2;

/// Writable layers as last measured.
#[derive(Debug)]
pub(crate) struct Layers {
    measured: Readings<ContainerId, Option<DiskUsage>>,
    /// Containers whose layers are to be measured anew.
    stale: Mutex<HashMap<ContainerId, Arc<Container>>>,
    walkers: Pool,
}

impl Layers {
    pub(crate) fn new() -> Self {
        Self {
            measured: Readings::dear(AGE),
            stale: Mutex::default(),
            walkers: Pool::new("the layer pool", WALKERS),
        }
    }

    /// Drops what is known of a container that is removed.
    pub(crate) fn forget(&self, id: &ContainerId) {
        self.measured.forget(id);
        self.stale().remove(id);
    }

    fn stale(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Container>>> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a container's layer. What is no longer good, but was a moment ago, is
/// told as it was and with its time, and is walked after the answer ([`walk_stale`]); only what
/// is not known or too old is walked now.
pub(super) fn now(core: &Core, container: &Arc<Container>) -> Option<DiskUsage> {
    match core.layers.measured.recent(&container.id) {
        Some((usage, true)) => usage,
        Some((usage, false)) => {
            core.layers.stale().insert(container.id.clone(), Arc::clone(container));
            usage
        }
        None => walk(core, container),
    }
}

/// Has walked anew what was told although it was no longer good: nobody waits for it.
pub(super) fn walk_stale(core: &Arc<Core>) {
    let stale = std::mem::take(&mut *core.layers.stale());
    if stale.is_empty() {
        return;
    }
    let (walkers, shared) = (core.layers.walkers.clone(), Arc::clone(core));
    let walks = move || {
        for container in stale.values().take_while(|_| !shared.shutdown.is_cancelled()) {
            // Its failure is told when somebody asks and nothing is known.
            let _known = walk(&shared, container);
        }
    };
    let walked = async move {
        if let Err(error) = walkers.run(walks).await {
            warn_failure("walk writable layers", &error);
        }
    };
    core.tasks.spawn(walked.instrument(debug_span!("walk_layers")));
}

fn walk(core: &Core, container: &Container) -> Option<DiskUsage> {
    let usage = core.layers.measured.get(&container.id, |before| {
        let usage = core.snapshots.usage(&SnapshotKey::from(&container.id));
        let usage = usage.map(|usage| match counts_files(core, container) {
            true => with_files(usage, &container.sandbox.dir),
            false => usage,
        });
        walked(usage, before.and_then(|(_, before)| *before))
    });
    // Removed during the walk: nobody else would forget it.
    if container.removed.load(Ordering::Acquire) {
        core.layers.forget(&container.id);
    }
    usage.ok().flatten()
}

/// What is kept of a walk. A tree that changes under it is as it was, until it is walked the
/// next time; of one that is too large it is kept that it has no size, since to find that out
/// costs the most.
fn walked(
    usage: Result<DiskUsage, berth_snapshot::Error>,
    before: Option<DiskUsage>,
) -> Result<Option<DiskUsage>, berth_snapshot::Error> {
    match (usage, before) {
        (Ok(usage), _) => Ok(Some(usage)),
        (Err(_), Some(before)) => Ok(Some(before)),
        (Err(berth_snapshot::Error::TooManyEntries(_)), None) => Ok(None),
        (Err(error), None) => Err(error),
    }
}

/// Whether the files of its sandbox are counted for this container: for one of those that run,
/// since kubelet adds up what these have written, and for each other one.
fn counts_files(core: &Core, container: &Container) -> bool {
    let runs = |id: &ContainerId| {
        let found = core.containers.get(id);
        found.is_some_and(|it| matches!(it.status.get().state, ContainerState::Running { .. }))
    };
    let running = container.sandbox.members.made().into_iter().filter(runs);
    !runs(&container.id) || running.min().is_none_or(|one| one == container.id)
}

/// What a container can write beside its layer: files of its sandbox, which nobody else
/// would count (CVE-2020-8557). As they are made they are small, and are left out.
fn with_files(usage: DiskUsage, sandbox: &Path) -> DiskUsage {
    use std::os::unix::fs::MetadataExt as _;
    const MADE: u64 = 64 << 10;
    let written = ["hosts", "hostname", "resolv.conf"].iter().filter_map(|name| {
        let found = std::fs::symlink_metadata(sandbox.join(name)).ok()?;
        Some(found.blocks().saturating_mul(512)).filter(|bytes| *bytes > MADE)
    });
    DiskUsage { bytes: usage.bytes.saturating_add(written.sum()), ..usage }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/engine/src/stats/layers.rs: `TooManyEntries(_)), None) => Ok(None)` → `TooManyEntries(number)), None) => Err(berth_snapshot::Error::TooManyEntries(number))`
    #[test]
    fn a_layer_that_is_too_large_is_not_walked_for_each_question() {
        use berth_snapshot::Error::{NotFound, TooManyEntries};
        let known = DiskUsage { bytes: 7, ..DiskUsage::default() };
        assert_eq!(walked(Ok(known), None).unwrap(), Some(known));
        assert_eq!(walked(Err(TooManyEntries(1)), Some(known)).unwrap(), Some(known));
        assert_eq!(walked(Err(TooManyEntries(1)), None).unwrap(), None);
        let missing = || NotFound("a".parse().unwrap());
        assert!(walked(Err(missing()), None).is_err(), "it may be there the next time");
    }
}
