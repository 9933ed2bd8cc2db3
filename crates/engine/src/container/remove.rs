//! Created or Exited → (none).

use berth_snapshot::SnapshotKey;
use tracing::{Instrument as _, info_span};

use super::driver::Driver;
use crate::sandbox::{Reply, answer, clear_cgroup};
use crate::{Error, files};

impl Driver {
    /// Removes the container if somebody wants it; all of them get the same outcome.
    /// Says whether it is gone.
    pub(super) async fn remove_for(&mut self, removers: Vec<Reply>) -> bool {
        if removers.is_empty() {
            return false;
        }
        let outcome = self.remove().instrument(info_span!("remove_container")).await;
        let gone = outcome.is_ok();
        let outcome = outcome.map_err(std::sync::Arc::new);
        for reply in removers {
            answer(reply, outcome.clone().map_err(Error::Shared));
        }
        gone
    }

    /// Things first, the record last: what is left after a crash still has its record.
    async fn remove(&mut self) -> Result<(), Error> {
        let (core, container) = (self.core.clone(), self.container.clone());
        let work = move || {
            clear_cgroup(&core, &container.cgroup)?;
            core.snapshots.remove(&SnapshotKey::from(&container.id)).map_err(|source| {
                Error::Snapshot { action: "remove snapshot", key: container.id.to_string(), source }
            })?;
            files::remove_dir(&container.bundle)
        };
        self.core.disk.run(work).await??;
        let id = &self.container.id;
        self.core.forget_container(id).await?;
        self.core.containers.remove(id);
        self.core.forget_usage(id, &self.container.cgroup);
        self.container.sandbox.members.release(&self.record.spec.name);
        Ok(())
    }
}
