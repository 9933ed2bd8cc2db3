//! The network that sandboxes share: set up, looked at whenever the node's status is asked
//! for, and made again when somebody has taken it away (`nft flush ruleset`, a bridge that was
//! deleted); sandboxes then come back to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_network::Network;
use futures_util::future::join_all;
use tokio::sync::Mutex;

use crate::Error;
use crate::core::{Core, warn_failure};
use crate::sandbox::Command;

/// What is known of the network, beside its fault.
#[derive(Debug)]
pub(crate) struct Care {
    /// Held by who looks at it.
    looking: Mutex<()>,
    /// Held while sandboxes come back.
    reattaching: Mutex<()>,
    /// Whether sandboxes have to come back: it may have been made again. So at each start,
    /// whose daemon before may have died in between.
    owed: AtomicBool,
}

impl Care {
    pub(crate) fn new() -> Self {
        let owed = AtomicBool::new(true);
        Self { looking: Mutex::default(), reattaching: Mutex::default(), owed }
    }
}

/// Sets the network up; why it cannot be used, if it cannot. A node without it still runs
/// sandboxes that use the node's.
pub(crate) fn open(network: &Network) -> Option<String> {
    let error = set_up(network).err()?;
    warn_failure("no sandbox network", &error);
    Some(error.told())
}

fn set_up(network: &Network) -> Result<(), Error> {
    network.ensure_base().map(drop).map_err(|source| Error::NetworkBase { source })
}

/// Why sandboxes have no network, once what can be made again is. Told once in the log.
pub(crate) async fn fault(core: &Arc<Core>) -> Option<String> {
    let _one = core.network_care.looking.lock().await;
    let known = core.network_fault.get();
    let (shared, broken) = (Arc::clone(core), known.is_some());
    let looked = core.links.run(move || {
        if !broken && shared.network.ready().is_ok() {
            return Ok(());
        }
        // Owed before it is made: whoever asked may be gone by then.
        shared.network_care.owed.store(true, Ordering::Release);
        set_up(&shared.network)
    });
    let error = looked.await.and_then(|made| made).err();
    let fault = error.as_ref().map(Error::told);
    if fault != known {
        if let Some(error) = &error {
            warn_failure("no sandbox network", error);
        }
        core.network_fault.set(fault.clone());
    }
    if fault.is_none() && core.network_care.owed.load(Ordering::Acquire) {
        core.tasks.spawn(reattach_all(Arc::clone(core)));
    }
    fault
}

/// Has each sandbox come back to the network, if that is owed; what fails is owed still. Their
/// drivers do that: no stop is under way then.
pub(crate) async fn reattach_all(core: Arc<Core>) {
    let care = &core.network_care;
    let Ok(_one) = care.reattaching.try_lock() else { return };
    if !care.owed.swap(false, Ordering::AcqRel) {
        return;
    }
    let all = core.sandboxes.all().into_iter();
    let all = all.filter(|sandbox| sandbox.status.get().ip.is_some());
    let asked = all.map(|sandbox| async move {
        let reattached = sandbox.ask(Command::Reattach).await;
        if let Err(error) = &reattached {
            warn_failure("bring a sandbox back to the network", error);
        }
        reattached.is_ok()
    });
    if join_all(asked).await.contains(&false) {
        care.owed.store(true, Ordering::Release);
    }
}
