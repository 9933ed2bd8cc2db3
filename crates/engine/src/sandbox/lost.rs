//! Ready → NotReady, because the shim died.

use berth_metadata::SandboxPhase;

use super::driver::Driver;
use crate::core::{cgroup_error, warn_failure};

impl Driver {
    /// Marks the sandbox and kills what its shim can no longer answer for. Each container
    /// notices by itself. Network and address stay until the sandbox is stopped.
    pub(super) async fn lost(&mut self) {
        tracing::warn!("shim is gone");
        self.sandbox.shim.set(None);
        if let Err(error) = self.enter(SandboxPhase::NotReady).await {
            warn_failure("store that the shim is gone", &error);
        }
        if !self.record.owns_cgroup {
            return;
        }
        let killed = self.core.cgroup(&self.sandbox.cgroup).and_then(|cgroup| match cgroup {
            Some(cgroup) => {
                cgroup.kill_all().map_err(cgroup_error("kill processes of", &self.sandbox.cgroup))
            }
            None => Ok(()),
        });
        if let Err(error) = killed {
            warn_failure("kill what the shim left", &error);
        }
    }
}
