//! Whether a file system may keep who uses it waiting for somebody else.
//!
//! A log on a disk of the node is written by the shim's thread itself. One on a file system
//! that another process or machine serves (FUSE, NFS, ...) would stop the thread for as long
//! as that does not answer, so it gets a writer of its own. What is found out here must not
//! ask such a file system anything: paths are looked up in the kernel's cache only
//! (`RESOLVE_CACHED`, openat2(2)), and a step that is not cached is taken only where the
//! directory it starts from is the node's own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, readlinkat, statx,
};
use rustix::io::Errno;

/// File systems of memory or of the node's disks that have no device number of a disk.
const OWN: [&str; 8] =
    ["tmpfs", "ramfs", "overlay", "btrfs", "zfs", "bcachefs", "devtmpfs", "rootfs"];
/// Steps that may have to be looked up on the node's own file systems.
const STEPS: usize = 64;

/// Whether `directory`, or what of it exists, is on a file system that others serve.
pub(super) fn is_served_by_others(directory: &Path) -> bool {
    for _ in 0..STEPS {
        match look_up(directory) {
            Found::All { own } => return !own,
            Found::Part { own: false, .. } => return true,
            Found::Part { at, next, .. } => {
                if !warm(&at, &next) {
                    return false;
                }
            }
            // A kernel or sandbox without the flag: as if all were the node's own.
            Found::Unknown => return false,
        }
    }
    false
}

enum Found {
    All { own: bool },
    Part { at: OwnedFd, next: PathBuf, own: bool },
    Unknown,
}

/// The longest part of the path that is cached, and the first step that is not.
fn look_up(directory: &Path) -> Found {
    if let Ok(all) = open_cached(directory) {
        return Found::All { own: is_own(&all) };
    }
    let mut at = match open_cached(Path::new("/")) {
        Ok(root) => root,
        Err(_) => return Found::Unknown,
    };
    let mut so_far = PathBuf::from("/");
    for component in directory.components() {
        let Component::Normal(name) = component else { continue };
        so_far.push(name);
        match open_cached(&so_far) {
            Ok(next) => at = next,
            Err(_) => return Found::Part { own: is_own(&at), at, next: name.into() },
        }
    }
    // Cached meanwhile.
    Found::All { own: is_own(&at) }
}

fn open_cached(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED)
}

/// Has the kernel read one step of a path; whether there is such a step.
fn warm(at: &OwnedFd, next: &Path) -> bool {
    match readlinkat(at, next, Vec::new()) {
        // Not a link: the answer is cached all the same.
        Ok(_) | Err(Errno::INVAL) => true,
        Err(_) => false,
    }
}

/// Whether the node itself keeps the files: on a disk, or in memory. What a process serves
/// from a disk (`fuseblk`, NTFS for one) counts as the node's own.
fn is_own(directory: &OwnedFd) -> bool {
    // Nothing is asked for, so nobody is asked; the device is known anyway.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    match statx(directory, "", flags, StatxFlags::empty()) {
        Ok(found) if found.stx_dev_major != 0 => true,
        // Without a disk's number it is told by its name.
        _ => kind(directory).is_none_or(|kind| OWN.iter().any(|own| *own == kind)),
    }
}

/// The type of the file system, as the kernel lists its mount (proc_pid_mountinfo(5)).
fn kind(directory: &OwnedFd) -> Option<String> {
    let fdinfo = format!("/proc/self/fdinfo/{}", directory.as_fd().as_raw_fd());
    let fdinfo = std::fs::read_to_string(fdinfo).ok()?;
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split(' ');
        (fields.next() == Some(id)).then_some(())?;
        fields.skip_while(|field| *field != "-").nth(1).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_file_systems_need_no_writer() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        for path in ["", "real", "link", "link/not/there", "not/there"] {
            assert!(!is_served_by_others(&dir.path().join(path)), "{path}");
        }
        assert!(!is_served_by_others(Path::new("/dev/shm")));
    }

    #[test]
    fn a_file_system_without_a_disk_is_known_by_its_name() {
        let proc = open_cached(Path::new("/proc")).unwrap();
        assert_eq!(kind(&proc).as_deref(), Some("proc"));
        // Nobody keeps logs there: an example of what is not in the list.
        assert!(is_served_by_others(Path::new("/proc/self")));
    }
}
