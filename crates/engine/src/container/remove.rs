//! Created or Exited → (none).

use std::sync::atomic::Ordering;

use berth_failpoint::Point;
use berth_model::ErrorKind;
use berth_snapshot::SnapshotKey;
use tracing::{Instrument as _, debug_span};

use super::Container;
use super::driver::Driver;
use crate::core::{Core, step, step_blocking, warn_failure};
use crate::events::EventKind;
use crate::pending::Object;
use crate::sandbox::{Reply, answer, remove_cgroup};
use crate::undo::Step;
use crate::{Error, files, hooks};

impl Driver {
    /// Removes the container; all who want it get the same outcome. What fails is tried
    /// again, whether they ask again or not. Says whether it is gone.
    pub(super) async fn remove_for(&mut self, removers: Vec<Reply>) -> bool {
        let outcome = self.remove().instrument(debug_span!("remove_container")).await;
        let gone = outcome.is_ok();
        match &outcome {
            Ok(()) => self.unfinished.again.never(),
            Err(error) => self.unfinished.again.later("remove container", error),
        }
        let outcome = outcome.map_err(std::sync::Arc::new);
        for reply in removers {
            answer(reply, outcome.clone().map_err(Error::Shared));
        }
        gone
    }

    /// The record goes once nothing runs. Its files go afterwards, out of the client's
    /// sight: a file system may take its time, and what a crash leaves is swept. On a full
    /// disk they go first, so that there is room to store that it is gone.
    async fn remove(&mut self) -> Result<(), Error> {
        step(Point::REMOVE_CONTAINER_ENDED).await?;
        let cgroup = remove_cgroup(&self.core, self.container.cgroup.clone());
        cgroup.instrument(debug_span!("cgroup")).await?;
        step(Point::REMOVE_CONTAINER_CGROUP).await?;
        let id = self.container.id.clone();
        let passage = hooks::pass(&self.core, &id).await?;
        if !std::mem::replace(&mut self.told_gone, true) {
            hooks::remove_container(&self.core, &self.container).await;
        }
        match self.core.forget_container(&id).instrument(debug_span!("store")).await {
            Err(error) if error.kind() == ErrorKind::ResourceExhausted => {
                warn_failure("forget container; its files go first", &error);
                let (core, container) = (self.core.clone(), self.container.clone());
                self.core.disk.run(move || discard(&core, &container)).await??;
                self.core.forget_container(&id).await?;
            }
            other => other?,
        }
        step(Point::REMOVE_CONTAINER_FORGOTTEN).await?;
        self.core.containers.remove(&id);
        drop(passage);
        self.container.removed.store(true, Ordering::Release);
        self.core.forget_usage(&id, &self.container.cgroup);
        self.container.sandbox.members.release(&self.record.spec.name);
        self.core.tell(EventKind::Deleted, id.as_str(), &self.container.sandbox);
        berth_failpoint::reached(Point::REMOVE_CONTAINER_UNLISTED).await;
        self.discard_files();
        Ok(())
    }

    fn discard_files(&self) {
        let object = Object::new("container", &self.container.id);
        let step = Step::new("remove files", {
            let (core, container) = (self.core.clone(), self.container.clone());
            move || {
                let (core, container) = (core.clone(), container.clone());
                let cleaner = core.cleaner.clone();
                async move { cleaner.run(move || discard(&core, &container)).await? }
            }
        });
        let pending = self.core.pending.clone();
        let discard = async move {
            if let Err(error) = step.run().await {
                pending.take_step(object, step, error);
            }
        };
        // The request is answered before this is done, so it is no part of its span.
        let id = &self.container.id;
        let span = debug_span!(parent: None, "discard", container.id = %id);
        self.core.tasks.spawn(discard.instrument(span));
    }
}

/// Removes what is left of a container on disk. Blocks.
fn discard(core: &Core, container: &Container) -> Result<(), Error> {
    let removed = core.snapshots.remove(&SnapshotKey::from(&container.id));
    removed.map_err(|source| Error::Snapshot {
        action: "remove snapshot",
        key: container.id.to_string(),
        source,
    })?;
    step_blocking(Point::REMOVE_SNAPSHOT)?;
    files::remove_dir(&container.bundle)?;
    berth_failpoint::passed(Point::REMOVE_BUNDLE);
    Ok(())
}
