//! The root file system: mounted in the container's own mount namespace, never the host's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::{MountAttributes, mount_setattr};
use nix::mount::MsFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, open_tree};

use crate::error::{AnyErrno, Error};
use crate::init::{filesystem, pivot};
use crate::plan::{Attributes, RootMount, RootfsPlan};
use crate::user::Users;

mod layers;

pub(crate) use layers::probe as probe_overlay;

/// Longest option string that mount(2) takes: a page with its NUL.
const LONGEST_DATA: usize = 4095;

/// Mounts the root file system and returns its mount, writable if it can be. `users` is the
/// user namespace as which the plan's layers show their ids.
pub(crate) fn mount(
    plan: &RootfsPlan,
    bundle: &Path,
    users: Option<&Users<'_>>,
) -> Result<OwnedFd, Error> {
    pivot::detach_from_host()?;
    let path = bundle.join(&plan.path);
    if plan.mounts.is_empty() {
        let mount = clone_tree(&path, true)?;
        make_private(mount.as_fd())?;
        let target = open_directory(&path).map_err(failed("open its directory"))?;
        filesystem::attach(mount.as_fd(), target.as_fd()).map_err(failed("attach it"))?;
        return Ok(mount);
    }
    // Where it lies while the container is made matters to nobody: the directory is only
    // covered in this namespace. A bundle need not have one for it.
    let target = if path.is_dir() { path } else { bundle.to_owned() };
    for mount in &plan.mounts {
        mount_one(mount, &target, users)?;
    }
    let mount = open_directory(&target).map_err(failed("open its directory"))?;
    make_private(mount.as_fd())?;
    Ok(mount)
}

/// Attaches the root file system that the worker has mounted, over the root of this namespace:
/// nothing else is certain to be within reach of a user namespace's root.
pub(crate) fn adopt(mount: BorrowedFd<'_>) -> Result<(), Error> {
    pivot::detach_from_host()?;
    let target = open_directory(Path::new("/")).map_err(failed("open the root directory"))?;
    filesystem::attach(mount, target.as_fd()).map_err(failed("attach it"))?;
    make_private(mount)
}

/// Makes the root mount read-only if it is to be, when everything in it is made.
pub(crate) fn protect(plan: &RootfsPlan, mount: BorrowedFd<'_>) -> Result<(), Error> {
    if plan.readonly {
        mount_setattr(mount, &Attributes::READ_ONLY.change(), false)
            .map_err(failed("make it read-only"))?;
    }
    Ok(())
}

/// Sets the root mount's propagation. After the pivot, which refuses a shared root.
pub(crate) fn propagate(plan: &RootfsPlan, mount: BorrowedFd<'_>) -> Result<(), Error> {
    if plan.propagation != u64::from(MountPropagationFlags::PRIVATE.bits()) {
        let change =
            MountAttributes { propagation: plan.propagation, ..MountAttributes::default() };
        mount_setattr(mount, &change, false).map_err(failed("set its propagation"))?;
    }
    Ok(())
}

/// Mounts one mount of a root file system, or of an image, on the directory `target`.
pub(crate) fn mount_one(
    mount: &RootMount,
    target: &Path,
    users: Option<&Users<'_>>,
) -> Result<(), Error> {
    let options = &mount.options;
    let users = match (&mount.ids, users) {
        (None, _) => None,
        (Some(ids), Some(users)) if users.ids == ids => Some(users),
        _ => return Err(Error::invalid("rootfs", "maps other ids than the user namespace")),
    };
    if let Some(recursive) = options.bind {
        let tree = clone_tree(Path::new(&mount.source), recursive)?;
        if let Some(users) = users {
            set_ids(tree.as_fd(), users.fd(), Path::new(&mount.source))?;
        }
        set_attributes(tree.as_fd(), mount)?;
        let target = open_directory(target).map_err(failed("open its directory"))?;
        return filesystem::attach(tree.as_fd(), target.as_fd()).map_err(failed("attach it"));
    }
    if let Some(users) = users {
        return layers::mount(mount, target, users.fd());
    }
    if mount.fs_type == "overlay" && options.data_string().len() > LONGEST_DATA {
        let tree = long_overlay(mount)?;
        let target = open_directory(target).map_err(failed("open its directory"))?;
        return filesystem::attach(tree.as_fd(), target.as_fd()).map_err(failed("attach it"));
    }
    // mount(2), since fsconfig(2) takes no value of more than 255 bytes, as `lowerdir` is.
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, options.attributes.readonly());
    nix::mount::mount(
        Some(mount.source.as_str()),
        target,
        Some(mount.fs_type.as_str()),
        flags,
        Some(options.data_string().as_str()),
    )
    .map_err(failed("mount it"))?;
    if options.attributes.is_empty() && options.recursive.is_empty() {
        return Ok(());
    }
    let mounted = open_directory(target).map_err(failed("open its directory"))?;
    set_attributes(mounted.as_fd(), mount)
}

/// An overlay with more layers than mount(2) has room to name: one call per layer, which needs
/// Linux 6.7.
fn long_overlay(mount: &RootMount) -> Result<OwnedFd, Error> {
    let mut data = Vec::new();
    for (name, value) in &mount.options.data {
        match (name.as_str(), value) {
            ("lowerdir", Some(layers)) if !layers.contains('\\') && !layers.contains("::") => {
                let layer = |layer: &str| ("lowerdir+".to_owned(), Some(layer.to_owned()));
                data.extend(layers.split(':').map(layer));
            }
            // No other option comes after it here.
            ("context", Some(label)) => {
                data.push((name.clone(), Some(label.trim_matches('"').to_owned())));
            }
            _ => data.push((name.clone(), value.clone())),
        }
    }
    let bits = u32::try_from(mount.options.attributes.set)
        .map_err(|_| failed("read its options")(nix::errno::Errno::EINVAL))?;
    filesystem::create(&mount.fs_type, &mount.source, &data, MountAttrFlags::from_bits_retain(bits))
        .map_err(|failure| failure.at(&mount.fs_type, Path::new("/")))
}

/// Shows the ids of a mount as the user namespace `users` maps them.
fn set_ids(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    berth_sys::mount::mount_set_ids(mount, users)
        .map_err(|source| Error::UnmappedMount { path: path.to_owned(), source })
}

fn set_attributes(tree: BorrowedFd<'_>, mount: &RootMount) -> Result<(), Error> {
    let options = &mount.options;
    for (attributes, recursive) in [(options.recursive, true), (options.attributes, false)] {
        if !attributes.is_empty() {
            mount_setattr(tree, &attributes.change(), recursive)
                .map_err(failed("set its attributes"))?;
        }
    }
    Ok(())
}

fn make_private(tree: BorrowedFd<'_>) -> Result<(), Error> {
    let private = MountAttributes {
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        ..MountAttributes::default()
    };
    mount_setattr(tree, &private, true).map_err(failed("make it private"))
}

fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags).map_err(|errno| Error::MountSource {
        path: PathBuf::from(path),
        source: AnyErrno::from(errno).0,
    })
}

fn open_directory(path: &Path) -> Result<OwnedFd, AnyErrno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn failed<E: Into<AnyErrno>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |errno| Error::Rootfs { step: step.into(), source: errno.into().0 }
}
