//! Paths hidden, and paths made read-only.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::mount_setattr;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::{AnyErrno, Error};
use crate::init::devices::clone_null;
use crate::init::filesystem;
use crate::init::root::{Links, Root, refused};
use crate::plan::Attributes;

/// Hides files behind the null device and directories behind an empty read-only tmpfs. What does
/// not exist needs no hiding.
pub(crate) fn hide(root: &Root<'_>, paths: &[PathBuf], null: BorrowedFd<'_>) -> Result<(), Error> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let mode = fstat(&target).map_err(|errno| refused(path, "look at it", errno))?.st_mode;
        let mask = if FileType::from_raw_mode(mode) != FileType::Directory {
            clone_null(null).map_err(failed("null", path))?
        } else if let Some(first) = &empty {
            // The first one is attached by now, so it can be cloned on any kernel.
            filesystem::clone(first.as_fd(), false).map_err(failed("tmpfs", path))?
        } else {
            new_empty(path)?
        };
        filesystem::attach(mask.as_fd(), target.as_fd()).map_err(failed("mask", path))?;
        if FileType::from_raw_mode(mode) == FileType::Directory && empty.is_none() {
            empty = Some(mask);
        }
    }
    Ok(())
}

/// Makes paths read-only, with all that is mounted below them.
pub(crate) fn protect(root: &Root<'_>, paths: &[PathBuf]) -> Result<(), Error> {
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let tree = filesystem::clone(target.as_fd(), true).map_err(failed("bind", path))?;
        mount_setattr(tree.as_fd(), &Attributes::READ_ONLY.change(), true)
            .map_err(failed("bind", path))?;
        filesystem::attach(tree.as_fd(), target.as_fd()).map_err(failed("bind", path))?;
    }
    Ok(())
}

fn existing(root: &Root<'_>, path: &Path) -> Result<Option<OwnedFd>, Error> {
    match root.open(path, OFlags::PATH, Links::Inside) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(refused(path, "open it", errno)),
    }
}

fn new_empty(path: &Path) -> Result<OwnedFd, Error> {
    let data = [("nr_inodes".to_owned(), Some("1".to_owned()))];
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    filesystem::create("tmpfs", "tmpfs", &data, attributes)
        .map_err(|failure| failure.at("tmpfs", path))
}

fn failed<E: Into<AnyErrno>>(fs_type: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    let destination = path.to_owned();
    move |errno| Error::Mount {
        fs_type: fs_type.to_owned(),
        destination,
        explanation: String::new(),
        source: errno.into().0,
    }
}
