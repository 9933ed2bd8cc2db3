//! mount_setattr(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `MOUNT_ATTR_IDMAP` (linux/mount.h).
const IDMAP: u64 = 0x0010_0000;

/// A change of the attributes of one mount, or of it and all below.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear; must hold `MOUNT_ATTR__ATIME` when `set` has one of them.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`; 0 leaves it as it is.
    pub propagation: u64,
}

/// Changes the mount whose root `mount` refers to; with `recursive` all mounts below it too.
///
/// # Errors
/// `EINVAL` if `mount` is not the root of a mount or the bits contradict each other, `EPERM`
/// without `CAP_SYS_ADMIN` or for a locked flag, `ENOSYS` before Linux 5.12.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes,
    recursive: bool,
) -> Result<(), Errno> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    set(mount, &attr, recursive)
}

/// Has the mount whose root `mount` refers to show ids as the user namespace `user` maps them:
/// a file of its id 0 belongs to whom the namespace's id 0 is. The mount must be detached and
/// not mapped yet; its file system has to allow it (`FS_ALLOW_IDMAP`).
///
/// # Errors
/// `EINVAL` if the file system, or the kernel (before 5.12), cannot; `EPERM` without
/// `CAP_SYS_ADMIN` over the file system or if `user` is the namespace that it belongs to.
pub fn mount_set_ids(mount: BorrowedFd<'_>, user: BorrowedFd<'_>) -> Result<(), Errno> {
    let userns_fd = u64::try_from(user.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let attr = libc::mount_attr { attr_set: IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    set(mount, &attr, false)
}

fn set(mount: BorrowedFd<'_>, attr: &libc::mount_attr, recursive: bool) -> Result<(), Errno> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty NUL-terminated string, `attr` is a valid mount_attr of the
    // size given, and the kernel only reads both; `mount` stays open for the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(ret).map(drop)
}
