//! The specification as a whole.

use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, RootBuilder, Spec,
};
use serde::de::DeserializeOwned;

use crate::{Error, Wanted, annotations, capabilities, ids, mounts, process, resources, security};

/// Builds the specification of one container; the same input gives the same output.
///
/// # Errors
///
/// Whatever the request or the image asks for that cannot be: see [`Error`].
pub fn build(wanted: &Wanted<'_>) -> Result<Spec, Error> {
    let capabilities = capabilities::sets(&wanted.spec.security, &wanted.defaults.capabilities)?;
    let bounding = capabilities.bounding().clone().unwrap_or_default();
    let env = process::environment(wanted)?;
    let mounts = mounts::mounts(wanted)?;
    let devices = resources::devices(wanted)?;

    let mut linux: Linux = empty();
    linux
        .set_resources(Some(resources::resources(wanted, &devices)?))
        .set_cgroups_path(Some(wanted.cgroup.into()))
        .set_namespaces(Some(namespaces(wanted)))
        .set_devices((!devices.is_empty()).then(|| resources::nodes(&devices)))
        .set_seccomp(security::seccomp_profile(wanted, &bounding)?)
        .set_rootfs_propagation(mounts::rootfs_propagation(wanted))
        .set_masked_paths(Some(security::masked_paths(wanted)))
        .set_readonly_paths(Some(security::readonly_paths(wanted)));

    ids::map_namespace(&mut linux, wanted.ids);
    linux.set_mount_label(wanted.labels.mount.clone());
    let mut process = process::process(wanted, &env, capabilities)?;
    process
        .set_apparmor_profile(wanted.labels.apparmor.clone())
        .set_selinux_label(wanted.labels.selinux.clone());

    let mut spec: Spec = empty();
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(wanted.spec.security.readonly_rootfs)
        .build()
        .expect("every field has a default");
    spec.set_root(Some(root))
        .set_process(Some(process))
        .set_mounts(Some(mounts))
        .set_annotations(Some(annotations::annotations(wanted, &env)))
        .set_linux(Some(linux));
    let version = crate::version::lowest(&spec);
    spec.set_version(version.to_owned());
    Ok(spec)
}

/// Nothing set: the types' own defaults describe a whole sample container.
fn empty<T: DeserializeOwned>() -> T {
    serde_json::from_str("{}").expect("every field may be absent")
}

/// Those of the sandbox and the host as given; mounts are always the container's own,
/// and so is the view of cgroups, but a privileged container sees the host's. With users of
/// its own it cannot: only who owns that view may mount it.
fn namespaces(wanted: &Wanted<'_>) -> Vec<LinuxNamespace> {
    let own = |kind| namespace(kind, None);
    let mut all: Vec<_> =
        wanted.namespaces.iter().map(|(kind, path)| namespace(*kind, path.clone())).collect();
    for (kind, unless) in [
        (LinuxNamespaceType::Mount, false),
        (LinuxNamespaceType::Cgroup, wanted.privileged() && wanted.ids.is_none()),
    ] {
        if !unless && all.iter().all(|known| known.typ() != kind) {
            all.push(own(kind));
        }
    }
    all
}

fn namespace(kind: LinuxNamespaceType, path: Option<std::path::PathBuf>) -> LinuxNamespace {
    let mut namespace =
        LinuxNamespaceBuilder::default().typ(kind).build().expect("every field has a default");
    namespace.set_path(path);
    namespace
}

#[cfg(test)]
pub(crate) mod tests;
