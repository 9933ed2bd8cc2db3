//! What a sandbox will be, decided before anything is made: bad requests fail here.

use std::net::IpAddr;
use std::path::PathBuf;

use berth_metadata::{SandboxPhase, SandboxRecord};
use berth_model::container::Timestamp;
use berth_model::sandbox::{NamespaceMode, NamespaceOptions, SandboxName};
use berth_model::{IdMappings, IdRange, SandboxId, SandboxSpec};
use berth_shim_client::{SandboxOptions, SandboxUser};

use crate::config::RuntimeConfig;
use crate::core::{Core, cgroup_path};
use crate::files::{self, SandboxFiles};
use crate::{Error, clock};

/// What a sandbox will be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) record: SandboxRecord,
    pub(super) runtime: RuntimeConfig,
    pub(super) hostname: String,
    pub(super) dir: PathBuf,
    /// `/etc/resolv.conf`.
    pub(super) resolv_conf: Vec<u8>,
    pub(super) options: SandboxOptions,
}

/// Later than whatever else was made for the same pod.
fn created_at(core: &Core, name: &SandboxName) -> Timestamp {
    let of_pod = |other: &SandboxName| {
        (&other.namespace, &other.name, &other.uid) == (&name.namespace, &name.name, &name.uid)
    };
    let sandboxes = core.sandboxes.all();
    let sandboxes: Vec<_> = sandboxes.iter().filter(|sandbox| of_pod(&sandbox.spec.name)).collect();
    let containers = match sandboxes.is_empty() {
        true => Vec::new(),
        false => core.containers.all(),
    };
    let members = containers
        .iter()
        .filter(|container| sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox.id));
    let containers = members.map(|container| container.status.get().created_at);
    let sandboxes = sandboxes.iter().map(|sandbox| sandbox.status.get().created_at);
    clock::now_after(sandboxes.chain(containers))
}

impl Plan {
    pub(super) fn new(core: &Core, spec: SandboxSpec) -> Result<Self, Error> {
        let id = SandboxId::from_random(clock::random()?);
        let (handler, runtime) = core
            .config
            .runtime(&spec.runtime_handler)
            .ok_or_else(|| Error::UnknownRuntime(spec.runtime_handler.clone()))?;
        if !runtime.in_tree {
            return Err(Error::Unsupported(format!("runtime handler {handler:?} (not in-tree)")));
        }
        check(&spec)?;
        let hostname = hostname(&spec, &id)?;
        let resolv_conf = match files::resolv_conf(spec.dns.as_ref())? {
            Some(text) => text,
            None => files::node_file("/etc/resolv.conf")?,
        };
        let (cgroup, owns_cgroup) = cgroup(core, &spec, &id)?;
        let own_ipc = spec.namespaces.ipc != NamespaceMode::Node;
        let options = SandboxOptions {
            shm_size: if own_ipc { core.shm_bytes.get() } else { 0 },
            share_pid: spec.namespaces.pid == NamespaceMode::Pod,
            user: spec.namespaces.user.as_ref().and_then(sandbox_user),
        };
        Ok(Self {
            runtime: runtime.clone(),
            hostname,
            dir: core.config.sandboxes().join(&id),
            resolv_conf,
            options,
            record: SandboxRecord {
                limits: None,
                id,
                runtime: handler.to_owned(),
                phase: SandboxPhase::Creating,
                created_at: created_at(core, &spec.name),
                spec,
                boot_id: core.boot_id.clone(),
                cgroup,
                owns_cgroup,
                shim: None,
                network: None,
            },
        })
    }

    /// What its containers see, once the address is known.
    pub(super) fn files(&self, address: Option<IpAddr>) -> Result<SandboxFiles, Error> {
        let hosts = if self.own_net() {
            files::hosts(&self.hostname, address)
        } else {
            files::node_file("/etc/hosts")?
        };
        Ok(SandboxFiles {
            hostname: self.hostname.clone(),
            hosts,
            resolv_conf: self.resolv_conf.clone(),
        })
    }

    /// Who its root is on the node, if it has users of its own.
    pub(super) fn root(&self) -> Option<(u32, u32)> {
        self.options.user.map(|user| (user.uid, user.gid))
    }

    pub(super) fn own_net(&self) -> bool {
        self.record.spec.namespaces.network != NamespaceMode::Node
    }
}

fn sandbox_user(ids: &IdMappings) -> Option<SandboxUser> {
    let length = |ranges: &[IdRange]| ranges.first().map_or(0, |range| range.length);
    Some(SandboxUser {
        uid: ids.host_uid(0)?,
        gid: ids.host_gid(0)?,
        ids: length(&ids.uids).min(length(&ids.gids)),
    })
}

/// A user namespace owns all that shows processes and IPC, and has a root of its own.
fn check_users(ids: &IdMappings, options: &NamespaceOptions) -> Result<(), Error> {
    let refused = |problem: &str| Err(Error::invalid("user namespace", problem));
    if let Err(bad) = ids.check() {
        return refused(&bad.to_string());
    }
    match (ids.host_uid(0), ids.host_gid(0)) {
        (None, _) | (_, None) => return refused("does not map id 0"),
        (Some(0), _) | (_, Some(0)) => return refused("maps its root to the node's"),
        _ => {}
    }
    if [&options.pid, &options.ipc].contains(&&NamespaceMode::Node) {
        return refused("excludes the node's process and ipc namespaces");
    }
    Ok(())
}

fn check(spec: &SandboxSpec) -> Result<(), Error> {
    let options = &spec.namespaces;
    for (mode, field) in [(&options.network, "network namespace"), (&options.ipc, "ipc namespace")]
    {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(Error::invalid(field, "a sandbox has its own or the node's"));
        }
    }
    if matches!(options.pid, NamespaceMode::Target(_)) {
        return Err(Error::invalid("pid namespace", "a sandbox cannot use that of a container"));
    }
    if let Some(ids) = &options.user {
        check_users(ids, options)?;
    }
    berth_spec::sysctl::check(&spec.sysctls, options)
        .map_err(|source| Error::Spec { name: spec.name.name.clone(), source })
}

/// The host name: with the node's network the node's, unless one was asked for.
pub(super) fn hostname(spec: &SandboxSpec, id: &SandboxId) -> Result<String, Error> {
    if spec.namespaces.network == NamespaceMode::Node && spec.hostname.is_empty() {
        let name = nix::unistd::gethostname().map_err(|errno| Error::Io {
            action: "read name of node",
            path: PathBuf::new(),
            source: errno.into(),
        })?;
        return Ok(name.to_string_lossy().into_owned());
    }
    files::hostname(&spec.hostname, id.as_str())
}

/// The parent of the containers' cgroups, and whether it is ours to make and remove.
fn cgroup(core: &Core, spec: &SandboxSpec, id: &SandboxId) -> Result<(String, bool), Error> {
    match spec.cgroup_parent.as_deref().filter(|parent| !parent.is_empty()) {
        None => {
            let base = cgroup_path(&core.config.cgroup_base)?;
            let path = base.child(id.as_str()).map_err(|source| Error::Cgroup {
                action: "name cgroup",
                path: id.to_string(),
                source,
            })?;
            Ok((path.to_string(), true))
        }
        Some(parent) => Ok((cgroup_path(parent)?.to_string(), false)),
    }
}
