//! The ttrpc services: they translate, and leave the rest to [`Shim`].

mod extension;
mod metrics;
mod sandbox;
mod task;

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use ttrpc::asynchronous::Service;

use crate::shim::Shim;

/// The generated service speaks v3; v2 has the same messages under its own name.
const TASK_V3: &str = "containerd.task.v3.Task";
const TASK_V2: &str = "containerd.task.v2.Task";

/// Every service of the shim, by its full name.
pub(crate) fn all(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let task = || create_task(Arc::new(task::TaskService(Arc::clone(shim))));
    let mut services = task();
    if let Some(same) = task().remove(TASK_V3) {
        services.insert(TASK_V2.to_owned(), same);
    }
    services.extend(create_sandbox(Arc::new(sandbox::SandboxService(Arc::clone(shim)))));
    services.extend(extension::create(shim));
    services
}
