//! Mounts: what a snapshot hands out, and what a client asks to see in a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ChainId, Digest, IdMappings};

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

/// A further property of a mount in a container (CRI `mount_options`, KEP-5855).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum MountOption {
    /// Programs there cannot be executed.
    NoExec,
    /// Device nodes there cannot be opened.
    NoDev,
    /// Set-user-ID bits there have no effect.
    NoSuid,
}

impl MountOption {
    /// As mount(8), the CRI and the OCI specification spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoExec => "noexec",
            Self::NoDev => "nodev",
            Self::NoSuid => "nosuid",
        }
    }

    /// What [`MountOption::as_str`] spells.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::NoExec, Self::NoDev, Self::NoSuid].into_iter().find(|option| option.as_str() == name)
    }
}

/// An image that a container asks to see as a volume (KEP-4639).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ImageMount {
    /// The image, as the client names it: an id or a reference.
    pub name: String,
    /// What the user wrote, returned untouched.
    pub user_specified: String,
    /// The directory in the image that is seen; empty means its root.
    pub sub_path: String,
}

/// An image that a container has as a volume, as it was found when the container was made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Its id, the digest of its configuration.
    pub image: Digest,
    /// The chain of each of its layers, lowest first.
    pub chain: Vec<ChainId>,
}

/// A directory or file of the host, or an image, that a container asks to see.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute path in the container.
    pub container_path: PathBuf,
    /// Absolute path on the host; a symbolic link is followed once, by the daemon. Empty
    /// for an image.
    pub host_path: PathBuf,
    /// Whether the mount is read-only.
    pub readonly: bool,
    /// Whether the mounts below are made read-only too.
    pub recursive_readonly: bool,
    /// Whether an SELinux relabel was asked for.
    pub selinux_relabel: bool,
    /// Where mount events travel.
    pub propagation: Propagation,
    /// The image that is seen, in place of a part of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageMount>,
    /// What the mount forbids beyond writing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<MountOption>,
    /// How the owners of its files are shown; `None` shows them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<IdMappings>,
}
