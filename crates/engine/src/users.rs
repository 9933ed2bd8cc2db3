//! Pods with users of their own (KEP-127).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_model::mount::Propagation;
use berth_model::{ContainerSpec, IdMappings};
use berth_shim_client::Error as Failure;
use berth_spec::user::ResolvedUser;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::Error;
use crate::core::Core;

/// How long the kernel's refusal is good: `user.max_user_namespaces`, memory and a security
/// module are no more lasting, and clients ask every few seconds.
const REFUSED: Duration = Duration::from_secs(60);

/// How long a failure to ask is told again: who asks meanwhile does not wait for it as well.
const UNANSWERED: Duration = Duration::from_secs(10);

/// Whether pods can have users of their own, as far as that was asked.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// The kernel and the file system of the layers do not unlearn it.
    can: OnceCell<()>,
    /// Why they could not, and until when that is good.
    refused: Mutex<Option<(String, Instant)>>,
}

impl Users {
    /// What `ask` answers, or has answered. Those that ask at one time wait for one answer.
    async fn asked(&self, ask: impl AsyncFnOnce() -> Result<(), Failure>) -> Result<(), String> {
        let asked = self.can.get_or_try_init(|| async {
            if let Some(why) = self.refused() {
                return Err(why);
            }
            let Err(source) = ask().await else { return Ok(()) };
            let good = match source {
                Failure::Refused { .. } => REFUSED,
                _ => UNANSWERED,
            };
            let action = "ask for user namespaces";
            let why = Error::Shim { action, id: String::new(), source }.told();
            tracing::info!(why, "no pods with users of their own");
            *self.lock() = Some((why.clone(), Instant::now() + good));
            Err(why)
        });
        asked.await.copied()
    }

    fn refused(&self) -> Option<String> {
        let mut refused = self.lock();
        refused.take_if(|(_, until)| *until <= Instant::now());
        refused.as_ref().map(|(why, _)| why.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(String, Instant)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this node can run them; why not, if it cannot. The kernel and the file system of
/// the layers are asked by a program that enters a user namespace.
pub(crate) async fn probe(core: &Core) -> Result<(), String> {
    let asked = core.users.asked(async || {
        let Some((_, config)) = core.config.runtime("") else { return Ok(()) };
        let layers = core.snapshots.root().join("l");
        berth_shim_client::probe_namespaces(&core.runtime(config), &layers).await
    });
    asked.await
}

/// Refuses a pod with users of its own where they cannot be.
pub(crate) async fn check(core: &Core) -> Result<(), Error> {
    probe(core).await.map_err(|why| Error::Unsupported(format!("a user namespace ({why})")))
}

/// Refuses what a container with these users cannot have.
pub(crate) fn check_container(
    spec: &ContainerSpec,
    user: &ResolvedUser,
    ids: &IdMappings,
) -> Result<(), Error> {
    let unmapped = |kind: &str, id: u32| {
        Error::invalid("user", format!("{kind} {id} is not one of the pod's own"))
    };
    if ids.host_uid(user.uid).is_none() {
        return Err(unmapped("user", user.uid));
    }
    let mut groups = user.groups.iter().chain([&user.gid]);
    if let Some(group) = groups.find(|group| ids.host_gid(**group).is_none()) {
        return Err(unmapped("group", *group));
    }
    for mount in &spec.mounts {
        let at = mount.container_path.display();
        if mount.propagation == Propagation::Bidirectional {
            // What its root mounts must not show on the node.
            let problem = format!("{at}: bidirectional propagation needs the node's users");
            return Err(Error::invalid("mount", problem));
        }
        if mount.image.is_some() && mount.ids.as_ref().is_some_and(|asked| asked != ids) {
            let problem = format!("{at}: an image shows its ids as the pod's users");
            return Err(Error::invalid("mount", problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(users: &Users, answer: Result<(), Failure>) -> Result<(), String> {
        users.asked(async || answer).await
    }

    fn refused() -> Failure {
        let (id, action, status) = (String::new(), "probe", 1);
        Failure::Refused { id, action, status, output: "no overlay there".into() }
    }

    fn late() -> Failure {
        Failure::Unanswered { id: String::new(), action: "probe", deadline: REFUSED }
    }

    /// teeth: crates/engine/src/users.rs: `_ => UNANSWERED` → `_ => REFUSED`
    #[tokio::test(start_paused = true)]
    async fn a_failure_is_kept_for_a_moment_and_a_refusal_not_for_ever() {
        let users = Users::default();
        let why = ask(&users, Err(late())).await.unwrap_err();
        assert_eq!(ask(&users, Ok(())).await, Err(why), "kept: the next does not wait as well");
        tokio::time::advance(UNANSWERED).await;
        let why = ask(&users, Err(refused())).await.unwrap_err();
        assert!(why.contains("no overlay there"), "{why}");
        assert_eq!(ask(&users, Ok(())).await, Err(why), "kept");
        tokio::time::advance(REFUSED).await;
        ask(&users, Ok(())).await.unwrap();
        ask(&users, Err(refused())).await.unwrap();
    }
}
