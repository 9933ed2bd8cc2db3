//! Making and removing the directories of a cgroup.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::mkdir;
use rustix::fs::{AtFlags, CWD, Dir, FileType, OFlags};

use crate::files::Directory;
use crate::hierarchy::{Controller, Mounts, Version};
use crate::{CgroupPath, Error};

/// How often a directory is tried whose ancestor someone else removes meanwhile.
const TRIES: usize = 5;

/// Makes `path` in every hierarchy, or in none.
pub(crate) fn create(mounts: &Mounts, path: &CgroupPath) -> Result<(), Error> {
    let mut made = Vec::new();
    let Err(source) = create_all(mounts, path, &mut made) else { return Ok(()) };
    let left: Vec<PathBuf> = made
        .into_iter()
        .rev()
        .filter(|directory| {
            // Another cgroup may have been made below an ancestor meanwhile: it stays for that.
            !matches!(nix_remove(directory), Ok(()) | Err(Errno::ENOENT | Errno::EBUSY))
        })
        .collect();
    if left.is_empty() {
        return Err(source);
    }
    Err(Error::LeftBehind { cgroup: path.to_string(), left, source: Box::new(source) })
}

fn create_all(mounts: &Mounts, path: &CgroupPath, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let lineage = path.lineage();
    for legacy in &mounts.legacy {
        make(&lineage, &legacy.mount, made)?;
        if legacy.controllers.contains(&Controller::Cpuset) {
            fill_cpuset(&lineage, &legacy.mount)?;
        }
    }
    if let Some(unified) = &mounts.unified {
        make(&lineage, &unified.mount, made)?;
        if mounts.version() == Version::V2 {
            let wanted: Vec<Controller> = unified.controllers.iter().copied().collect();
            enable(&lineage, &unified.mount, &wanted)?;
        }
    }
    Ok(())
}

/// Makes the last of `lineage` below `mount`, and what of the others is missing. Nearly
/// always only the last is, so it is tried first.
fn make(lineage: &[CgroupPath], mount: &Path, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut tries = 0;
    let mut at = lineage.len() - 1;
    loop {
        let directory = lineage[at].below(mount);
        match mkdir(&directory, Mode::from_bits_truncate(0o755)) {
            Ok(()) => made.push(directory),
            Err(Errno::EEXIST) => {}
            Err(Errno::ENOENT) if at > 0 && tries < TRIES * lineage.len() => {
                tries += 1;
                at -= 1;
                continue;
            }
            Err(source) => return Err(Error::Create { path: directory, source }),
        }
        at += 1;
        if at == lineage.len() {
            return Ok(());
        }
    }
}

/// Gives each of `lineage` its parent's CPUs and memory nodes where it has none: a v1 cpuset
/// starts empty, and no process can enter it so.
fn fill_cpuset(lineage: &[CgroupPath], mount: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut empty = Vec::new();
        let mut inherited = String::new();
        for path in lineage.iter().rev() {
            let directory = Directory::new(path.below(mount));
            inherited = directory.read(file)?;
            if !inherited.trim().is_empty() {
                break;
            }
            empty.push(directory);
        }
        if empty.len() == lineage.len() {
            inherited = Directory::new(mount.to_owned()).read(file)?;
        }
        for directory in empty.iter().rev() {
            directory.write(file, inherited.trim())?;
        }
    }
    Ok(())
}

/// Lets the last of `lineage` have `wanted` of v2's controllers. One that cannot be had (an
/// ancestor has processes of its own, or the controller refuses) is left out: a limit that
/// needs it then fails with the name of its file.
pub(crate) fn enable(
    lineage: &[CgroupPath],
    mount: &Path,
    wanted: &[Controller],
) -> Result<(), Error> {
    let missing = |directory: &Path, file: &str| -> Result<Vec<&'static str>, Error> {
        let there = Directory::new(directory.to_owned()).read(file)?;
        let there: Vec<&str> = there.split_whitespace().collect();
        let names = wanted.iter().map(|controller| controller.name());
        Ok(names.filter(|name| !there.contains(name)).collect())
    };
    let last = lineage[lineage.len() - 1].below(mount);
    if missing(&last, "cgroup.controllers")?.is_empty() {
        return Ok(());
    }
    let ancestors = lineage[..lineage.len() - 1].iter().map(|path| path.below(mount));
    for directory in std::iter::once(mount.to_owned()).chain(ancestors) {
        let names = missing(&directory, "cgroup.subtree_control")?;
        if names.is_empty() {
            continue;
        }
        let directory = Directory::new(directory);
        let all: Vec<String> = names.iter().map(|name| format!("+{name}")).collect();
        if directory.write("cgroup.subtree_control", &all.join(" ")).is_err() {
            for one in &all {
                // Refused one by one, for the reason above.
                drop(directory.write("cgroup.subtree_control", one));
            }
        }
    }
    Ok(())
}

fn nix_remove(path: &Path) -> Result<(), Errno> {
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR).map_err(converted)
}

