//! New limits: all of them are in force when the client is told so, or none.
//!
//! Decided first (what is asked for must make sense beside what there is), then stored as
//! wanted, then given to the kernel, then stored as had, then published. A daemon that was
//! killed amid this is followed by one that begins it anew. A kernel may take long to make
//! room for less memory, so this goes on beside the driver, which stops and removes the
//! container meanwhile, and on threads that nothing else waits for. A
//! container that is still to be started gets them in its specification; of one that has
//! ended only the record changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use berth_failpoint::Point;
use berth_metadata::ContainerRecord;
use berth_model::ContainerState;
use berth_model::container::Resources;
use berth_spec::ChangedLimits;
use tracing::{Instrument as _, debug_span};

use super::driver::Driver;
use super::limits::{self, Former};
use super::status_of;
use crate::Error;
use crate::core::{Core, step, step_blocking, warn_failure};
use crate::sandbox::{Reply, answer};
use crate::worker::{Place, Pool};

/// Gives the kernel new limits, and says how it was before.
type Work = Pin<Box<dyn Future<Output = Result<Former, Error>> + Send>>;

/// New limits that wait for those before them, and for a thread.
pub(super) struct Change {
    wanted: Resources,
    /// Nobody, if the daemon before this one was killed amid it.
    reply: Option<Reply>,
}

impl Change {
    pub(super) fn asked(wanted: Resources, reply: Reply) -> Self {
        Self { wanted, reply: Some(reply) }
    }

    /// What may be in force, in part or not at all.
    pub(super) fn cut_off(wanted: Resources) -> Self {
        Self { wanted, reply: None }
    }

    pub(super) fn into_reply(self) -> Option<Reply> {
        self.reply
    }
}

/// New limits on their way.
pub(super) struct Updating {
    limits: Resources,
    reply: Option<Reply>,
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

    pub(super) fn into_reply(self) -> Option<Reply> {
        self.reply
    }
}

/// The limits of a container now.
pub(crate) fn limits_of(record: &ContainerRecord) -> &Resources {
    record.limits.as_ref().unwrap_or(&record.spec.resources)
}

