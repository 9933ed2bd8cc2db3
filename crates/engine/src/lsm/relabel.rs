//! Gives files of the host the SELinux context of a container (CVE-2021-43816).

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use rustix::fs::{OFlags, ResolveFlags};

use crate::Error;

/// The attribute that holds the context.
const ATTRIBUTE: &str = "security.selinux";
/// Deepest tree that is walked: as many descriptors are open.
const MAX_DEPTH: usize = 256;

/// What belongs to the node: it and all below it.
const WHOLE: [&str; 10] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];
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
/// `own` are the daemon's directories: they and all below them, and all that holds them.
pub(super) fn check(path: &Path, own: &[PathBuf]) -> Result<(), Error> {
    let whole = WHOLE.iter().any(|top| path.starts_with(top));
    // As it is called, and wherever it really is.
    let mut own = own.iter().flat_map(|own| [own.canonicalize().ok(), Some(own.clone())]).flatten();
    let own = own.any(|own| path.starts_with(&own) || own.starts_with(path));
    if whole || own || ITSELF.iter().any(|itself| path == Path::new(itself)) {
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
/// and no symbolic link is followed, not even on the way to `path`: that was found without
/// one, so whoever may write there has put it in the way since (CVE-2021-25741).
fn walk(path: &Path, visit: &mut dyn FnMut(&Path) -> Result<(), Errno>) -> Result<(), Error> {
    let failed = |errno: Errno| Error::io("relabel", path)(errno.into());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(Errno::EINVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let none = rustix::fs::Mode::empty();
    let place =
        rustix::fs::openat2(rustix::fs::CWD, parent, flags, none, ResolveFlags::NO_SYMLINKS)
            .map_err(|errno| failed(Errno::from_raw(errno.raw_os_error())))?;
    fstatat(&place, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
    one(&place, name, 0, visit).map_err(failed)
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Visits `name` of a directory, and all below it.
fn one(
    directory: &OwnedFd,
    name: &OsStr,
    depth: usize,
    visit: &mut dyn FnMut(&Path) -> Result<(), Errno>,
) -> Result<(), Errno> {
    visit(&place_of(directory).join(name))?;
    let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        return Ok(());
    }
    match openat(directory, name, DIRECTORY, Mode::empty()) {
        Ok(child) => below(&child, depth, visit),
        // It went, or is something else now.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn below(
    directory: &OwnedFd,
    depth: usize,
    visit: &mut dyn FnMut(&Path) -> Result<(), Errno>,
) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP);
    }
    let of_io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    for entry in fs::read_dir(place_of(directory)).map_err(of_io)? {
        one(directory, &entry.map_err(of_io)?.file_name(), depth + 1, visit)?;
    }
    Ok(())
}

/// The path of a directory that is held open.
fn place_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// The context that a path has, which a kernel keeps without the module too.
#[cfg(test)]
pub(super) fn label(path: &Path) -> Option<String> {
    let mut found = [0; 256];
    let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut found[..]).ok()?;
    String::from_utf8(found[..length].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// teeth: crates/engine/src/lsm/relabel.rs: `path.starts_with(top)` → `false`
    #[test]
    fn d6_what_belongs_to_the_node_is_not_relabelled() {
        for bad in ["/", "/etc", "/etc/kubernetes", "/usr", "/usr/share/x", "/var/lib", "/home"] {
            let error = check(Path::new(bad), &[]).unwrap_err();
            assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument, "{bad}");
            assert!(error.to_string().contains(bad), "{error}");
        }
        for good in ["/var/lib/kubelet/pods/u/volumes/v", "/srv/data", "/tmp/x", "/etcetera"] {
            check(Path::new(good), &[]).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// teeth: crates/engine/src/lsm/relabel.rs: `path.starts_with(&own) || own.starts_with(path)` → `own.starts_with(path)`
    /// teeth: crates/engine/src/lsm/relabel.rs: `path.starts_with(&own) || own.starts_with(path)` → `path.starts_with(&own)`
    /// teeth: crates/engine/src/lsm/relabel.rs: `[own.canonicalize().ok(), Some(own.clone())]` → `[None, Some(own.clone())]`
    #[test]
    fn d6_what_is_the_daemons_is_not_relabelled() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("disk/real")).unwrap();
        std::os::unix::fs::symlink("disk/real", dir.join("root")).unwrap();
        let own = [dir.join("root"), dir.join("run/berth")];
        for bad in ["root", "root/images", "disk/real/l", "disk", "run/berth/sandboxes", "run", "."]
        {
            let bad = dir.join(bad);
            check(&bad.components().collect::<PathBuf>(), &own).unwrap_err();
        }
        for good in ["disk/other", "run/berthed", "rooted"] {
            check(&dir.join(good), &own).unwrap();
        }
    }

    /// teeth: crates/engine/src/lsm/relabel.rs: `none, ResolveFlags::NO_SYMLINKS)` → `none, ResolveFlags::empty())`
    #[test]
    fn d6_a_link_on_the_way_to_a_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("node/volume")).unwrap();
        std::os::unix::fs::symlink("node", dir.path().join("bent")).unwrap();
        walk(&dir.path().join("node/volume"), &mut |_| Ok(())).unwrap();
        let mut seen = 0;
        let mut visit = |_: &Path| {
            seen += 1;
            Ok(())
        };
        walk(&dir.path().join("bent/volume"), &mut visit).unwrap_err();
        assert_eq!(seen, 0);
    }

    /// teeth: crates/engine/src/lsm/relabel.rs: `fstatat(&place, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;` → ``
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

    /// teeth: crates/engine/src/lsm/relabel.rs: `rustix::fs::lsetxattr(path, ATTRIBUTE` → `rustix::fs::setxattr(path, ATTRIBUTE`
    #[test]
    fn d6_a_link_in_a_volume_is_labelled_itself() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, secret) = (dir.path().join("link"), outside.path().join("secret"));
        fs::write(&secret, "").unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        tree(dir.path(), "a:b:c:s0").unwrap();
        assert_eq!(label(dir.path()).as_deref(), Some("a:b:c:s0"));
        assert_eq!(label(&link).as_deref(), Some("a:b:c:s0"));
        assert_ne!(label(&secret).as_deref(), Some("a:b:c:s0"));
    }
}
