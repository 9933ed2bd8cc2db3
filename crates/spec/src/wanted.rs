//! What a specification is built from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_model::mount::Mount;
use berth_model::sandbox::SandboxName;
use berth_model::{ContainerId, ContainerSpec, IdMappings, SandboxId};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Capabilities, LinuxDeviceType, LinuxNamespaceType};

use crate::user::ResolvedUser;

/// Everything a container's specification depends on; nothing else is read.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// Its sandbox.
    pub sandbox: &'a SandboxId,
    /// The client's name of the sandbox.
    pub sandbox_name: &'a SandboxName,
    /// What the client wants.
    pub spec: &'a ContainerSpec,
    /// Configuration of the image.
    pub image: &'a ImageConfiguration,
    /// How the image is called, for the annotation that says so.
    pub image_name: &'a str,
    /// Who runs it ([`crate::user::resolve`]).
    pub user: &'a ResolvedUser,
    /// Network, IPC, UTS and PID namespaces: to join (a path) or to make (`None`).
    /// A kind that is absent is the host's. Mount and cgroup namespaces are added here.
    pub namespaces: Vec<(LinuxNamespaceType, Option<PathBuf>)>,
    /// Where the ids of its user namespace, one of `namespaces`, lie on the node.
    pub ids: Option<&'a IdMappings>,
    /// Absolute cgroupfs path of its cgroup.
    pub cgroup: &'a str,
    /// Host name in its UTS namespace; empty sets no `HOSTNAME`.
    pub hostname: &'a str,
    /// Files of the sandbox that every container sees.
    pub files: SandboxFiles,
    /// Nodes of `spec.devices`, as found on the host; for a privileged container every
    /// node of the host's `/dev`.
    pub devices: Vec<HostDevice>,
    /// What confines the processes beside seccomp.
    pub labels: Labels,
    /// Mounts that devices bring; one replaces whatever else is at its place.
    pub device_mounts: Vec<DeviceMount>,
    /// Bytes of the profile that [`berth_model::container::Profile::Localhost`] names.
    pub localhost_seccomp: Option<&'a [u8]>,
    /// How each image that `spec.mounts` names is mounted, by the name it is called there.
    pub volumes: BTreeMap<String, Mount>,
    /// What the node can do, and what the daemon's configuration says.
    pub defaults: &'a Defaults,
}

/// Files of the sandbox that every container sees, unless it mounts its own.
#[derive(Clone, Debug, Default)]
pub struct SandboxFiles {
    /// Seen as `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// Seen as `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// Seen as `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// Seen as `/dev/shm`.
    pub shm: Option<Shm>,
}

/// Where `/dev/shm` comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shm {
    /// The tmpfs that the in-tree shim keeps for its sandbox ([`crate::SHARED_MOUNT`]).
    Shared,
    /// A directory of the host.
    Bind(PathBuf),
}

/// What the security modules of the node's kernel are told of a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels {
    /// AppArmor profile, which is loaded.
    pub apparmor: Option<String>,
    /// SELinux context of the processes.
    pub selinux: Option<String>,
    /// SELinux context of the file systems made for the container.
    pub mount: Option<String>,
}

/// A mount that comes with a device, in the words of the OCI specification.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceMount {
    /// Path in the container.
    pub path: PathBuf,
    /// On the host, or a name without meaning.
    pub source: PathBuf,
    /// File system type, or `bind`.
    pub kind: String,
    /// As mount(8) has them.
    pub options: Vec<String>,
}

/// A device node as it was found on the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostDevice {
    /// Path in the container.
    pub path: PathBuf,
    /// Block, character or FIFO.
    pub kind: LinuxDeviceType,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What cgroup device rules allow: a string of `r`, `w`, `m`.
    pub access: String,
}

/// A resource limit (getrlimit(2)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rlimit {
    /// Which one.
    pub kind: oci_spec::runtime::PosixRlimitType,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit; a runtime that may not raise its own clamps to it.
    pub hard: u64,
}

/// What the node can do, and what the daemon's configuration says.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// Capabilities the daemon itself may hand on: what `ALL` and privileged mean.
    pub capabilities: Capabilities,
    /// Limits of every container.
    pub rlimits: Vec<Rlimit>,
    /// Most processes in a container that sets no limit itself; `None` is no limit.
    pub pids_limit: Option<i64>,
    /// Whether the kernel accounts swap. Where it does, a container with a memory limit
    /// and no swap limit gets no swap.
    pub swap_accounting: bool,
}

impl Default for Defaults {
    /// A node that can do everything; 1,024 open files, which a process may raise to
    /// 524,288 (systemd's defaults; select(2) breaks beyond 1,024).
    fn default() -> Self {
        Self {
            capabilities: crate::capabilities::all(),
            rlimits: vec![Rlimit {
                kind: oci_spec::runtime::PosixRlimitType::RlimitNofile,
                soft: 1024,
                hard: 524_288,
            }],
            pids_limit: None,
            swap_accounting: true,
        }
    }
}

impl Wanted<'_> {
    pub(crate) fn privileged(&self) -> bool {
        self.spec.security.privileged
    }

    pub(crate) fn image_config(&self) -> Option<&oci_spec::image::Config> {
        self.image.config().as_ref()
    }
}

/// Whether `path` can be a mount point or a node in a container.
pub(crate) fn is_container_path(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    path.is_absolute() && !path.as_os_str().as_bytes().contains(&0)
}
