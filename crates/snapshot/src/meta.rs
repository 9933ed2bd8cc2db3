//! Metadata of directories: what overlayfs shows of a merged one.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};

use crate::Error;

/// The attribute by which a directory hides what lies below it (overlayfs: "whiteouts
/// and opaque directories").
pub const OPAQUE_XATTR: &CStr = c"trusted.overlay.opaque";

/// Largest extended attribute value (the kernel's own `XATTR_SIZE_MAX`), bytes.
pub const MAX_XATTR_BYTES: usize = 65_536;

/// Whether an attribute steers overlayfs, and so is never taken from a layer's content.
#[must_use]
pub fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether `directory` hides what lies below it.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 4];
    matches!(fgetxattr(directory, OPAQUE_XATTR, &mut value[..]), Ok(1)) && value[0] == b'y'
}

/// Gives the directory `to` the owner, mode, extended attributes (overlay's own left
/// out) and times of the directory `from`. Both must be open for reading.
pub fn copy_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Error> {
    let stat = fstat(from).map_err(failed("read metadata of"))?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
        .map_err(failed("change owner of"))?;
    let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
    fchmod(to, mode).map_err(failed("change mode of"))?;
    copy_xattrs(from, to)?;
    set_times(to, &stat)
}

fn set_times(to: BorrowedFd<'_>, stat: &FileStat) -> Result<(), Error> {
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    nix::sys::stat::futimens(to, &accessed, &modified).map_err(failed("change times of"))
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Error> {
    let mut names = vec![0_u8; 1024];
    let length = match flistxattr(from, names.as_mut_slice()) {
        Err(rustix::io::Errno::RANGE) => {
            names.resize(MAX_XATTR_BYTES, 0);
            flistxattr(from, names.as_mut_slice())
        }
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        answer => answer,
    }
    .map_err(failed("list attributes of"))?;
    let names = names.get(..length).unwrap_or_default();
    let mut value = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if is_overlay_xattr(name.to_bytes()) {
            continue;
        }
        value.resize(MAX_XATTR_BYTES, 0);
        let size =
            fgetxattr(from, name, value.as_mut_slice()).map_err(failed("read attribute of"))?;
        fsetxattr(to, name, value.get(..size).unwrap_or_default(), XattrFlags::empty())
            .map_err(failed("set attribute of"))?;
    }
    Ok(())
}

fn failed<E: crate::error::IntoErrno>(action: &'static str) -> impl FnOnce(E) -> Error {
    Error::io(action, "directory")
}

/// The identity of an inode, as long as it is open.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    pub(crate) fn of(fd: impl AsFd) -> nix::Result<Self> {
        fstat(fd).map(|stat| Self::from_stat(&stat))
    }

    pub(crate) fn from_stat(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }
}
