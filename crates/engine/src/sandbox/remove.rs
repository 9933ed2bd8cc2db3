//! Any state → (none).

use std::sync::atomic::Ordering;

use berth_failpoint::Point;
use futures_util::future::join_all;
use tracing::{Instrument as _, debug_span};

use super::driver::Driver;
use super::teardown;
use crate::container::Command;
use crate::core::step;
use crate::events::EventKind;
use crate::{Error, hooks};

impl Driver {
    /// Stops what is not stopped, then forgets the containers and the sandbox.
    pub(super) async fn remove(&mut self) -> Result<(), Error> {
        self.stop().await?;
        step(Point::REMOVE_SANDBOX_STOPPED).await?;
        let containers = self.sandbox.members.made().into_iter();
        let containers = containers.filter_map(|id| self.core.containers.get(&id));
        let removing =
            containers.map(|container| async move { container.ask(Command::Remove).await });
        if let Some(failure) = join_all(removing).await.into_iter().find_map(Result::err) {
            return Err(failure);
        }
        step(Point::REMOVE_CONTAINERS).await?;
        let passage = hooks::pass(&self.core, &self.sandbox.id).await?;
        if !std::mem::replace(&mut self.told.gone, true) {
            hooks::remove_sandbox(&self.core, &self.sandbox).await;
        }
        let directory = teardown::remove_dir(&self.core, self.sandbox.dir.clone());
        directory.instrument(debug_span!("directory")).await?;
        step(Point::REMOVE_SANDBOX_DIRECTORY).await?;
        self.core.forget_sandbox(&self.sandbox.id).instrument(debug_span!("store")).await?;
        step(Point::REMOVE_SANDBOX_FORGOTTEN).await?;
        self.core.sandboxes.remove(&self.sandbox.id);
        drop(passage);
        self.core.names.release(&self.sandbox.spec.name);
        self.core.tell(EventKind::Deleted, self.sandbox.id.as_str(), &self.sandbox);
        self.sandbox.removed.store(true, Ordering::Release);
        self.core.sampler.forget(&self.sandbox.cgroup);
        self.core.interfaces.forget(&self.sandbox.id);
        berth_failpoint::reached(Point::REMOVE_SANDBOX_UNLISTED).await;
        Ok(())
    }
}
