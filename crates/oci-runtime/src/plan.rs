//! What a spec asks for, checked and made into plain values before anything is forked.
//!
//! Nothing here makes a syscall, but for the seccomp compiler's cache; so a spec that
//! cannot be done is refused before it costs a process.

mod capability;
mod hooks;
mod ids;
mod limits;
mod linux;
mod mount_options;
mod mounts;
mod namespaces;
mod process;
mod rootfs;

use std::path::PathBuf;
use std::sync::Arc;

use berth_cgroup::{CgroupPath, Limits};
use berth_model::ErrorKind;
use berth_model::mount::Mount;
use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Process, Spec};

use crate::error::{Error, Reported};

pub(crate) use capability::CapabilitySets;
pub(crate) use hooks::{HookPlan, Hooks, RuntimeHooks, State};
pub(crate) use linux::{DeviceNode, NodeKind};
pub(crate) use mount_options::Attributes;
pub(crate) use mounts::{MountPlan, MountWhat};
pub(crate) use namespaces::{Namespace, Namespaces, UserNamespace};
pub(crate) use process::{Labels, ProcessPlan, ResourceLimit, UserPlan, WindowSize};
pub(crate) use rootfs::{RootMount, RootfsPlan};

/// Everything [`crate::create`] is going to do.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    pub(crate) namespaces: Namespaces,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) cgroup: CgroupPath,
    pub(crate) limits: Limits,
    pub(crate) rootfs: RootfsPlan,
    pub(crate) mounts: Vec<MountPlan>,
    /// Whether `/dev` is ours to fill: not when the host's is bound there.
    pub(crate) fill_dev: bool,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) masked_paths: Vec<PathBuf>,
    pub(crate) readonly_paths: Vec<PathBuf>,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) process: ProcessPlan,
    pub(crate) hooks: Hooks,
}

impl ContainerPlan {
    /// Checks `spec`.
    pub(crate) fn new(id: &str, spec: &Spec, rootfs: &[Mount]) -> Result<Self, Error> {
        let process =
            spec.process().as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
        let linux = spec.linux().as_ref().ok_or_else(|| Error::invalid("linux", "is missing"))?;
        linux::refuse_unsupported(linux)?;
        let namespaces = Namespaces::new(linux)?;
        let mount_label = process::label("linux.mountLabel", linux.mount_label())?;
        let mounts = mounts::plan(spec, mount_label.as_deref())?;
        let process = ProcessPlan::new(id, spec, process, Some(linux))?;
        Ok(Self {
            hostname: linux::host_name("hostname", spec.hostname(), &namespaces)?,
            domainname: linux::host_name("domainname", spec.domainname(), &namespaces)?,
            cgroup: limits::cgroup_path(id, linux)?,
            limits: limits::limits(linux)?,
            rootfs: RootfsPlan::new(spec, linux, rootfs)?,
            fill_dev: mounts::dev_is_ours(&mounts),
            devices: linux::devices(linux)?,
            masked_paths: linux::paths("linux.maskedPaths", linux.masked_paths())?,
            readonly_paths: linux::paths("linux.readonlyPaths", linux.readonly_paths())?,
            sysctls: linux::sysctls(linux, &namespaces)?,
            hooks: Hooks::new(id, spec, &process)?,
            process,
            mounts,
            namespaces,
        })
    }
}

/// The cgroup of a container of this spec.
pub(crate) fn cgroup_path(id: &str, spec: &Spec) -> Result<CgroupPath, Error> {
    let linux = spec.linux().as_ref().ok_or_else(|| Error::invalid("linux", "is missing"))?;
    limits::cgroup_path(id, linux)
}

/// What a running container's limits are to be.
pub(crate) fn new_limits(resources: &LinuxResources) -> Result<Limits, Error> {
    limits::update(resources)
}

/// The filter of a profile, if there is one to load.
fn seccomp(profile: Option<&LinuxSeccomp>) -> Result<Option<Arc<berth_seccomp::Program>>, Error> {
    let Some(profile) = profile else { return Ok(None) };
    if profile.listener_path().is_some() {
        return Err(Error::unsupported("linux.seccomp.listenerPath", "a seccomp agent"));
    }
    berth_seccomp::compile(profile)
        .map(Some)
        .map_err(|error| Error::Seccomp(Reported::new(error.kind(), &error)))
}

/// What a process in a container of this spec does, for [`crate::exec`].
pub(crate) fn exec_process(id: &str, spec: &Spec, process: &Process) -> Result<ProcessPlan, Error> {
    ProcessPlan::new(id, spec, process, spec.linux().as_ref())
}

/// `path` made absolute and clean without looking at any file: no `.`, no `..`, no double
/// slash; `..` at the top stays at the top, as in a root directory.
pub(crate) fn clean_absolute(path: &std::path::Path) -> Option<PathBuf> {
    use std::path::Component;
    if !path.is_absolute() {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

/// For errors of crates whose `kind` is known.
pub(crate) fn reported(kind: ErrorKind, error: &dyn std::error::Error) -> Reported {
    Reported::new(kind, error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_clean_path_has_no_way_up() {
        for (from, to) in [
            ("/", "/"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../../etc", "/etc"),
            ("/..", "/"),
            ("/a/b/..", "/a"),
        ] {
            assert_eq!(clean_absolute(Path::new(from)).as_deref(), Some(Path::new(to)), "{from}");
        }
        assert_eq!(clean_absolute(Path::new("a/b")), None);
        assert_eq!(clean_absolute(Path::new("")), None);
    }
}
