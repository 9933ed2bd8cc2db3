//! Ready → NotReady.

use std::time::Duration;

use berth_failpoint::Point;
use berth_metadata::SandboxPhase;
use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{Instrument as _, debug_span};

use super::driver::Driver;
use super::teardown;
use crate::container::Command;
use crate::core::step;
use crate::{Error, hooks};

/// How long containers in the making may hold up a stop.
const CLOSE: Duration = Duration::from_secs(10);

impl Driver {
    /// Kills the containers and lets go of shim, namespaces, network and cgroup. The first
    /// failure is returned; another stop tries again.
    pub(super) async fn stop(&mut self) -> Result<(), Error> {
        // A container in the making would be missed below. One that takes for ever (its volume
        // hangs) fails the stop, which is tried again.
        let closed = timeout(CLOSE, self.sandbox.members.close()).await;
        let late = |_| Error::Deadline {
            what: format!("containers in the making in sandbox {}", self.sandbox.id),
            limit: CLOSE,
        };
        closed.map_err(late)?;
        step(Point::STOP_MEMBERS_CLOSED).await?;
        // A store that refuses does not keep the containers alive.
        let stored = self.enter(SandboxPhase::NotReady).await;
        let mut failures = self.halt_containers().instrument(debug_span!("containers")).await;
        failures.extend(stored.err());
        failures.extend(step(Point::STOP_CONTAINERS_HALTED).await.err());
        if let Some(failure) = failures.into_iter().next() {
            // Somebody lives, or how it ended is with the shim alone.
            return Err(failure);
        }

        if !std::mem::replace(&mut self.told.stopped, true) {
            hooks::stop_sandbox(&self.core, &self.sandbox).await;
        }

        // Everybody is dead: the shim goes, and with it the last descriptors of the
        // namespaces.
        let (ended, detached) = tokio::join!(
            self.end_shim().instrument(debug_span!("shim")),
            self.detach().instrument(debug_span!("network")),
        );
        let let_go = (ended.is_ok(), detached.is_ok());
        let removed = match self.record.owns_cgroup {
            true => teardown::remove_cgroup(&self.core, self.sandbox.cgroup.clone()).await,
            false => Ok(()),
        };
        let passed = step(Point::STOP_CGROUP_REMOVED).await;
        let forgotten = self.forget_parts(let_go).await;
        ended.and(detached).and(removed).and(passed).and(forgotten)?;
        berth_failpoint::reached(Point::STOP_STOPPED).await;
        Ok(())
    }

    async fn halt_containers(&self) -> Vec<Error> {
        let containers = self.sandbox.members.made().into_iter();
        let containers = containers.filter_map(|id| self.core.containers.get(&id));
        let halting = containers.map(|container| async move { container.ask(Command::Halt).await });
        join_all(halting).await.into_iter().filter_map(Result::err).collect()
    }

    async fn end_shim(&self) -> Result<(), Error> {
        if self.record.shim.is_none() {
            return Ok(());
        }
        // Nobody may dial it any more; its end is not a loss.
        self.sandbox.shim.set(None);
        teardown::end_shim(&self.core, self.sandbox.id.clone(), self.record.shim.clone()).await?;
        step(Point::STOP_SHIM_ENDED).await
    }

    async fn detach(&self) -> Result<(), Error> {
        match &self.record.network {
            Some(network) => {
                teardown::detach(&self.core, self.sandbox.id.clone(), network.clone()).await?;
                step(Point::STOP_NETWORK_DETACHED).await
            }
            None => Ok(()),
        }
    }

    async fn forget_parts(&mut self, (shim, network): (bool, bool)) -> Result<(), Error> {
        let changes =
            (shim && self.record.shim.is_some()) || (network && self.record.network.is_some());
        if !changes {
            return Ok(());
        }
        self.change(Some(Point::STOP_PARTS_FORGOTTEN), |record| {
            if shim {
                record.shim = None;
            }
            if network {
                record.network = None;
            }
        })
        .await
    }
}
