//! Mounts: what a snapshot hands out, and what a client asks to see in a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A mount as mount(8) and containerd's `types.Mount` describe it.
///
/// A snapshot hands these out; whoever starts the container performs them.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type (`overlay`), or `bind`.
    pub fs_type: String,
    /// Device, directory or a name without meaning, as the type wants it.
    pub source: String,
    /// Options as in fstab(5): `lowerdir=…`, `ro`, `rbind`, `volatile`.
    pub options: Vec<String>,
}

/// Where mount events travel between a bind mount and its source
/// (mount_namespaces(7), "shared subtrees").
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way: `rprivate`.
    #[default]
    Private,
    /// From the host into the container: `rslave`.
    HostToContainer,
    /// Both ways: `rshared`. Only for privileged containers.
    Bidirectional,
}

/// A directory or file of the host that a container asks to see.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute path in the container.
    pub container_path: PathBuf,
    /// Absolute path on the host; a symbolic link is followed once, by the daemon.
    pub host_path: PathBuf,
    /// Whether the mount is read-only.
    pub readonly: bool,
    /// Whether the mounts below are made read-only too.
    pub recursive_readonly: bool,
    /// Whether an SELinux relabel was asked for.
    pub selinux_relabel: bool,
    /// Where mount events travel.
    pub propagation: Propagation,
}
