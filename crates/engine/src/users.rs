//! Pods with users of their own (KEP-127).

use berth_model::mount::Propagation;
use berth_model::{ContainerSpec, IdMappings};
use berth_spec::user::ResolvedUser;

use crate::Error;
use crate::core::Core;

/// Whether this node can run them; why not, if it cannot. The kernel and the file system of
/// the layers are asked once, by a program that enters a user namespace.
pub(crate) async fn probe(core: &Core) -> Result<(), String> {
    let asked = core.users.get_or_init(|| async {
        let Some((_, config)) = core.config.runtime("") else { return Ok(()) };
        let layers = core.snapshots.root().join("l");
        let asked = berth_shim_client::probe_namespaces(&core.runtime(config), &layers).await;
        asked.map_err(|source| {
            let error =
                Error::Shim { action: "ask for user namespaces", id: String::new(), source };
            let why = error.told();
            tracing::info!(why, "no pods with users of their own");
            why
        })
    });
    asked.await.clone()
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
