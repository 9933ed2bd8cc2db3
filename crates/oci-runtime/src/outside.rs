//! What only the host's root can make for a container in a user namespace: its root file
//! system, its device nodes, and the mounts of what another namespace owns.
//!
//! All of it is handed to init as detached mounts. An overlay cannot be mapped as a whole, so
//! its lower layers are, each seen through a mount that shows its ids as the user namespace
//! maps them; what the container writes belongs to the mapped ids themselves. The layers'
//! mounts are attached while the overlay is mounted, as kernels before 6.15 want it, in a mount
//! namespace that ends with that (design decision 19).

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::error::{AnyErrno, Error};
use crate::init::root::{Links, Root};
use crate::init::{devices, filesystem, mounts, pivot, rootfs};
use crate::plan::{ContainerPlan, DeviceNode, MountPlan, MountWhat};
use crate::user::{Users, unmapped};

/// The root file system, detached.
pub(crate) fn root(
    plan: &ContainerPlan,
    bundle: &Path,
    users: &Users<'_>,
) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let home = rustix::fs::open(c"/proc/self/ns/mnt", flags, Mode::empty())
        .map_err(Error::setup("open the host's mount namespace"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::setup("make a mount namespace"))?;
    let mounted = rootfs::mount(&plan.rootfs, bundle, Some(users))?;
    let detached = filesystem::clone(mounted.as_fd(), true)
        .map_err(Error::setup("detach the root file system"))?;
    setns(&home, CloneFlags::CLONE_NEWNS)
        .map_err(Error::setup("return to the host's mount namespace"))?;
    Ok(detached)
}

/// Adds to `sources`, which has an entry per mount of the plan, the file systems that init
/// cannot make.
pub(crate) fn file_systems(
    plan: &ContainerPlan,
    users: &Users<'_>,
    sources: &mut [Option<OwnedFd>],
) -> Result<(), Error> {
    let own_net = plan.namespaces.is_private(CloneFlags::CLONE_NEWNET);
    let mut dev = false;
    for (mount, source) in plan.mounts.iter().zip(sources) {
        let MountWhat::Filesystem { fs_type, .. } = &mount.what else { continue };
        match fs_type.as_str() {
            "tmpfs" if plan.fill_dev && !dev && mount.destination == Path::new("/dev") => {
                *source = Some(device_directory(mount, &plan.devices, users)?);
                dev = true;
            }
            // It shows the network namespace, so only who owns that may mount it.
            "sysfs" if !own_net => *source = Some(host_sysfs()?),
            _ => {}
        }
    }
    if plan.fill_dev && !dev {
        let what = "a user namespace without a tmpfs at /dev for its device nodes";
        return Err(Error::unsupported("mounts", what));
    }
    Ok(())
}

/// The tmpfs of `/dev` with its nodes. It belongs to the namespace's root; a node of the host
/// keeps its owner, so that what a remapped root may open is what the host lets it.
fn device_directory(
    mount: &MountPlan,
    nodes: &[DeviceNode],
    users: &Users<'_>,
) -> Result<OwnedFd, Error> {
    let ids = users.ids;
    let root_uid = ids.host_uid(0).ok_or_else(|| unmapped("user", 0))?;
    let root_gid = ids.host_gid(0).ok_or_else(|| unmapped("group", 0))?;
    let mut data = mount.options.data.clone();
    for (name, id) in [("uid", root_uid), ("gid", root_gid)] {
        if data.iter().any(|(known, _)| known == name) {
            return Err(Error::unsupported("mounts", "an owner of /dev in a user namespace"));
        }
        data.push((name.to_owned(), Some(id.to_string())));
    }
    let flags = mounts::mount_flags(mount.options.attributes.writable());
    let made = filesystem::create("tmpfs", mount.type_name(), &data, flags)
        .map_err(|failure| failure.at("tmpfs", &mount.destination))?;
    // Modes are exactly those asked for.
    rustix::process::umask(Mode::empty());
    let root = Root::new(made.as_fd());
    let owner = (Uid::from_raw(root_uid), Gid::from_raw(root_gid));
    for node in nodes {
        let Ok(path) = node.path.strip_prefix("/dev") else {
            let what =
                format!("a device outside /dev ({}) in a user namespace", node.path.display());
            return Err(Error::unsupported("linux.devices", what));
        };
        let path = Path::new("/").join(path);
        let (parent, name) = root.ensure_parent(&path, Links::Refused)?;
        devices::make(parent.as_fd(), Path::new(name), node)?;
        for above in path.ancestors().skip(1).filter(|above| above.parent().is_some()) {
            let relative: PathBuf = above.components().skip(1).collect();
            chownat(&made, &relative, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(Error::setup("give a directory of /dev to the namespace's root"))?;
        }
    }
    Ok(made)
}

/// The host's own view, without what is mounted below.
fn host_sysfs() -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, c"/sys", flags).map_err(|errno| Error::MountSource {
        path: "/sys".into(),
        source: AnyErrno::from(errno).0,
    })
}

/// Asks the kernel whether it can do all that a container in a user namespace needs, with
/// `directory` as a lower layer. For a process that ends after it: it changes its namespaces.
///
/// # Errors
/// What it cannot.
pub fn probe(directory: &Path) -> Result<(), Error> {
    use berth_model::{IdMappings, IdRange};
    let range = vec![IdRange { container: 0, host: 65_536, length: 65_536 }];
    let ids = IdMappings { uids: range.clone(), gids: range };
    let also = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let holder = crate::user::Holder::new(&ids, also | CloneFlags::CLONE_NEWNS, || {
        // What a container mounts there, and a host may forbid by covering its own.
        for fs_type in ["sysfs", "mqueue", "devpts"] {
            filesystem::create(fs_type, fs_type, &[], MountAttrFlags::empty())
                .map_err(|failure| failure.at(fs_type, Path::new("/")))?;
        }
        Ok(())
    })?;
    let namespace = holder.open("user")?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::setup("make a mount namespace"))?;
    pivot::detach_from_host()?;
    rootfs::probe_overlay(directory, namespace.as_fd())
}
