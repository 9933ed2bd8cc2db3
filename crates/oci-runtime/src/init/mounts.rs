//! The mounts of a spec, each made detached and then moved to its place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::mount::{MountAttributes, mount_setattr};
use rustix::fs::{FileType, OFlags, PROC_SUPER_MAGIC, XattrFlags, fstat, fstatfs};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use crate::error::{AnyErrno, Error};
use crate::init::procfs::Procfs;
use crate::init::root::{Links, Root, refused};
use crate::init::{cgroup_mounts, filesystem};
use crate::plan::{Attributes, ContainerPlan, MountPlan, MountWhat};

/// File systems whose instances may be shared between mounts, so that read-only is a matter of
/// the mount and never of the file system.
const SHARED_INSTANCES: [&str; 6] = ["proc", "sysfs", "mqueue", "devpts", "tmpfs", "cgroup2"];

/// What may lie over a file of procfs: files that tell a process how big its world is.
const INSIDE_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Mounts that become read-only when everything in them is made: kept by descriptor, since a
/// path may lead elsewhere by then (CVE-2026-115521).
#[derive(Debug, Default)]
pub(crate) struct Later(Vec<(MountPlan, OwnedFd)>);

impl Later {
    /// Makes them read-only.
    pub(crate) fn apply(self) -> Result<(), Error> {
        for (plan, mount) in self.0 {
            mount_setattr(mount.as_fd(), &Attributes::READ_ONLY.change(), false)
                .map_err(failed(&plan))?;
        }
        Ok(())
    }
}

/// Performs every mount, in order.
pub(crate) fn perform(
    root: &Root<'_>,
    plan: &ContainerPlan,
    sources: &[Option<OwnedFd>],
    procfs: &Procfs,
) -> Result<Later, Error> {
    let mut later = Later::default();
    for (mount, source) in plan.mounts.iter().zip(sources) {
        match (&mount.what, source) {
            (MountWhat::Filesystem { fs_type, .. }, Some(made)) => {
                if let Some(made) = adopt(root, mount, fs_type, made)? {
                    later.0.push((mount.clone(), made));
                }
            }
            (MountWhat::Filesystem { fs_type, source }, None) => {
                check_proc(mount, None)?;
                if let Some(made) = new_filesystem(root, mount, fs_type, source)? {
                    later.0.push((mount.clone(), made));
                }
            }
            (MountWhat::Cgroup, _) => {
                check_proc(mount, None)?;
                cgroup_mounts::perform(root, mount, plan, procfs)?;
            }
            (MountWhat::Remount, _) => remount(root, mount)?,
            (_, Some(source)) => {
                check_proc(mount, Some(source.as_fd()))?;
                bind(root, mount, source.as_fd())?;
            }
            (MountWhat::Bind { .. } | MountWhat::SharedShm | MountWhat::Image { .. }, None) => {
                return Err(Error::Protocol("a bind mount without a source".into()));
            }
        }
    }
    Ok(later)
}

/// Refuses what would put something else in procfs' place (CVE-2019-16884 and its kin).
fn check_proc(mount: &MountPlan, source: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let destination = mount.destination.as_path();
    if !destination.starts_with("/proc") {
        return Ok(());
    }
    let refuse = |reason| Err(refusal(mount, reason));
    if destination != Path::new("/proc") {
        let allowed = INSIDE_PROC.iter().any(|path| destination == Path::new(path));
        return if allowed { Ok(()) } else { refuse("it would hide a part of procfs") };
    }
    let is_proc = match (source, &mount.what) {
        (Some(source), _) => {
            fstatfs(source).map_err(|errno| failed(mount)(AnyErrno::from(errno)))?.f_type
                == PROC_SUPER_MAGIC
        }
        (None, MountWhat::Filesystem { fs_type, .. }) => fs_type == "proc",
        (None, _) => false,
    };
    if is_proc { Ok(()) } else { refuse("only procfs belongs there") }
}

fn refusal(mount: &MountPlan, reason: &'static str) -> Error {
    Error::Refused { destination: mount.destination.clone(), reason: reason.into() }
}

/// Mounts a new instance; returned if it is to become read-only later.
fn new_filesystem(
    root: &Root<'_>,
    mount: &MountPlan,
    fs_type: &str,
    source: &str,
) -> Result<Option<OwnedFd>, Error> {
    let target = root.ensure_directory(&mount.destination, links(mount))?;
    let mut data = mount.options.data.clone();
    let readonly = mount.options.attributes.readonly();
    // A tmpfs is filled by us first: mount points, devices, links.
    let later = readonly && fs_type == "tmpfs";
    if readonly && !SHARED_INSTANCES.contains(&fs_type) {
        data.push(("ro".to_owned(), None));
    }
    let attributes =
        if later { mount.options.attributes.writable() } else { mount.options.attributes };
    let made = filesystem::create(fs_type, source, &data, mount_flags(attributes))
        .map_err(|failure| failure.at(fs_type, &mount.destination))?;
    settle(made.as_fd(), mount, target.as_fd())?;
    Ok(later.then_some(made))
}

