//! Whose a parent cgroup is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_cgroup::CgroupPath;
use berth_model::SandboxId;

/// Which ready sandboxes have each parent cgroup. kubelet makes one for each pod, so that what
/// it says is the pod's, overhead included; other clients give several pods the same. What one
/// that is stopped has left there until it is gone is told as the other's.
#[derive(Debug, Default)]
pub(crate) struct Parents(Mutex<HashMap<CgroupPath, Vec<SandboxId>>>);

impl Parents {
    /// Takes note of a ready sandbox, before it is published: no other one is then told what it
    /// uses as its own.
    pub(crate) fn add(&self, parent: &CgroupPath, id: &SandboxId) {
        let mut all = self.lock();
        let those = all.entry(parent.clone()).or_default();
        if !those.contains(id) {
            those.push(id.clone());
        }
    }

    /// Takes note, after it is published, that a sandbox is not ready; nothing if that is known.
    pub(crate) fn remove(&self, parent: &CgroupPath, id: &SandboxId) {
        let mut all = self.lock();
        let Some(those) = all.get_mut(parent) else { return };
        those.retain(|other| other != id);
        if those.is_empty() {
            all.remove(parent);
            // As with `Board`.
            if all.capacity() > 64 && all.len() < all.capacity() / 4 {
                all.shrink_to_fit();
            }
        }
    }

    /// Whether the sandbox is ready, and no other one with that parent is.
    pub(super) fn is_own(&self, parent: &CgroupPath, id: &SandboxId) -> bool {
        self.lock()
            .get(parent)
            .is_some_and(|those| matches!(those.as_slice(), [only] if only == id))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CgroupPath, Vec<SandboxId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/engine/src/stats/parents.rs: `[only] if only == id` → `[only, ..] if only == id`
    #[test]
    fn a_parent_is_the_own_of_one_ready_sandbox_alone() {
        let parents = Parents::default();
        let path = |path| CgroupPath::new(path).unwrap();
        let id = |id: &str| SandboxId::new(id).unwrap();
        let own = |parent, name| parents.is_own(&path(parent), &id(name));
        assert!(!own("/pod", "a"));
        parents.add(&path("/pod"), &id("a"));
        parents.add(&path("/pod"), &id("a"));
        parents.add(&path("/other"), &id("c"));
        assert!(own("/pod", "a") && own("/other", "c") && !own("/pod", "b"));
        parents.add(&path("/pod"), &id("b"));
        assert!(!own("/pod", "a") && !own("/pod", "b") && own("/other", "c"));
        parents.remove(&path("/pod"), &id("a"));
        assert!(own("/pod", "b") && !own("/pod", "a"));
        for (parent, name) in [("/pod", "b"), ("/other", "c"), ("/none", "d")] {
            parents.remove(&path(parent), &id(name));
        }
        assert!(parents.lock().is_empty());
    }
}
