//! Where the root file system comes from.

use std::path::PathBuf;

use berth_model::IdMappings;
use berth_model::mount::Mount;
use oci_spec::runtime::{Linux, Spec};
use rustix::mount::MountPropagationFlags;

use super::ids;
use super::mount_options::MountOptions;
use crate::error::Error;

/// The root file system of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RootfsPlan {
    /// `root.path`, from the bundle: where it is, or where it is mounted.
    pub(crate) path: PathBuf,
    /// What is mounted there, one over the other; empty if it is there already.
    pub(crate) mounts: Vec<RootMount>,
    pub(crate) readonly: bool,
    /// `MS_*` for the container's root mount after all is mounted.
    pub(crate) propagation: u64,
}

/// One mount of the root file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RootMount {
    /// `bind`, or a file system type.
    pub(crate) fs_type: String,
    pub(crate) source: String,
    pub(crate) options: MountOptions,
    /// How the owners of the files of an overlay's lower layers, or of a bind mount, are shown.
    pub(crate) ids: Option<IdMappings>,
}

impl RootMount {
    /// Has all of its files show the SELinux context `label`. The value is quoted, since
    /// commas separate options of mount(2), and categories.
    pub(super) fn label_with(&mut self, label: &str) {
        if self.options.bind.is_none() {
            self.options.data.push(("context".to_owned(), Some(format!("\"{label}\""))));
        }
    }
}

impl RootfsPlan {
    pub(super) fn new(spec: &Spec, linux: &Linux, mounts: &[Mount]) -> Result<Self, Error> {
        let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is missing"))?;
        if root.path().as_os_str().is_empty() {
            return Err(Error::invalid("root.path", "is empty"));
        }
        let mut mounts = mounts.iter().map(mount).collect::<Result<Vec<_>, _>>()?;
        if let Some(label) = linux.mount_label().as_ref().filter(|label| !label.is_empty()) {
            mounts.iter_mut().for_each(|mount| mount.label_with(label));
        }
        Ok(Self {
            path: root.path().clone(),
            mounts,
            readonly: root.readonly() == Some(true),
            propagation: propagation(linux.rootfs_propagation().as_deref().unwrap_or_default())?,
        })
    }
}

fn mount(mount: &Mount) -> Result<RootMount, Error> {
    const FIELD: &str = "rootfs";
    let mut options = MountOptions::parse(&mount.options);
    if options.data.iter().any(|(name, _)| name == "loop") {
        return Err(Error::unsupported(FIELD, "loop devices"));
    }
    let fs_type = if options.bind.is_some() { "bind" } else { mount.fs_type.as_str() };
    if fs_type.is_empty() || mount.source.contains('\0') {
        return Err(Error::invalid(FIELD, "a mount without a type"));
    }
    let ids = match (options.take("uidmap"), options.take("gidmap")) {
        (None, None) => None,
        (uids, gids) => {
            Some(ids::of_options(&uids.unwrap_or_default(), &gids.unwrap_or_default())?)
        }
    };
    if ids.is_some() && !matches!(fs_type, "bind" | "overlay") {
        return Err(Error::unsupported(FIELD, format!("mapped ids of {fs_type}")));
    }
    Ok(RootMount { fs_type: fs_type.to_owned(), source: mount.source.clone(), options, ids })
}

fn propagation(name: &str) -> Result<u64, Error> {
    let flag = match name {
        "" | "private" | "rprivate" => MountPropagationFlags::PRIVATE,
        "slave" | "rslave" => MountPropagationFlags::DOWNSTREAM,
        "shared" | "rshared" => MountPropagationFlags::SHARED,
        "unbindable" | "runbindable" => MountPropagationFlags::UNBINDABLE,
        other => {
            return Err(Error::invalid("linux.rootfsPropagation", format!("{other:?}")));
        }
    };
    Ok(u64::from(flag.bits()))
}
