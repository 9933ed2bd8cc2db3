//! What goes through the interfaces of a sandbox.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_network::Watched;
use berth_stats::Permit;

use crate::core::{Core, warn_failure};
use crate::sandbox::Sandbox;
use crate::{Error, NetworkUsage};

/// The counters of a sandbox's interfaces, opened at the first question and let go with its
/// network: to find them through the shim at each one costs more than to read them.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<Option<Kept>>);

/// The counters, and leave to keep them.
type Kept = (Arc<Watched>, Permit);

impl Counters {
    /// Lets them go: their namespace would exist for as long. Its end is published before.
    pub(crate) fn release(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What went through its interfaces; `None` with the node's network, and once it is stopped.
pub(super) fn now(core: &Core, sandbox: &Sandbox) -> Option<NetworkUsage> {
    let netns = sandbox.status.get().netns.clone()?;
    let failed =
        |action| move |source| Error::Network { action, sandbox: sandbox.id.clone(), source };
    let read = core.interfaces.get(&sandbox.id, |_| {
        let watched = watched(core, sandbox, &netns, failed("watch"))?;
        let interfaces = watched.counters().map_err(failed("read counters of"))?;
        Ok::<_, Error>(NetworkUsage {
            at: berth_failpoint::now().into(),
            interfaces: interfaces.into(),
        })
    });
    if sandbox.removed.load(Ordering::Acquire) {
        core.interfaces.forget(&sandbox.id);
    }
    match read {
        Ok(usage) => Some(usage),
        Err(error) => {
            // It is being stopped.
            if sandbox.status.get().netns.is_some() && std::fs::exists(&netns).unwrap_or(false) {
                warn_failure("read network usage", &error);
            }
            None
        }
    }
}

fn watched(
    core: &Core,
    sandbox: &Sandbox,
    netns: &Path,
    failed: impl FnOnce(berth_network::Error) -> Error,
) -> Result<Arc<Watched>, Error> {
    if let Some((known, _)) = &*sandbox.counters.lock() {
        return Ok(Arc::clone(known));
    }
    let opened = std::fs::File::open(netns).map_err(Error::io("open", netns))?;
    let watched = Arc::new(core.network.watch(opened.as_fd()).map_err(failed)?);
    let mut kept = sandbox.counters.lock();
    // Whoever ends the network has not let go yet if that is not published yet.
    if kept.is_none() && sandbox.status.get().netns.is_some() {
        *kept = core.budget.take(1).map(|permit| (Arc::clone(&watched), permit));
    }
    Ok(watched)
}
