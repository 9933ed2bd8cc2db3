//! The directory that entries are being added to.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use berth_snapshot::OPAQUE_XATTR;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::{XattrFlags, fsetxattr};

use super::path::{child, join, shown};
use super::{Applier, Failure, LayerError, call, component, format, is_whiteout};
use crate::BadEntry;

/// Most symbolic links on the way to a parent (the kernel's own `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory that entries are being added to.
pub(super) struct Parent {
    pub(super) fd: OwnedFd,
    /// As the entries name it.
    asked: Vec<u8>,
    /// Where it really is, after the layer's own symbolic links.
    pub(super) path: Vec<u8>,
    /// Its times before anything was added.
    times: Times,
    opaque: bool,
}

/// Access and modification time of a directory.
#[derive(Clone, Copy)]
pub(super) struct Times(TimeSpec, TimeSpec);

impl Times {
    pub(super) fn of(directory: impl AsFd) -> Result<Self, Failure> {
        fstat(directory).map(|stat| Self::from_stat(&stat)).map_err(call("read its parent's times"))
    }

    fn from_stat(stat: &FileStat) -> Self {
        Self(
            TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
            TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        )
    }

    pub(super) fn restore(self, directory: impl AsFd) -> Result<(), Errno> {
        futimens(directory, &self.0, &self.1)
    }
}

