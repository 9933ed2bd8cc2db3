//! Create, start, stop, remove and describe containers.

use std::sync::Arc;
use std::time::Duration;

use berth_api::v1::*;
use berth_engine::Engine;
use berth_model::ContainerSpec;
use berth_model::container::Security;
use berth_model::sandbox::{NamespaceMode, NamespaceOptions};
use serde_json::{Value, json};
use tracing::Span;

use crate::translate::{container_spec, container_status, refuse_windows, wanted};
use crate::{Error, ids, node};

pub(crate) async fn create(
    engine: &Engine,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Error> {
    let sandbox = ids::sandbox(engine, "pod_sandbox_id", &request.pod_sandbox_id)?;
    let mut spec = container_spec(&request)?;
    let has = Arc::clone(&engine.sandbox(&sandbox)?.spec);
    within(&spec.security.namespaces, &has.namespaces)?;
    same_users(&request, &spec.security.namespaces, &has.namespaces)?;
    check_privileged(&request, spec.security.privileged, has.privileged)?;
    as_the_sandbox(&mut spec.security, &has.namespaces);
    Span::current().record("image.ref", &spec.image);
    if let NamespaceMode::Target(target) = &mut spec.security.namespaces.pid {
        let field = "config.linux.security_context.namespace_options.target_id";
        let id = ids::container(engine, field, target)?;
        *target = id.into();
    }
    let created = engine.create_container(&sandbox, spec).await;
    let id = created.map_err(|error| match error.is_image_volume() {
        true => Error::ImageVolumeMountFailed(error),
        false => error.into(),
    })?;
    Span::current().record("container.id", id.as_str());
    Ok(CreateContainerResponse { container_id: id.into() })
}

/// Refuses the node's namespaces in a sandbox that has its own: network and IPC are the
/// sandbox's whatever a container asks for, and processes of the node are not shown in it.
/// POD, the default, is what the sandbox has, be it the node's.
fn within(asked: &NamespaceOptions, sandbox: &NamespaceOptions) -> Result<(), Error> {
    for (kind, asked, has) in [
        ("network", &asked.network, &sandbox.network),
        ("pid", &asked.pid, &sandbox.pid),
        ("ipc", &asked.ipc, &sandbox.ipc),
    ] {
        if *asked == NamespaceMode::Node && *has != NamespaceMode::Node {
            let field = format!("config.linux.security_context.namespace_options.{kind}");
            return Err(Error::invalid(field, "is NODE, and the sandbox has its own"));
        }
    }
    Ok(())
}

/// Users are the sandbox's: what a container says of them has to be the same.
fn same_users(
    request: &CreateContainerRequest,
    asked: &NamespaceOptions,
    sandbox: &NamespaceOptions,
) -> Result<(), Error> {
    let config = request.config.as_ref().and_then(|config| config.linux.as_ref());
    let security = config.and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.as_ref());
    let said = options.is_some_and(|options| options.userns_options.is_some());
    if said && asked.user != sandbox.user {
        let field = "config.linux.security_context.namespace_options.userns_options";
        return Err(Error::invalid(field, "is not that of the sandbox"));
    }
    Ok(())
}

/// Refuses a privileged container in a sandbox that is not. kubelet says in the request what
/// the sandbox would be now: an ephemeral container may make it privileged.
fn check_privileged(
    request: &CreateContainerRequest,
    container: bool,
    sandbox: bool,
) -> Result<(), Error> {
    let config = request.sandbox_config.as_ref().and_then(|config| config.linux.as_ref());
    let now = config.and_then(|linux| linux.security_context.as_ref());
    if container && !sandbox && !now.is_some_and(|security| security.privileged) {
        let field = "config.linux.security_context.privileged";
        return Err(Error::invalid(field, "needs a privileged sandbox"));
    }
    Ok(())
}

/// What a container has of its sandbox: its users and, where it asks for no other, its
/// processes. With users of its own an empty list of paths means none (`procMount: Unmasked`);
/// else it cannot be told from an absent one.
fn as_the_sandbox(security: &mut Security, sandbox: &NamespaceOptions) {
    let namespaces = &mut security.namespaces;
    namespaces.user.clone_from(&sandbox.user);
    if namespaces.pid == NamespaceMode::Pod {
        namespaces.pid.clone_from(&sandbox.pid);
    }
    let says_nothing = security.masked_paths.is_none() && security.readonly_paths.is_none();
    if sandbox.user.is_some() && says_nothing {
        security.masked_paths = Some(Vec::new());
        security.readonly_paths = Some(Vec::new());
    }
}

