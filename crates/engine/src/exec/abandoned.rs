//! Commands of a daemon that died: nobody waits for them any more.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use berth_model::{ContainerId, ExecId};

use super::{Directory, OF, Session};
use crate::core::{Core, warn_failure};

/// Most commands that are looked at.
const MAX_COMMANDS: usize = 100_000;

/// Ends them in the background; returns the names of the directories that go with them.
pub(crate) async fn end_abandoned(core: &Arc<Core>) -> HashSet<String> {
    let dir = core.config.execs();
    let found = match core.disk.run(move || commands(&dir)).await {
        Ok(found) => found,
        Err(error) => {
            warn_failure("find commands of a daemon that died", &error);
            return HashSet::new();
        }
    };
    let mut ending = HashSet::new();
    for (exec, container) in found {
        let running = core.containers.get(&container);
        let Some(shim) = running.and_then(|container| container.sandbox.shim.get()) else {
            continue;
        };
        tracing::warn!(container.id = %container, "sweep: command that nobody waits for");
        ending.insert(exec.as_str().to_owned());
        let path = core.config.execs().join(exec.as_str());
        let dir = Directory { path, container: container.clone(), over: Arc::default() };
        let core = Arc::clone(core);
        // What drops it takes it back.
        drop(Session { core, shim, container, exec, dir, known: true, ended: false });
    }
    ending
}

/// What was run in which container, as far as the directories say.
fn commands(dir: &Path) -> Vec<(ExecId, ContainerId)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_COMMANDS);
    let command = |entry: std::fs::DirEntry| {
        let of = std::fs::read_link(entry.path().join(OF)).ok()?;
        let exec = ExecId::new(entry.file_name().into_string().ok()?).ok()?;
        Some((exec, ContainerId::new(of.to_str()?).ok()?))
    };
    entries.filter_map(command).collect()
}