impl Applier<'_> {
    /// Makes `components` the directory that entries are added to, and makes it if no
    /// entry has.
    pub(super) fn enter(&mut self, components: &[&[u8]]) -> Result<(), Failure> {
        let asked = join(components);
        if self.parent.as_ref().is_some_and(|parent| parent.asked == asked) {
            return Ok(());
        }
        self.leave()?;
        let (fd, path) = match open_beneath(self.root, &asked) {
            Ok(fd) => (fd, asked.clone()),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => {
                self.walk(components)?
            }
            Err(errno) => return Err(Failure::Call("open its parent", errno)),
        };
        let times = Times::of(&fd)?;
        let opaque = self.done.opaque.contains(&path);
        self.parent = Some(Parent { fd, asked, path, times, opaque });
        Ok(())
    }

    /// Gives the directory its times back.
    pub(super) fn leave(&mut self) -> Result<(), LayerError> {
        let Some(parent) = self.parent.take() else { return Ok(()) };
        parent.times.restore(&parent.fd).map_err(|source| LayerError::Apply {
            path: shown(&parent.path),
            action: "set times",
            source,
        })
    }

    /// Component by component: makes what is missing, and follows the layer's own
    /// symbolic links with the layer for a root.
    fn walk(&mut self, components: &[&[u8]]) -> Result<(OwnedFd, Vec<u8>), Failure> {
        let mut pending: VecDeque<Vec<u8>> = components.iter().map(|name| name.to_vec()).collect();
        let mut stack: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == b".." {
                stack.pop();
                continue;
            }
            if stack.len() >= self.limits.path_depth {
                return Err(BadEntry::PathTooDeep.into());
            }
            let (here, above) = match stack.last() {
                Some((fd, path)) => (fd.as_fd(), path.as_slice()),
                None => (self.root, &b""[..]),
            };
            let path = child(above, &name);
            let name = component(&name)?;
            match openat(here, name.as_c_str(), DIRECTORY, Mode::empty()) {
                Ok(fd) => stack.push((fd, path)),
                Err(Errno::ENOENT) => {
                    let fd = make_directory(here, &name)?;
                    self.imply(&path)?;
                    stack.push((fd, path));
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => match look(here, &name)? {
                    stat if format(&stat) == SFlag::S_IFLNK => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(BadEntry::Loop.into());
                        }
                        let target = readlinkat(here, name.as_c_str())
                            .map_err(call("read a symbolic link on its path"))?;
                        if target.as_bytes().starts_with(b"/") {
                            stack.clear();
                        }
                        expand(&mut pending, target.as_bytes());
                    }
                    stat if is_whiteout(&stat) => {
                        let fd = self.replace_whiteout(here, &name, &path)?;
                        self.imply(&path)?;
                        stack.push((fd, path));
                    }
                    _ => return Err(BadEntry::Parent(shown(&path)).into()),
                },
                Err(Errno::ENAMETOOLONG) => return Err(BadEntry::PathTooLong.into()),
                Err(errno) => return Err(Failure::Call("open its parent", errno)),
            }
        }
        match stack.pop() {
            Some(found) => Ok(found),
            None => {
                let root = open_beneath(self.root, b"").map_err(call("open the root"))?;
                Ok((root, Vec::new()))
            }
        }
    }

    /// Notes a directory that no entry has named so far.
    fn imply(&mut self, path: &[u8]) -> Result<(), LayerError> {
        self.count_entry()?;
        self.remember(path)?;
        self.done.inodes += 1;
        self.done.bytes += 4096;
        self.done.implied.insert(path.to_vec());
        Ok(())
    }

    /// A directory where this layer hid one: it hides all that lies below, too.
    pub(super) fn replace_whiteout(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &[u8],
    ) -> Result<OwnedFd, Failure> {
        unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)
            .map_err(call("replace a whiteout"))?;
        self.forget(path);
        let fd = make_directory(parent, name)?;
        self.mark_opaque(fd.as_fd(), path)?;
        Ok(fd)
    }

    fn mark_opaque(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), Failure> {
        fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(|errno| {
            Failure::Call("mark as opaque", Errno::from_raw(errno.raw_os_error()))
        })?;
        if self.done.opaque.insert(path.to_vec()) {
            self.remember(path)?;
        }
        Ok(())
    }

    /// An entry that makes its directory hide what lies below.
    pub(super) fn opaque(&mut self, components: &[&[u8]]) -> Result<(), Failure> {
        if self.lowest {
            return Ok(());
        }
        self.enter(components)?;
        let Some(mut parent) = self.parent.take() else { return Ok(()) };
        let marked = match parent.opaque {
            true => Ok(()),
            false => self.mark_opaque(parent.fd.as_fd(), &parent.path),
        };
        parent.opaque = true;
        self.parent = Some(parent);
        marked
    }

    /// An entry that hides `name` of the layers below. It never hides what its own layer
    /// has (OCI image layer, "Whiteouts").
    pub(super) fn whiteout(&mut self, components: &[&[u8]], name: &[u8]) -> Result<(), Failure> {
        if self.lowest {
            return Ok(());
        }
        self.enter(components)?;
        let Some(parent) = self.parent.take() else { return Ok(()) };
        let made = self.hide(&parent, name);
        self.parent = Some(parent);
        made
    }

    fn hide(&mut self, parent: &Parent, name: &[u8]) -> Result<(), Failure> {
        let path = child(&parent.path, name);
        let name = component(name)?;
        match fstatat(&parent.fd, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if format(&stat) == SFlag::S_IFDIR => {
                let own = openat(&parent.fd, name.as_c_str(), DIRECTORY, Mode::empty())
                    .map_err(call("open what it hides"))?;
                self.mark_opaque(own.as_fd(), &path)
            }
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => {
                self.remember(&path)?;
                mknodat(&parent.fd, name.as_c_str(), SFlag::S_IFCHR, Mode::empty(), 0)
                    .map_err(call("make a whiteout"))?;
                self.done.whiteouts.insert(path);
                self.done.inodes += 1;
                Ok(())
            }
            Err(errno) => Err(Failure::Call("look for what it hides", errno)),
        }
    }
}

/// Opens a directory of the layer by its real path; `""` is the root.
pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let how = OpenHow::new().flags(DIRECTORY).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    openat2(root, path, how)
}

/// Makes a directory; its parent keeps its times.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Failure> {
    let times = Times::of(parent)?;
    mkdirat(parent, name, Mode::from_bits_truncate(0o755)).map_err(call("make its parent"))?;
    times.restore(parent).map_err(call("set its parent's times"))?;
    openat(parent, name, DIRECTORY, Mode::empty()).map_err(call("open its parent"))
}

fn look(parent: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Failure> {
    fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(call("look at its parent"))
}

fn expand(pending: &mut VecDeque<Vec<u8>>, target: &[u8]) {
    let components = target.split(|byte| *byte == b'/');
    let real = components.filter(|component| !component.is_empty() && *component != b".");
    for component in real.rev() {
        pending.push_front(component.to_vec());
    }
}
