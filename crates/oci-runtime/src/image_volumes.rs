//! Images that a container has as volumes: their layers, mounted for reading.
//!
//! The worker mounts them in a mount namespace of its own, over the bundle, and takes a
//! detached clone: mount(2) knows no detached mount, and fsconfig(2) takes only short
//! lists of layers before Linux 6.7. Nothing of it is ever visible on the host.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::OFlags;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::{AnyErrno, Error};
use crate::init::root::{Links, Root, refused};
use crate::init::{filesystem, pivot, rootfs};
use crate::plan::{MountPlan, MountWhat};
use crate::user::Users;

/// Fills the `sources` of image volumes. Leaves the host's mount namespace when there are
/// any, so it comes after whatever needs it.
pub(crate) fn open(
    mounts: &[MountPlan],
    bundle: &Path,
    users: Option<&Users<'_>>,
    sources: &mut [Option<OwnedFd>],
) -> Result<(), Error> {
    if !mounts.iter().any(|mount| matches!(mount.what, MountWhat::Image { .. })) {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::setup("leave the host's mounts"))?;
    pivot::detach_from_host()?;
    for (mount, source) in mounts.iter().zip(sources) {
        if let MountWhat::Image { layers, sub_path } = &mount.what {
            rootfs::mount_one(layers, bundle, users).map_err(|error| at(mount, error))?;
            *source = Some(part(bundle, sub_path)?);
            // Mapped layers lie on a mount of their own below it.
            for _ in 0..if layers.ids.is_some() && layers.fs_type == "overlay" { 2 } else { 1 } {
                unmount(bundle, UnmountFlags::DETACH)
                    .map_err(Error::setup("unmount the image behind a volume"))?;
            }
        }
    }
    Ok(())
}

/// A detached clone of what lies at `sub_path` of the image mounted at `place`. Symbolic
/// links of the image lead nowhere but into it.
fn part(place: &Path, sub_path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(place, flags, rustix::fs::Mode::empty())
        .map_err(Error::setup("open the image behind a volume"))?;
    let root = Root::new(top.as_fd());
    let found = root
        .open(sub_path, OFlags::PATH | OFlags::DIRECTORY, Links::Inside)
        .map_err(|errno| refused(sub_path, "open the directory of the image", errno))?;
    filesystem::clone(found.as_fd(), false)
        .map_err(Error::setup::<AnyErrno>("clone the image behind a volume"))
}

/// The failure of a mount of layers, told of the volume.
fn at(mount: &MountPlan, error: Error) -> Error {
    match error {
        Error::Rootfs { step, source } => {
            let step = format!("mount the image at {}: {step}", mount.destination.display());
            Error::Setup { step: step.into(), source }
        }
        other => other,
    }
}