/// Attaches what the worker has mounted, since a user namespace's root could not; returned if
/// it is to become read-only later.
fn adopt(
    root: &Root<'_>,
    mount: &MountPlan,
    fs_type: &str,
    made: &OwnedFd,
) -> Result<Option<OwnedFd>, Error> {
    let target = root.ensure_directory(&mount.destination, links(mount))?;
    let later = mount.options.attributes.readonly() && fs_type == "tmpfs";
    let attributes =
        if later { mount.options.attributes.writable() } else { mount.options.attributes };
    mount_setattr(made.as_fd(), &attributes.change(), false).map_err(failed(mount))?;
    set_propagation(made.as_fd(), mount, u64::from(MountPropagationFlags::PRIVATE.bits()), true)?;
    settle(made.as_fd(), mount, target.as_fd())?;
    later.then(|| made.try_clone().map_err(failed(mount))).transpose()
}

fn bind(root: &Root<'_>, mount: &MountPlan, source: BorrowedFd<'_>) -> Result<(), Error> {
    let kind = fstat(source).map_err(|errno| failed(mount)(AnyErrno::from(errno)))?.st_mode;
    let target = if FileType::from_raw_mode(kind) == FileType::Directory {
        root.ensure_directory(&mount.destination, links(mount))?
    } else {
        root.ensure_file(&mount.destination, links(mount))?
    };
    if !mount.options.attributes.is_empty() {
        mount_setattr(source, &mount.options.attributes.change(), false).map_err(failed(mount))?;
    }
    settle(source, mount, target.as_fd())
}

/// Changes the attributes of the mount at a destination.
fn remount(root: &Root<'_>, mount: &MountPlan) -> Result<(), Error> {
    let target = root
        .open(&mount.destination, OFlags::PATH, links(mount))
        .map_err(|errno| refused(&mount.destination, "open the mount", errno))?;
    mount_setattr(target.as_fd(), &mount.options.attributes.change(), false)
        .map_err(failed(mount))?;
    if !mount.options.recursive.is_empty() {
        mount_setattr(target.as_fd(), &mount.options.recursive.change(), true)
            .map_err(failed(mount))?;
    }
    for propagation in &mount.options.propagation {
        set_propagation(target.as_fd(), mount, propagation.flag, propagation.recursive)?;
    }
    Ok(())
}

/// Labels the root of a mount whose file system takes no label as an option.
fn label(tree: BorrowedFd<'_>, mount: &MountPlan) -> Result<(), Error> {
    use std::os::fd::AsRawFd as _;
    let Some(label) = &mount.label else { return Ok(()) };
    // A detached mount has no path but this one, in the procfs of the host.
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    rustix::fs::setxattr(path, "security.selinux", label.as_bytes(), XattrFlags::empty())
        .map_err(failed(mount))
}

/// What all kinds have in common: attributes of the whole tree, propagation, the place.
fn settle(tree: BorrowedFd<'_>, mount: &MountPlan, target: BorrowedFd<'_>) -> Result<(), Error> {
    let magic = fstatfs(target).map_err(|errno| failed(mount)(AnyErrno::from(errno)))?.f_type;
    if magic == PROC_SUPER_MAGIC && !mount.destination.starts_with("/proc") {
        return Err(refusal(mount, "a link leads into procfs"));
    }
    label(tree, mount)?;
    if !mount.options.recursive.is_empty() {
        mount_setattr(tree, &mount.options.recursive.change(), true).map_err(failed(mount))?;
    }
    let cloned = matches!(
        mount.what,
        MountWhat::Bind { .. } | MountWhat::SharedShm | MountWhat::Image { .. }
    );
    if mount.options.propagation.is_empty() && cloned {
        // A clone is its source's peer; nothing travels unless the spec says so.
        set_propagation(tree, mount, u64::from(MountPropagationFlags::PRIVATE.bits()), true)?;
    }
    for propagation in &mount.options.propagation {
        set_propagation(tree, mount, propagation.flag, propagation.recursive)?;
    }
    filesystem::attach(tree, target).map_err(failed(mount))
}

fn set_propagation(
    tree: BorrowedFd<'_>,
    mount: &MountPlan,
    flag: u64,
    recursive: bool,
) -> Result<(), Error> {
    let change = MountAttributes { propagation: flag, ..MountAttributes::default() };
    mount_setattr(tree, &change, recursive).map_err(failed(mount))
}

pub(crate) fn links(mount: &MountPlan) -> Links {
    if mount.strict() { Links::Refused } else { Links::Inside }
}

/// The bits fsmount(2) takes.
pub(crate) fn mount_flags(attributes: Attributes) -> MountAttrFlags {
    MountAttrFlags::from_bits_truncate(u32::try_from(attributes.set).unwrap_or(0))
}

pub(crate) fn failed<E: Into<AnyErrno>>(mount: &MountPlan) -> impl FnOnce(E) -> Error {
    move |errno| Error::Mount {
        fs_type: mount.type_name().to_owned(),
        destination: mount.destination.clone(),
        explanation: String::new(),
        source: errno.into().0,
    }
}
