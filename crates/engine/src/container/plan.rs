//! What a container will be: its specification, user, log. Reads what the request names
//! and the image holds; makes nothing.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use berth_cdi::Edits;
use berth_metadata::ContainerRecord;
use berth_model::container::Timestamp;
use berth_model::image::ImageRecord;
use berth_model::mount::ImageVolume;
use berth_model::sandbox::NamespaceMode;
use berth_model::{ContainerId, ContainerSpec, ContainerState};
use berth_spec::user::{ResolvedUser, UserFiles};
use berth_spec::{HostDevice, SandboxFiles, Shm, Wanted};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{mounts, volumes};
use crate::core::{Core, cgroup_error};
use crate::sandbox::Sandbox;
use crate::spawner::{IPC_FD, NET_FD, PID_FD, USER_FD, UTS_FD};
use crate::{Error, clock, files, users};

/// Largest `/etc/passwd` and `/etc/group` of an image, bytes.
const MAX_USER_FILE: u64 = 4 << 20;

/// What a container will be.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) record: ContainerRecord,
    pub(super) oci: Spec,
}

/// What was found of the image a request names.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) record: ImageRecord,
    pub(super) config: ImageConfiguration,
    /// The images that mounts name, by their names there.
    pub(super) volumes: BTreeMap<String, ImageVolume>,
}

impl Plan {
    /// `more` are devices by the names of their vendors that the container gets beside those
    /// it asks for.
    pub(super) fn new(
        core: &Core,
        sandbox: &Sandbox,
        id: ContainerId,
        spec: ContainerSpec,
        image: &Image,
        more: &[String],
    ) -> Result<Self, Error> {
        let refused = {
            let name = spec.name.name.clone();
            move |source| Error::Spec { name, source }
        };
        let edits = mounts::cdi::edits(&core.cdi, &spec, more)?;
        let user = runs_as(core, sandbox, &spec, image, &edits)?;
        let stop_signal = stop_signal(&spec, image).map_err(refused.clone())?;
        let log_path =
            files::log_path(sandbox.spec.log_directory.as_deref(), spec.log_path.as_deref())?;
        let cgroup = sandbox.cgroup.child(id.as_str());
        let cgroup = cgroup.map_err(cgroup_error("name cgroup below", &sandbox.cgroup))?;
        let mut resolved = ContainerSpec { mounts: mounts::resolve(&spec.mounts)?, ..spec.clone() };
        resolved.env.extend(mounts::cdi::environment(&edits));
        let security = &spec.security;
        let profile = mounts::seccomp(&security.seccomp, &core.config.seccomp_profiles)?;
        let image_name = image.record.tags.first().map_or(spec.image.as_str(), String::as_str);
        let wanted = Wanted {
            id: &id,
            sandbox: &sandbox.id,
            sandbox_name: &sandbox.spec.name,
            spec: &resolved,
            image: &image.config,
            image_name,
            user: &user,
            namespaces: namespaces(core, sandbox, &security.namespaces.pid)?,
            ids: sandbox.spec.namespaces.user.as_ref(),
            cgroup: cgroup.as_str(),
            hostname: &sandbox.hostname,
            files: sandbox_files(sandbox),
            devices: devices(sandbox, &spec, &edits, &user)?,
            labels: core.modules.labels((&sandbox.id, &sandbox.spec), security)?,
            device_mounts: mounts::cdi::mounts(&edits),
            localhost_seccomp: profile.as_deref(),
            volumes: volumes::mounts(&core.snapshots, &spec.mounts, &image.volumes)?,
            defaults: &core.defaults.get(),
        };
        relabel(core, &wanted)?;
        let mut oci = berth_spec::build(&wanted).map_err(refused)?;
        oci.set_hooks(mounts::cdi::hooks(&edits)?);
        let record = ContainerRecord {
            limits: None,
            changing: None,
            id,
            sandbox: sandbox.id.clone(),
            state: ContainerState::Created,
            created_at: created_at(core, sandbox),
            image: image.record.id,
            image_ref: image_ref(&image.record),
            cgroup: cgroup.to_string(),
            log_path,
            stop_signal,
            user: (user.uid, user.gid),
            groups: user.groups,
            chain: image.record.chain.clone(),
            volumes: image.volumes.clone(),
            spec,
        };
        Ok(Self { record, oci })
    }
}

/// What the container is to use of the host gets its SELinux context.
fn relabel(core: &Core, wanted: &Wanted<'_>) -> Result<(), Error> {
    let files = &wanted.files;
    let files = [&files.resolv_conf, &files.hosts, &files.hostname];
    let files: Vec<_> = files.into_iter().flatten().cloned().collect();
    core.modules.relabel(&wanted.labels, &wanted.spec.mounts, &files)
}

/// Who runs it, with the groups that come with devices; one of the pod's own users.
fn runs_as(
    core: &Core,
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    image: &Image,
    edits: &Edits,
) -> Result<ResolvedUser, Error> {
    let mut user = user(core, spec, image)?;
    add_groups(&mut user, &edits.groups);
    match &sandbox.spec.namespaces.user {
        Some(ids) => users::check_container(spec, &user, ids).map(|()| user),
        None => Ok(user),
    }
}

