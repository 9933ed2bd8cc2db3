//! Ready → NotReady, because the shim died.

use std::sync::Arc;

use berth_metadata::SandboxPhase;

use super::driver::Driver;
use crate::Error;
use crate::core::{cgroup_error, warn_failure};

impl Driver {
    /// Kills what the shim can no longer answer for, and marks the sandbox. Each container
    /// notices by itself. Network and address stay until the sandbox is stopped.
    pub(super) async fn lost(&mut self) -> Result<(), Error> {
        tracing::warn!(counter.shim_deaths = 1, "shim is gone");
        self.sandbox.shim.set(None);
        if self.record.owns_cgroup
            && let Err(error) = self.kill_all().await
        {
            warn_failure("kill what the shim left", &error);
        }
        self.store_loss().await
    }

    pub(super) async fn store_loss(&mut self) -> Result<(), Error> {
        self.enter(SandboxPhase::NotReady).await
    }

    async fn kill_all(&self) -> Result<(), Error> {
        let (core, path) = (Arc::clone(&self.core), self.sandbox.cgroup.clone());
        let kill = move || match core.cgroup(&path)? {
            Some(cgroup) => cgroup.kill_all().map_err(cgroup_error("kill processes of", &path)),
            None => Ok(()),
        };
        self.core.disk.run(kill).await?
    }
}
