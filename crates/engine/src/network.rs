//! The network that sandboxes share: set up, looked at whenever the node's status is asked
//! for, and made again when somebody has taken it away (`nft flush ruleset`, a bridge that was
//! deleted); sandboxes then come back to it.

use std::sync::Arc;

use berth_network::Network;
use futures_util::future::join_all;

use crate::Error;
use crate::core::{Core, warn_failure};
use crate::sandbox::Command;

/// Whether the daemon before has left the network as it is needed, and what [`set_up`] says.
pub(crate) fn open(network: &Network) -> (bool, Option<String>) {
    (network.ready().is_ok(), set_up(network))
}

/// Sets the network up; why it cannot be used, if it cannot. A node without it still runs
/// sandboxes that use the node's.
fn set_up(network: &Network) -> Option<String> {
    let error = network.ensure_base().err()?;
    let error = Error::NetworkBase { source: error };
    warn_failure("no sandbox network", &error);
    Some(error.told())
}

/// Why sandboxes have no network, once what can be made again is.
pub(crate) async fn fault(core: &Arc<Core>) -> Option<String> {
    let known = core.network_fault.get();
    let network = Arc::clone(&core.network);
    let broken = known.is_some();
    let looked = core.links.run(move || match broken || network.ready().is_err() {
        true => (set_up(&network), true),
        false => (None, false),
    });
    let (fault, set_up) = looked.await.unwrap_or_else(|error| (Some(error.told()), false));
    if fault != known {
        core.network_fault.set(fault.clone());
    }
    if set_up && fault.is_none() {
        tracing::warn!("the sandbox network was gone, and is set up again");
        core.tasks.spawn(reattach_all(Arc::clone(core)));
    }
    fault
}

/// Has each sandbox come back to the network. Its driver does that: no stop is under way then.
pub(crate) async fn reattach_all(core: Arc<Core>) {
    let all = core.sandboxes.all().into_iter();
    let all = all.filter(|sandbox| sandbox.status.get().netns.is_some());
    let asked = all.map(|sandbox| async move {
        if let Err(error) = sandbox.ask(Command::Reattach).await {
            warn_failure("bring a sandbox back to the network", &error);
        }
    });
    join_all(asked).await;
}
