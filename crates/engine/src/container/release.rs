//! Has the shim forget what has ended, or must end now.

use std::sync::Arc;
use std::time::Duration;

use berth_cgroup::CgroupPath;
use berth_failpoint::Point;
use berth_model::{ContainerId, ErrorKind};
use berth_shim_client::Shim;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, debug_span};

use super::decide::SHIM_ANSWER;
use super::driver::Driver;
use crate::Error;
use crate::core::{Core, step, warn_failure};
use crate::pending::Object;
use crate::sandbox::remove_cgroup;
use crate::undo::Step;

/// How long a shim may take to forget a task while somebody waits for it.
const RELEASE: Duration = Duration::from_secs(5);
/// Pause before a shim is asked again that has to see the end of a process first.
const PAUSE: Duration = Duration::from_millis(10);

impl Driver {
    /// Has the shim forget the task, and with it mounts and cgroup. Only what has ended,
    /// or must end now. A shim that does not answer is asked again in the background.
    pub(super) async fn release_task(&mut self) {
        if !std::mem::take(&mut self.task) {
            return;
        }
        let (id, cgroup) = (&self.container.id, &self.container.cgroup);
        if let Some(shim) = self.container.sandbox.shim.get() {
            match forget(&shim, id, RELEASE).instrument(debug_span!("task_delete")).await {
                Ok(()) => {
                    if let Err(error) = step(Point::STOP_TASK_DELETED).await {
                        warn_failure("delete task", &error);
                    }
                }
                Err(error) => {
                    let step = forget_later(&self.core, shim, id.clone(), cgroup.clone());
                    self.core.pending.take_step(Object::new("container", id), step, error);
                }
            }
        }
        // The shim has removed it, unless it forgot or is gone.
        if let Err(error) = remove_cgroup(&self.core, cgroup.clone()).await {
            warn_failure("remove cgroup of container", &error);
        }
    }
}

/// Deletes the task, having killed what it has left, within `limit`. A shim that is
/// silent is not waited for, and one that is gone has no task.
pub(super) async fn forget(shim: &Shim, id: &ContainerId, limit: Duration) -> Result<(), Error> {
    let late = || Error::Deadline { what: format!("delete task of {id}"), limit };
    if shim.is_silent() {
        return Err(late());
    }
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let refused = match timeout(left, shim.delete(id)).await {
            Err(_) => return Err(late()),
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound || error.is_gone() => {
                return Ok(());
            }
            Ok(Err(error)) => error,
        };
        // It runs still, as far as the shim knows, or is being made.
        let again = refused.kind() == ErrorKind::FailedPrecondition && left > PAUSE;
        if !again {
            let id = id.to_string();
            return Err(Error::Shim { action: "delete task of", id, source: refused });
        }
        // One that is dead already is what this wants.
        let _dead = shim.kill(id, Signal::SIGKILL as i32, true, SHIM_ANSWER).await;
        sleep(PAUSE).await;
    }
}

/// As [`forget`], when nobody waits for it; then the cgroup, which the shim may have made
/// after it was removed.
fn forget_later(core: &Arc<Core>, shim: Shim, id: ContainerId, cgroup: CgroupPath) -> Step {
    let core = Arc::clone(core);
    Step::new("delete task", move || {
        let (core, shim, id, cgroup) = (core.clone(), shim.clone(), id.clone(), cgroup.clone());
        async move {
            // Any answer shows that it is not silent any more.
            let _heard = shim.state(&id).await;
            forget(&shim, &id, RELEASE).await?;
            remove_cgroup(&core, cgroup).await
        }
    })
}