/// The nodes that the request names, and those that come with devices by name.
fn devices(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    edits: &Edits,
    user: &ResolvedUser,
) -> Result<Vec<HostDevice>, Error> {
    let mut devices = match spec.security.privileged {
        true => mounts::all_devices(&spec.devices)?,
        false => mounts::devices(&spec.devices)?,
    };
    let named = mounts::cdi::nodes(edits, user, sandbox.spec.namespaces.user.as_ref())?;
    let replaced: HashSet<&Path> = named.iter().map(|device| device.path.as_path()).collect();
    devices.retain(|device| !replaced.contains(device.path.as_path()));
    devices.extend(named);
    Ok(devices)
}

fn add_groups(user: &mut ResolvedUser, more: &[u32]) {
    let mut known: HashSet<u32> = user.groups.iter().copied().collect();
    user.groups.extend(more.iter().copied().filter(|group| known.insert(*group)));
}

/// Later than whatever else was made for the sandbox.
fn created_at(core: &Core, sandbox: &Sandbox) -> Timestamp {
    let containers = core.containers.all();
    let members = containers.iter().filter(|container| container.sandbox.id == sandbox.id);
    let earlier = members.map(|container| container.status.get().created_at);
    clock::now_after(earlier.chain([sandbox.status.get().created_at]))
}

/// A digest says what runs, whatever becomes of the tag.
fn image_ref(image: &ImageRecord) -> String {
    image.digests.first().cloned().unwrap_or_else(|| image.id.to_string())
}

fn user(core: &Core, spec: &ContainerSpec, image: &Image) -> Result<ResolvedUser, Error> {
    let failed = |action| {
        let key = image.record.id.to_string();
        move |source| Error::Snapshot { action, key, source }
    };
    let view = core.snapshots.view(&image.record.chain).map_err(failed("look into image"))?;
    let read = |path: &'static str| {
        let bytes = view.read_file(path.as_ref(), MAX_USER_FILE);
        bytes.map(Option::unwrap_or_default).map_err(failed("read users of image"))
    };
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    let security = &spec.security;
    let image_user = image.config.config().as_ref().and_then(|config| config.user().as_deref());
    berth_spec::user::resolve(
        &security.run_as,
        image_user.unwrap_or_default(),
        &security.supplemental_groups,
        security.supplemental_groups_policy,
        UserFiles { passwd: &passwd, group: &group },
    )
    .map_err(|source| Error::Spec { name: spec.name.name.clone(), source })
}

/// The request's, the image's, or SIGTERM. A request with an unknown one is refused; what
/// an image says and nobody understands counts as not said.
fn stop_signal(spec: &ContainerSpec, image: &Image) -> Result<String, berth_spec::Error> {
    if let Some(signal) = spec.stop_signal.as_ref().filter(|signal| !signal.is_empty()) {
        berth_spec::signal::number(signal)?;
        return Ok(signal.clone());
    }
    let config = image.config.config().as_ref();
    let signal = config.and_then(|config| config.stop_signal().clone());
    let known = signal.filter(|signal| berth_spec::signal::number(signal).is_ok());
    Ok(known.unwrap_or_else(|| "SIGTERM".to_owned()))
}

fn namespaces(
    core: &Core,
    sandbox: &Sandbox,
    pid: &NamespaceMode,
) -> Result<Vec<(LinuxNamespaceType, Option<PathBuf>)>, Error> {
    let held = |fd: i32| Some(PathBuf::from(format!("/proc/self/fd/{fd}")));
    let options = &sandbox.spec.namespaces;
    let mut all = Vec::with_capacity(4);
    if options.network != NamespaceMode::Node {
        all.push((LinuxNamespaceType::Network, held(NET_FD)));
        all.push((LinuxNamespaceType::Uts, held(UTS_FD)));
    }
    if options.ipc != NamespaceMode::Node {
        all.push((LinuxNamespaceType::Ipc, held(IPC_FD)));
    }
    if options.user.is_some() {
        all.push((LinuxNamespaceType::User, held(USER_FD)));
    }
    match pid {
        NamespaceMode::Node => {}
        NamespaceMode::Container => all.push((LinuxNamespaceType::Pid, None)),
        NamespaceMode::Pod if options.pid == NamespaceMode::Pod => {
            all.push((LinuxNamespaceType::Pid, held(PID_FD)));
        }
        NamespaceMode::Pod => {
            let problem = "the sandbox has no process namespace to share";
            return Err(Error::invalid("pid namespace", problem));
        }
        NamespaceMode::Target(id) => {
            let pid = target(core, sandbox, id)?;
            all.push((LinuxNamespaceType::Pid, Some(format!("/proc/{pid}/ns/pid").into())));
        }
    }
    Ok(all)
}

/// The first process of a running container of the same sandbox.
fn target(core: &Core, sandbox: &Sandbox, id: &str) -> Result<u32, Error> {
    let refused = |problem: &str| Error::invalid("target container", format!("{id:?} {problem}"));
    let id = ContainerId::new(id).map_err(|_| refused("is not a container id"))?;
    let container = core.container(&id).map_err(|_| refused("does not exist"))?;
    if container.sandbox.id != sandbox.id {
        return Err(refused("is in another sandbox"));
    }
    container.status.get().pid().ok_or_else(|| refused("does not run"))
}

fn sandbox_files(sandbox: &Sandbox) -> SandboxFiles {
    let own_ipc = sandbox.spec.namespaces.ipc != NamespaceMode::Node;
    SandboxFiles {
        resolv_conf: Some(sandbox.dir.join("resolv.conf")),
        hosts: Some(sandbox.dir.join("hosts")),
        hostname: Some(sandbox.dir.join("hostname")),
        shm: Some(if own_ipc { Shm::Shared } else { Shm::Bind("/dev/shm".into()) }),
    }
}
