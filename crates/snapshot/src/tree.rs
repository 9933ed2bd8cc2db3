//! Walking a directory tree of any depth with few descriptors.
//!
//! Only the [`OPEN_DIRECTORIES`] innermost directories of the current path stay open. On
//! the way back a closed one is opened again as `..`, and its inode must be the one seen
//! on the way in: a tree that is being rearranged (a running container may do so) gives
//! [`Error::Changed`], never a step outside.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use berth_model::stats::DiskUsage;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::{FileType, RawDir};

use crate::Error;
use crate::meta::Inode;

/// Most directories a walk holds open.
pub const OPEN_DIRECTORIES: usize = 64;

/// Most entries that are counted in one tree.
const MAX_ENTRIES: u64 = 1 << 24;

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What a walk does at each step.
trait Visit {
    /// Sees `name` in `parent`; says whether it is a directory to descend into.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, kind: FileType)
    -> Result<bool, Error>;
    /// Is done with everything in the directory `name` of `parent`.
    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Error>;
}

struct Frame {
    name: CString,
    inode: Inode,
    open: Option<OwnedFd>,
    pending: Vec<CString>,
}

/// What fails is named by its path below `root`.
fn walk(root: OwnedFd, visit: &mut impl Visit) -> Result<(), Error> {
    let mut frames = Vec::new();
    let walked = walk_in(&mut frames, root, visit);
    walked.map_err(|error| {
        error.below(frames.iter().map(|frame| path_of(&frame.name)).collect::<PathBuf>())
    })
}

/// What fails is named by its path below the last of `frames`.
fn walk_in(frames: &mut Vec<Frame>, root: OwnedFd, visit: &mut impl Visit) -> Result<(), Error> {
    frames.push(enter(c"".to_owned(), root, visit)?);
    while let Some(frame) = frames.last_mut() {
        let Some(name) = frame.pending.pop() else {
            let done = frames.pop().expect("the loop runs only while there is a frame");
            let Some(parent) = frames.last_mut() else { break };
            let fd = back_to(parent, done.open)?;
            visit.leave(fd, &done.name)?;
            continue;
        };
        let parent = frame.open.as_ref().expect("the innermost directory is open");
        match openat(parent, name.as_c_str(), DIRECTORY, Mode::empty()) {
            Ok(child) => {
                let child = enter(name, child, visit)?;
                frames.push(child);
                if let Some(outer) = frames.len().checked_sub(OPEN_DIRECTORIES + 1) {
                    frames[outer].open = None;
                }
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => return Err(failed("open", &name)(errno)),
        }
    }
    Ok(())
}

fn enter(name: CString, open: OwnedFd, visit: &mut impl Visit) -> Result<Frame, Error> {
    let inode = Inode::of(&open).map_err(failed("read metadata of", &name))?;
    let inside = |error: Error| error.below(path_of(&name));
    let mut pending = Vec::new();
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
    let mut entries = RawDir::new(&open, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(failed("read directory", &name))?;
        let child = entry.file_name();
        if child == c"." || child == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => kind_of(open.as_fd(), child).map_err(inside)?,
            kind => kind,
        };
        if visit.entry(open.as_fd(), child, kind).map_err(inside)? {
            pending.push(child.to_owned());
        }
    }
    Ok(Frame { name, inode, open: Some(open), pending })
}

/// Opens `parent` again if it was closed on the way in.
fn back_to(parent: &mut Frame, child: Option<OwnedFd>) -> Result<BorrowedFd<'_>, Error> {
    if parent.open.is_none() {
        let child = child.expect("the innermost directory is open");
        let fd = openat(&child, c"..", DIRECTORY, Mode::empty())
            .map_err(failed("open parent of", c""))?;
        if Inode::of(&fd).map_err(failed("read metadata of", c".."))? != parent.inode {
            return Err(Error::Changed);
        }
        parent.open = Some(fd);
    }
    Ok(parent.open.as_ref().expect("it was opened above").as_fd())
}

fn kind_of(parent: BorrowedFd<'_>, name: &CStr) -> Result<FileType, Error> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::ENOENT) => Ok(FileType::Unknown),
        Err(errno) => Err(failed("read metadata of", name)(errno)),
    }
}

struct Remove;

impl Visit for Remove {
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
    ) -> Result<bool, Error> {
        if kind == FileType::Directory {
            return Ok(true);
        }
        unlink(parent, name, UnlinkatFlags::NoRemoveDir).map(|()| false)
    }

    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Error> {
        unlink(parent, name, UnlinkatFlags::RemoveDir)
    }
}

