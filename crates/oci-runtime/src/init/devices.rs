//! Device nodes and the links of `/dev`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berth_sys::mount::mount_setattr;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat,
    readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{AnyErrno, Error};
use crate::init::filesystem;
use crate::init::root::{Links, Root};
use crate::plan::{Attributes, DeviceNode, NodeKind};

/// Major and minor number of the null device.
const NULL: (u32, u32) = (1, 3);

/// What OCI promises (config-linux.md, "Dev symbolic links"), and the multiplexer, which has to
/// be that of the container's own devpts.
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

/// The host's null device, checked to be one (CVE-2025-31133).
pub(crate) fn host_null() -> Result<OwnedFd, Error> {
    let step = "open the host's null device";
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(CWD, c"/dev/null", flags, Mode::empty()).map_err(Error::setup(step))?;
    if is_null(null.as_fd()).map_err(Error::setup(step))? {
        Ok(null)
    } else {
        Err(Error::setup("check the host's null device")(Errno::NODEV))
    }
}

/// Whether this is a null device.
pub(crate) fn is_null(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = fstat(file)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(NULL.0, NULL.1))
}

/// A detached mount of the host's null device for a container to have: read-only, so that the
/// node's owner and mode stay the host's. Reading and writing the device is as ever.
pub(crate) fn clone_null(null: BorrowedFd<'_>) -> Result<OwnedFd, AnyErrno> {
    let mount = filesystem::clone(null, false)?;
    mount_setattr(mount.as_fd(), &Attributes::READ_ONLY.change(), false)?;
    Ok(mount)
}

/// Makes the nodes, and the links of `/dev`.
pub(crate) fn fill(root: &Root<'_>, nodes: &[DeviceNode]) -> Result<(), Error> {
    let dev = root.ensure_directory(Path::new("/dev"), Links::Refused)?;
    for node in nodes {
        let in_dev = node.path.parent() == Some(Path::new("/dev"));
        match node.path.file_name() {
            Some(name) if in_dev => make(dev.as_fd(), Path::new(name), node)?,
            _ => {
                let strict = node.path.starts_with("/dev");
                let links = if strict { Links::Refused } else { Links::Inside };
                let (parent, name) = root.ensure_parent(&node.path, links)?;
                make(parent.as_fd(), Path::new(name), node)?;
            }
        }
    }
    for (target, name) in LINKS {
        link(dev.as_fd(), target, name)?;
    }
    Ok(())
}

/// Makes one node.
pub(crate) fn make(parent: BorrowedFd<'_>, name: &Path, node: &DeviceNode) -> Result<(), Error> {
    let (file_type, device) = match node.kind {
        NodeKind::Char { major, minor } => (FileType::CharacterDevice, makedev(major, minor)),
        NodeKind::Block { major, minor } => (FileType::BlockDevice, makedev(major, minor)),
        NodeKind::Fifo => (FileType::Fifo, 0),
    };
    match mknodat(parent, name, file_type, Mode::from_raw_mode(node.mode), device) {
        Ok(()) => {}
        // An image, or an earlier start in the same root, may have made it already; but then
        // it has to be the same device.
        Err(Errno::EXIST) => {
            let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed(node, "look at what is there"))?;
            let same = FileType::from_raw_mode(stat.st_mode) == file_type
                && (file_type == FileType::Fifo || stat.st_rdev == device);
            return if same {
                Ok(())
            } else {
                Err(failed(node, "something else is there")(Errno::EXIST))
            };
        }
        Err(errno) => return Err(failed(node, "make the node")(errno)),
    }
    if (node.uid, node.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(node, "set its owner"))?;
    }
    Ok(())
}

fn failed(node: &DeviceNode, step: &'static str) -> impl FnOnce(Errno) -> Error {
    let path = node.path.clone();
    move |errno| Error::Device { path, step: step.into(), source: AnyErrno::from(errno).0 }
}

fn link(dev: BorrowedFd<'_>, target: &str, name: &str) -> Result<(), Error> {
    let failed = |errno: Errno| Error::Device {
        path: Path::new("/dev").join(name),
        step: "make the link".into(),
        source: AnyErrno::from(errno).0,
    };
    match symlinkat(target, dev, name) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let there = readlinkat(dev, name, Vec::new());
            if there.is_ok_and(|there| there.to_bytes() == target.as_bytes()) {
                return Ok(());
            }
            // Only the name goes: unlinkat(2) follows no link and removes no directory.
            unlinkat(dev, name, AtFlags::empty()).map_err(failed)?;
            symlinkat(target, dev, name).map_err(failed)
        }
        Err(errno) => Err(failed(errno)),
    }
}
