//! New limits: all of them are in force when the client is told so, or none.
//!
//! Decided first (what is asked for must make sense beside what there is), then given to the
//! kernel, then stored, then published. A kernel may take long to make room for less memory,
//! so this goes on beside the driver, which stops and removes the container meanwhile. A
//! container that is still to be started gets them in its specification; of one that has
//! ended only the record changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use berth_metadata::ContainerRecord;
use berth_model::ContainerState;
use berth_model::container::Resources;
use tracing::{Instrument as _, debug_span};

use super::driver::Driver;
use super::limits::{self, Former};
use super::status_of;
use crate::Error;
use crate::core::{Core, warn_failure};
use crate::sandbox::{Reply, answer};

/// Gives the kernel new limits, and says how it was before.
type Work = Pin<Box<dyn Future<Output = Result<Former, Error>> + Send>>;

/// New limits on their way.
pub(super) struct Updating {
    limits: Resources,
    reply: Reply,
    work: Work,
}

impl Updating {
    /// What came of it; never without one.
    pub(super) async fn outcome(updating: &mut Option<Self>) -> Result<Former, Error> {
        match updating {
            Some(updating) => (&mut updating.work).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn into_reply(self) -> Reply {
        self.reply
    }
}

/// The limits of a container now.
pub(crate) fn limits_of(record: &ContainerRecord) -> &Resources {
    record.limits.as_ref().unwrap_or(&record.spec.resources)
}

impl Driver {
    /// Begins the oldest change of limits that waits, unless it has to wait on.
    pub(super) async fn update_next(&mut self) {
        if self.updating.is_some() || self.starting.is_some() {
            return;
        }
        let Some((change, reply)) = self.updates.pop_front() else { return };
        match self.update(&change) {
            Ok((limits, work)) => {
                self.updating = Some(Updating { limits, reply, work });
                if !matches!(self.record.state, ContainerState::Running { .. }) {
                    // A file, which a start would read meanwhile.
                    let outcome = Updating::outcome(&mut self.updating).await;
                    self.updated(outcome).await;
                }
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn update(&self, change: &Resources) -> Result<(Resources, Work), Error> {
        let id = || self.container.id.clone();
        if self.unfinished.removal {
            let state = "being removed";
            return Err(Error::ContainerState { verb: "update", id: id(), state });
        }
        let now = limits_of(&self.record);
        let new = now.changed(change);
        let wanted = berth_spec::changed_limits(&new, self.core.defaults.get().swap_accounting);
        let name = self.record.spec.name.name.clone();
        let wanted = wanted.map_err(|source| Error::Spec { name, source })?;
        let score_changes = new.oom_score_adj != now.oom_score_adj;
        let (core, container) = (Arc::clone(&self.core), Arc::clone(&self.container));
        let state = self.record.state.clone();
        let over = self.is_over();
        let work = move || match state {
            ContainerState::Created if !over => limits::rewrite(&container.bundle, &wanted),
            ContainerState::Running { .. } if !over => {
                limits::change(&core, &container, &wanted, score_changes)
            }
            _ => Ok(Former::default()),
        };
        let disk = self.core.disk.clone();
        let work = async move { disk.run(work).await? };
        Ok((new, Box::pin(work.instrument(debug_span!("limits")))))
    }

    /// Stores what is in force now, or has it put back.
    pub(super) async fn updated(&mut self, outcome: Result<Former, Error>) {
        let Some(Updating { limits, reply, .. }) = self.updating.take() else { return };
        let former = match outcome {
            Ok(former) => former,
            // It ended meanwhile, and its cgroup is gone: there is nothing to limit.
            Err(_) if self.is_over() => Former::default(),
            Err(error) => return answer(reply, Err(error)),
        };
        let record = ContainerRecord { limits: Some(limits), ..self.record.clone() };
        let stored = self.core.save_container(&record).await;
        if let Err(error) = stored {
            put_back(&self.core, former).await;
            return answer(reply, Err(error));
        }
        self.record = record;
        let spec = Arc::clone(&self.container.status.get().spec);
        self.container.status.set(Arc::new(status_of(&self.record, spec)));
        answer(reply, Ok(()));
    }
}

async fn put_back(core: &Core, former: Former) {
    let restored = core.disk.run(move || former.restore()).await;
    if let Err(error) = restored.flatten() {
        warn_failure("put limits back that were not stored", &error);
    }
}
