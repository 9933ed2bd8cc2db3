//! Gives files of the host the SELinux context of a container (CVE-2021-43816).

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::Error;

/// The attribute that holds the context.
const ATTRIBUTE: &str = "security.selinux";
/// Deepest tree that is walked: as many descriptors are open.
const MAX_DEPTH: usize = 256;

/// What belongs to the node: it and all below it.
const WHOLE: [&str; 11] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/berth",
];
/// What belongs to the node while parts of it may be a container's.
const ITSELF: [&str; 15] = [
    "/",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/lib/kubelet/pods",
    "/var/log",
    "/var/run",
];

/// Refuses what a container may see at most, and never own; `path` has no symbolic links.
pub(super) fn check(path: &Path) -> Result<(), Error> {
    let whole = WHOLE.iter().any(|top| path.starts_with(top));
    if whole || ITSELF.iter().any(|itself| path == Path::new(itself)) {
        let problem = format!("{} belongs to the node", path.display());
        return Err(Error::invalid("SELinux relabel", problem));
    }
    Ok(())
}

/// Labels `path` and all below it, on whatever file systems take labels.
pub(super) fn tree(path: &Path, label: &str) -> Result<(), Error> {
    walk(path, &mut |path| match set(path, label) {
        // A read-only or foreign file system keeps its own.
        Err(Errno::EOPNOTSUPP | Errno::EROFS | Errno::ENOENT) => Ok(()),
        answer => answer,
    })
}

/// lsetxattr(2) of a path whose last part is not followed.
fn set(path: &Path, label: &str) -> Result<(), Errno> {
    rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), rustix::fs::XattrFlags::empty())
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Visits `path` and all below it by paths that nobody can bend: directories are held open,
/// and no symbolic link is followed.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path) -> Result<(), Errno>) -> Result<(), Error> {
    let failed = |errno: Errno| Error::io("relabel", path)(errno.into());
    visit(path).map_err(failed)?;
    if !fs::symlink_metadata(path).map_err(Error::io("relabel", path))?.is_dir() {
        return Ok(());
    }
    let top = openat(nix::fcntl::AT_FDCWD, path, DIRECTORY, Mode::empty()).map_err(failed)?;
    below(&top, 0, visit).map_err(failed)
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn below(
    directory: &OwnedFd,
    depth: usize,
    visit: &mut dyn FnMut(&Path) -> Result<(), Errno>,
) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP);
    }
    let here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let entries =
        fs::read_dir(&here).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    for entry in entries {
        let entry = entry.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let name = entry.file_name();
        visit(&here.join(&name))?;
        let stat = match fstatat(directory.as_fd(), name.as_bytes(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(errno),
        };
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
            match openat(directory.as_fd(), name.as_bytes(), DIRECTORY, Mode::empty()) {
                Ok(child) => below(&child, depth + 1, visit)?,
                // It went, or is something else now.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/engine/src/lsm/relabel.rs: `path.starts_with(top)` → `false`
    #[test]
    fn d6_what_belongs_to_the_node_is_not_relabelled() {
        for bad in ["/", "/etc", "/etc/kubernetes", "/usr", "/usr/share/x", "/var/lib", "/home"] {
            let error = check(Path::new(bad)).unwrap_err();
            assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument, "{bad}");
            assert!(error.to_string().contains(bad), "{error}");
        }
        for good in ["/var/lib/kubelet/pods/u/volumes/v", "/srv/data", "/tmp/x", "/etcetera"] {
            check(Path::new(good)).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn d6_a_link_in_a_volume_leads_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/file"), "").unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a/link")).unwrap();
        let mut seen = Vec::new();
        let mut visit = |path: &Path| {
            seen.push(path.file_name().map(ToOwned::to_owned).unwrap_or_default());
            Ok(())
        };
        walk(dir.path(), &mut visit).unwrap();
        seen.remove(0);
        seen.sort();
        assert_eq!(seen, ["a", "b", "file", "link"]);
        assert!(walk(&dir.path().join("absent"), &mut |_| Ok(())).is_err());
    }
}