/// A thread for the oldest change that waits; never without one.
pub(super) async fn place(pool: Option<&Pool>) -> Result<Place, Error> {
    match pool {
        Some(pool) => pool.place().await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// Where the oldest change of limits is to be made, if there is one and it may begin.
    pub(super) fn update_pool(&self) -> Option<Pool> {
        if self.updating.is_some() || self.starting.is_some() {
            return None;
        }
        let now = limits_of(&self.record);
        let new = now.changed(&self.updates.front()?.wanted);
        let runs = matches!(self.record.state, ContainerState::Running { .. });
        let pool = if runs && makes_room(now, &new) { &self.core.reclaim } else { &self.core.disk };
        Some(pool.clone())
    }

    /// Begins the oldest change of limits that waits.
    pub(super) async fn update_next(&mut self, place: Result<Place, Error>) {
        let Some(Change { wanted, reply }) = self.updates.pop_front() else { return };
        // Who gave up has been told that it was not made.
        if reply.as_ref().is_some_and(Reply::is_closed) {
            return;
        }
        let begun = match place {
            Ok(place) => self.update(place, &wanted, reply.is_none()).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok((limits, work)) => {
                self.updating = Some(Updating { limits, reply, work });
                if !matches!(self.record.state, ContainerState::Running { .. }) {
                    // A file, which a start would read meanwhile.
                    let outcome = Updating::outcome(&mut self.updating).await;
                    self.updated(outcome).await;
                }
            }
            Err(error) => self.not_updated(reply, error).await,
        }
    }

    async fn update(
        &mut self,
        place: Place,
        change: &Resources,
        cut_off: bool,
    ) -> Result<(Resources, Work), Error> {
        let id = || self.container.id.clone();
        if self.unfinished.removal {
            let state = "being removed";
            return Err(Error::ContainerState { verb: "update", id: id(), state });
        }
        let now = limits_of(&self.record);
        let new = now.changed(change);
        let limits = |of: &Resources| {
            let limits = berth_spec::changed_limits(of, self.core.defaults.get().swap_accounting);
            let name = || self.record.spec.name.name.clone();
            limits.map_err(|source| Error::Spec { name: name(), source })
        };
        let wanted = limits(&new)?;
        // What is half in force is taken back, as far as the record names limits at all.
        let former = if cut_off { Some(limits(now)?) } else { None };
        let score_changes = new.oom_score_adj != now.oom_score_adj;
        let (core, container) = (Arc::clone(&self.core), Arc::clone(&self.container));
        let state = self.record.state.clone();
        let give = move |wanted: &ChangedLimits| match state {
            ContainerState::Created => limits::rewrite(&container.bundle, wanted),
            _ => limits::change(&core, &container, wanted, score_changes),
        };
        let over = self.is_over();
        if !over {
            self.intend(&new).await?;
        }
        let work = move || {
            if over {
                return Ok(Former::default());
            }
            let given = step_blocking(Point::UPDATE_BEGUN).and_then(|()| give(&wanted));
            if given.is_err()
                && let Some(former) = former
                && let Err(error) = give(&former)
            {
                warn_failure("put limits back that a daemon was killed amid", &error);
            }
            given
        };
        let work = async move { place.run(work).await? };
        Ok((new, Box::pin(work.instrument(debug_span!("limits")))))
    }

    /// Stores what is wanted, for who comes after a daemon that is killed now.
    async fn intend(&mut self, new: &Resources) -> Result<(), Error> {
        if self.record.changing.as_ref() == Some(new) {
            return Ok(());
        }
        let record = ContainerRecord { changing: Some(new.clone()), ..self.record.clone() };
        let stored = self.core.save_container(&record).await;
        self.record = record;
        stored
    }

    /// Stores what is in force now, or has it put back.
    pub(super) async fn updated(&mut self, outcome: Result<Former, Error>) {
        let Some(Updating { limits, reply, .. }) = self.updating.take() else { return };
        let former = match outcome {
            Ok(former) => former,
            // It ended meanwhile, and its cgroup is gone: there is nothing to limit.
            Err(_) if self.is_over() => Former::default(),
            Err(error) => return self.not_updated(reply, error).await,
        };
        let record =
            ContainerRecord { limits: Some(limits), changing: None, ..self.record.clone() };
        let stored = match step(Point::UPDATE_IN_FORCE).await {
            Ok(()) => self.core.save_container(&record).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            if reply.is_some() {
                put_back(&self.core, former).await;
            }
            return self.not_updated(reply, error).await;
        }
        self.record = record;
        berth_failpoint::reached(Point::UPDATE_STORED).await;
        let spec = Arc::clone(&self.container.status.get().spec);
        self.container.status.set(Arc::new(status_of(&self.record, spec)));
        if let Some(reply) = reply {
            answer(reply, Ok(()));
        }
    }

    /// Nothing is wanted any more, and the former limits are in force. Of what a daemon before
    /// this one had begun that is not sure (what it had written may be in nobody's record): it
    /// stays wanted, until the next daemon or the next change.
    async fn not_updated(&mut self, reply: Option<Reply>, error: Error) {
        let Some(reply) = reply else {
            return warn_failure("put limits in force that a daemon was killed amid", &error);
        };
        if self.record.changing.take().is_some() {
            self.restore().await;
        }
        answer(reply, Err(error));
    }
}

/// Whether a kernel first has to make room before these are in force: cgroup v1 reclaims
/// within the write, v2 for some of the files that a request may name as well.
fn makes_room(now: &Resources, new: &Resources) -> bool {
    let less = |now: i64, new: i64| new > 0 && (now <= 0 || new < now);
    less(now.memory_limit, new.memory_limit)
        || less(now.memory_swap_limit, new.memory_swap_limit)
        || now.unified != new.unified
}

async fn put_back(core: &Core, former: Former) {
    let restored = core.disk.run(move || former.restore()).await;
    if let Err(error) = restored.flatten() {
        warn_failure("put limits back that were not stored", &error);
    }
}
