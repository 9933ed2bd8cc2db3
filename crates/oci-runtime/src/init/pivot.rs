//! Leaving the host's mounts behind.

use std::os::fd::BorrowedFd;

use berth_sys::mount::{MountAttributes, mount_setattr};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::error::Error;

/// Makes sure that no mount from here on shows on the host. Unmounts of the host still arrive,
/// so this namespace keeps nothing busy that the host lets go.
pub(crate) fn detach_from_host() -> Result<(), Error> {
    let slave = MountAttributes {
        propagation: u64::from(MountPropagationFlags::DOWNSTREAM.bits()),
        ..MountAttributes::default()
    };
    let root = open_root()?;
    mount_setattr(std::os::fd::AsFd::as_fd(&root), &slave, true)
        .map_err(Error::setup("make the mounts of the host one-way"))
}

/// Makes the mount that `root` refers to the root of this namespace and this process, and
/// unmounts all others.
pub(crate) fn pivot_into(root: BorrowedFd<'_>) -> Result<(), Error> {
    let old = open_root()?;
    fchdir(root).map_err(Error::setup("enter the root file system"))?;
    // With "." twice the old root comes to lie over the new one, and no directory is needed for
    // it (pivot_root(2), NOTES).
    pivot_root(c".", c".").map_err(Error::setup("pivot into the root file system"))?;
    fchdir(&old).map_err(Error::setup("enter the old root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(Error::setup("unmount the old root"))?;
    chdir(c"/").map_err(Error::setup("enter the new root"))
}

fn open_root() -> Result<std::os::fd::OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/", flags, Mode::empty()).map_err(Error::setup("open the root directory"))
}