fn unlink(parent: BorrowedFd<'_>, name: &CStr, flags: UnlinkatFlags) -> Result<(), Error> {
    match unlinkat(parent, name, flags) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed("remove", name)(errno)),
    }
}

/// Removes `name` in `parent` and all that is in it; what is absent is success. An error
/// names the path below `parent`.
///
/// For the layer applier too: a later entry of one archive may replace a whole tree.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Error> {
    match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(tree) => {
            walk(tree, &mut Remove).map_err(|error| error.below(path_of(name)))?;
            unlink(parent, name, UnlinkatFlags::RemoveDir)
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => unlink(parent, name, UnlinkatFlags::NoRemoveDir),
        Err(errno) => Err(failed("open", name)(errno)),
    }
}

struct Count {
    bytes: u64,
    inodes: u64,
    linked: HashSet<Inode>,
    /// How many entries may follow, links to what was counted before included.
    left: u64,
}

impl Count {
    fn new(left: u64) -> Self {
        Self { bytes: 0, inodes: 0, linked: HashSet::new(), left }
    }

    fn add(&mut self, stat: &FileStat) -> Result<(), Error> {
        self.left = self.left.checked_sub(1).ok_or(Error::TooManyEntries(MAX_ENTRIES))?;
        let directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        if !directory && stat.st_nlink > 1 && !self.linked.insert(Inode::from_stat(stat)) {
            return Ok(());
        }
        self.inodes += 1;
        self.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        Ok(())
    }
}

impl Visit for Count {
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
    ) -> Result<bool, Error> {
        match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => self.add(&stat).map(|()| kind == FileType::Directory),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(failed("read metadata of", name)(errno)),
        }
    }

    fn leave(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> Result<(), Error> {
        Ok(())
    }
}

/// What the tree below `root` uses, `root` included; hard links count once. An error names
/// the path below `root`.
///
/// `root` must be a directory open for reading.
pub fn usage(root: BorrowedFd<'_>) -> Result<DiskUsage, Error> {
    let mut count = Count::new(MAX_ENTRIES);
    count.add(&fstat(root).map_err(failed("read metadata of", c""))?)?;
    let own = openat(root, c".", DIRECTORY, Mode::empty()).map_err(failed("open", c""))?;
    walk(own, &mut count)?;
    Ok(DiskUsage { at: berth_failpoint::now().into(), bytes: count.bytes, inodes: count.inodes })
}

fn failed<E: crate::error::IntoErrno>(
    action: &'static str,
    name: &CStr,
) -> impl FnOnce(E) -> Error + use<E> {
    Error::io(action, path_of(name).to_owned())
}

fn path_of(name: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cannot see the entry `bad`, nor be done with the directory `stays`.
    struct Refuse;

    impl Visit for Refuse {
        fn entry(&mut self, _: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool, Error> {
            match name == c"bad" {
                true => Err(failed("see", name)(Errno::EIO)),
                false => Ok(kind == FileType::Directory),
            }
        }

        fn leave(&mut self, _: BorrowedFd<'_>, name: &CStr) -> Result<(), Error> {
            match name == c"stays" {
                true => Err(failed("leave", name)(Errno::EBUSY)),
                false => Ok(()),
            }
        }
    }

    #[track_caller]
    fn check(path: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
        let error = walk(std::fs::File::open(dir.path()).unwrap().into(), &mut Refuse).unwrap_err();
        assert_eq!(error.below("/layers/4").to_string(), expected);
    }

    #[test]
    fn links_to_one_file_are_counted_as_one_and_walked_as_many() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for number in 0..5 {
            std::fs::hard_link(dir.path().join("file"), dir.path().join(number.to_string()))
                .unwrap();
        }
        let walked = |most| {
            let mut count = Count::new(most);
            walk(std::fs::File::open(dir.path()).unwrap().into(), &mut count).map(|()| count.inodes)
        };
        assert_eq!(walked(6).unwrap(), 1);
        assert!(matches!(walked(5), Err(Error::TooManyEntries(_))));
    }

    #[test]
    fn a_failure_names_the_whole_path() {
        check("bad", "see /layers/4/bad");
        check("a/b/bad", "see /layers/4/a/b/bad");
        check("a/stays/c", "leave /layers/4/a/stays");
        let nothing = failed("read directory", c"")(Errno::EBADMSG);
        assert_eq!(nothing.below("/layers/4").to_string(), "read directory /layers/4");
    }
}