/// A rustix error as nix has it.
pub(crate) fn converted(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Removes `path` from every hierarchy; every one is tried, the first failure is returned.
pub(crate) fn remove(mounts: &Mounts, path: &CgroupPath) -> Result<(), Error> {
    let results: Vec<_> = mounts.roots().map(|root| remove_tree(&path.below(root))).collect();
    results.into_iter().collect()
}

/// Removes `root` and every cgroup below it, deepest first. Goes by descriptor and one level
/// at a time, so neither depth nor length of a path that a container made can stop it.
fn remove_tree(root: &Path) -> Result<(), Error> {
    let failed = |source| match source {
        Errno::EBUSY => Error::Busy { path: root.to_owned() },
        source => Error::Remove { path: root.to_owned(), source },
    };
    match nix_remove(root) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // EBUSY: processes, or cgroups below.
        Err(Errno::EBUSY) => {}
        Err(source) => return Err(failed(source)),
    }
    match remove_below(root) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(source) => return Err(failed(source)),
    }
    match nix_remove(root) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(source) => Err(failed(source)),
    }
}

fn remove_below(root: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: rustix::fd::BorrowedFd<'_>, name: &std::ffi::CStr| {
        rustix::fs::openat(at, name, flags, rustix::fs::Mode::empty()).map_err(converted)
    };
    let mut current =
        rustix::fs::open(root, flags, rustix::fs::Mode::empty()).map_err(converted)?;
    let mut names = Vec::new();
    loop {
        use std::os::fd::AsFd;
        if let Some(name) = first_child(current.as_fd())? {
            current = open(current.as_fd(), &name)?;
            names.push(name);
            continue;
        }
        let Some(name) = names.pop() else { return Ok(()) };
        current = open(current.as_fd(), c"..")?;
        match rustix::fs::unlinkat(&current, &name, AtFlags::REMOVEDIR).map_err(converted) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

fn first_child(directory: rustix::fd::BorrowedFd<'_>) -> Result<Option<std::ffi::CString>, Errno> {
    for entry in Dir::read_from(directory).map_err(converted)? {
        let entry = entry.map_err(converted)?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(path: &str) -> Vec<CgroupPath> {
        CgroupPath::new(path).unwrap().lineage()
    }

    #[test]
    fn missing_ancestors_are_made_and_existing_ones_are_not_claimed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let mut made = Vec::new();
        make(&lineage("/a/b/c"), root.path(), &mut made).unwrap();
        assert_eq!(made, [root.path().join("a/b"), root.path().join("a/b/c")]);
        make(&lineage("/a/b/c"), root.path(), &mut made).unwrap();
        assert_eq!(made.len(), 2);
    }

    #[test]
    fn a_failure_undoes_what_was_made_in_other_hierarchies() {
        let root = tempfile::tempdir().unwrap();
        let (first, absent) = (root.path().join("first"), root.path().join("absent"));
        std::fs::create_dir(&first).unwrap();
        let legacy = [&first, &absent]
            .map(|mount| crate::hierarchy::Legacy { mount: mount.clone(), controllers: [].into() });
        let mounts = Mounts { legacy: legacy.into(), unified: None };
        let error = create(&mounts, &CgroupPath::new("/a/b").unwrap()).unwrap_err();
        assert!(matches!(error, Error::Create { source: Errno::ENOENT, .. }), "{error:?}");
        assert!(!first.join("a").exists());
    }

    #[test]
    fn empty_cpusets_are_filled_from_the_nearest_that_is_not() {
        let root = tempfile::tempdir().unwrap();
        let mut made = Vec::new();
        make(&lineage("/a/b"), root.path(), &mut made).unwrap();
        for (directory, cpus) in [("", "0-3\n"), ("a", "0-1\n"), ("a/b", "\n")] {
            std::fs::write(root.path().join(directory).join("cpuset.cpus"), cpus).unwrap();
            let mems = if directory.is_empty() { "0\n" } else { "\n" };
            std::fs::write(root.path().join(directory).join("cpuset.mems"), mems).unwrap();
        }
        fill_cpuset(&lineage("/a/b"), root.path()).unwrap();
        let read = |file: &str| std::fs::read_to_string(root.path().join(file)).unwrap();
        assert!(read("a/b/cpuset.cpus").starts_with("0-1"));
        assert!(read("a/cpuset.mems").starts_with('0') && read("a/b/cpuset.mems").starts_with('0'));
    }

    #[test]
    fn controllers_are_enabled_from_the_top_down() {
        let root = tempfile::tempdir().unwrap();
        let mut made = Vec::new();
        make(&lineage("/a/b"), root.path(), &mut made).unwrap();
        for directory in ["", "a", "a/b"] {
            let directory = root.path().join(directory);
            std::fs::write(directory.join("cgroup.controllers"), "cpu").unwrap();
            std::fs::write(directory.join("cgroup.subtree_control"), "cpu").unwrap();
        }
        enable(&lineage("/a/b"), root.path(), &[Controller::Cpu, Controller::Memory]).unwrap();
        let read = |file: &str| std::fs::read_to_string(root.path().join(file)).unwrap();
        assert!(read("cgroup.subtree_control").starts_with("+memory"));
        assert!(read("a/cgroup.subtree_control").starts_with("+memory"));
        assert_eq!(read("a/b/cgroup.subtree_control"), "cpu");
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        use rustix::fs::{Mode, mkdirat, openat};
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(&top, flags, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..40 {
            mkdirat(&at, "sibling", Mode::RWXU).unwrap();
            mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, flags, Mode::empty()).unwrap();
        }
        // An ordinary directory answers ENOTEMPTY where a cgroup answers EBUSY.
        remove_below(&top).unwrap();
        assert!(std::fs::read_dir(&top).unwrap().next().is_none());
    }
}