pub(crate) async fn start(
    engine: &Engine,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Error> {
    let id = ids::container(engine, "container_id", &request.container_id)?;
    engine.start_container(&id).await?;
    Ok(StartContainerResponse {})
}

pub(crate) async fn stop(
    engine: &Engine,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Error> {
    let grace = seconds("timeout", request.timeout)?;
    let id = ids::container(engine, "container_id", &request.container_id);
    if let Some(id) = ids::if_exists(id)? {
        engine.stop_container(&id, grace).await?;
    }
    Ok(StopContainerResponse {})
}

pub(crate) async fn remove(
    engine: &Engine,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Error> {
    let id = ids::container(engine, "container_id", &request.container_id);
    if let Some(id) = ids::if_exists(id)? {
        engine.remove_container(&id).await?;
    }
    Ok(RemoveContainerResponse {})
}

pub(crate) async fn status(
    engine: &Engine,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Error> {
    let id = ids::container(engine, "container_id", &request.container_id)?;
    let status = engine.container(&id)?;
    let info = request.verbose.then(|| {
        node::info(&json!({
            "sandboxID": status.sandbox,
            "pid": status.pid().unwrap_or(0),
            "request": without_secrets(&status.spec),
        }))
    });
    let status = Some(container_status(&status));
    Ok(ContainerStatusResponse { status, info: info.unwrap_or_default() })
}

/// Annotations are for plugins; policy comes from fields alone.
pub(crate) async fn update(
    engine: &Engine,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Error> {
    refuse_windows("windows", request.windows.as_ref())?;
    let id = ids::container(engine, "container_id", &request.container_id)?;
    engine.update_container(&id, wanted(request.linux.as_ref())).await?;
    Ok(UpdateContainerResourcesResponse {})
}

pub(crate) async fn reopen_log(
    engine: &Engine,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, Error> {
    let id = ids::container(engine, "container_id", &request.container_id)?;
    engine.reopen_log(&id).await?;
    Ok(ReopenContainerLogResponse {})
}

/// A duration in whole seconds, as the CRI gives them.
pub(crate) fn seconds(field: &'static str, value: i64) -> Result<Duration, Error> {
    let seconds = u64::try_from(value);
    seconds.map(Duration::from_secs).map_err(|_| Error::invalid(field, "is negative"))
}

/// What was asked for, for people; of the environment the names only.
fn without_secrets(spec: &ContainerSpec) -> Value {
    let mut config = json!(spec);
    let names: Vec<_> = spec.env.iter().map(|variable| &variable.name).collect();
    config["env"] = json!(names);
    config
}

#[cfg(test)]
mod tests {
    use berth_model::container::EnvVar;

    use super::*;

    #[test]
    fn a_verbose_status_does_not_show_what_the_environment_holds() {
        let value = b"hunter2".to_vec();
        let env = vec![EnvVar { name: "PASSWORD".to_owned(), value }];
        let text = without_secrets(&ContainerSpec { env, ..Default::default() }).to_string();
        assert!(text.contains(r#""env":["PASSWORD"]"#), "{text}");
        assert!(!text.contains("104,117,110,116"), "{text}");
    }

    /// teeth: crates/cri/src/container.rs: `*asked == NamespaceMode::Node &&` → `false &&`
    #[test]
    fn the_nodes_namespaces_are_for_sandboxes_that_have_them() {
        let own = NamespaceOptions::default();
        let node = NamespaceOptions {
            network: NamespaceMode::Node,
            pid: NamespaceMode::Node,
            ipc: NamespaceMode::Node,
            user: None,
        };
        within(&own, &own).unwrap();
        within(&own, &node).unwrap();
        within(&node, &node).unwrap();
        for (kind, asked) in [
            ("network", NamespaceOptions { network: NamespaceMode::Node, ..own.clone() }),
            ("pid", NamespaceOptions { pid: NamespaceMode::Node, ..own.clone() }),
            ("ipc", NamespaceOptions { ipc: NamespaceMode::Node, ..own.clone() }),
        ] {
            let error = within(&asked, &own).unwrap_err().to_string();
            assert!(error.contains(&format!("namespace_options.{kind} is NODE")), "{error}");
        }
    }

    /// teeth: crates/cri/src/container.rs: `namespaces.pid.clone_from(&sandbox.pid);` → ``
    /// teeth: crates/cri/src/container.rs: `if sandbox.user.is_some() && says_nothing {` → `if says_nothing {`
    /// teeth: crates/cri/src/container.rs: `if sandbox.user.is_some() && says_nothing {` → `if false {`
    #[test]
    fn what_a_container_leaves_open_is_its_sandboxs() {
        let of = |sandbox: &NamespaceOptions, mut security: Security| {
            as_the_sandbox(&mut security, sandbox);
            security
        };
        for pid in [NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node] {
            let sandbox = NamespaceOptions { pid: pid.clone(), ..NamespaceOptions::default() };
            assert_eq!(of(&sandbox, Security::default()).namespaces.pid, pid);
        }
        let mut own = Security::default();
        own.namespaces.pid = NamespaceMode::Container;
        let node = NamespaceOptions { pid: NamespaceMode::Node, ..NamespaceOptions::default() };
        let told = of(&node, own);
        assert_eq!(told.namespaces.pid, NamespaceMode::Container);
        assert_eq!((told.masked_paths, told.readonly_paths), (None, None));

        let mappings = berth_model::IdMappings { uids: Vec::new(), gids: Vec::new() };
        let users = NamespaceOptions { user: Some(mappings), ..node };
        let told = of(&users, Security::default());
        assert_eq!(told.namespaces.user, users.user);
        assert_eq!((told.masked_paths, told.readonly_paths), (Some(vec![]), Some(vec![])));
        let paths = Some(vec!["/proc/kcore".to_owned()]);
        let some = Security { masked_paths: paths.clone(), ..Security::default() };
        assert_eq!(of(&users, some).masked_paths, paths);
    }

    #[test]
    fn a_negative_timeout_is_refused_by_name() {
        assert_eq!(seconds("timeout", 30).unwrap(), Duration::from_secs(30));
        assert_eq!(seconds("timeout", 0).unwrap(), Duration::ZERO);
        assert!(seconds("timeout", i64::MAX).is_ok());
        assert_eq!(seconds("timeout", -1).unwrap_err().to_string(), "timeout is negative");
    }
}
