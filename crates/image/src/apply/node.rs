//! Making files, directories, links and devices.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use berth_snapshot::{is_overlay_xattr, remove_tree};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat,
    futimens, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use rustix::fs::{XattrFlags, fsetxattr, setxattr};

use super::path::{LayerPath, child, join, shown};
use super::{
    Applier, Failure, LayerError, borrow, call, component, format, is_whiteout, unreadable,
};
use crate::BadEntry;
use crate::tar::{Archive, Entry};

/// Files from this size on have their write-back started at once, bytes. Smaller ones
/// are cheaper to write together, by the sync at the end.
const WRITE_BACK: u64 = 1 << 20;

/// Longest target of a symbolic link (`PATH_MAX` without its NUL), bytes.
const MAX_TARGET: usize = 4095;

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Applier<'_> {
    pub(super) fn file<R: Read>(
        &mut self,
        name: &CStr,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Failure> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = permissions(entry.mode & 0o777);
        let fd = self.place(name, |parent| openat(parent, name, flags, mode))?;
        self.write(&fd, archive)?;
        let stat = fstat(&fd).map_err(call("read its metadata"))?;
        if stat.st_uid != entry.uid || stat.st_gid != entry.gid {
            chown(fd.as_fd(), entry)?;
        }
        // The umask may have taken permissions away, and chown(2) takes setuid away.
        if stat.st_mode & 0o7777 != entry.mode {
            fchmod(&fd, permissions(entry.mode)).map_err(call("change its mode"))?;
        }
        self.xattrs(entry, |name, value| fsetxattr(&fd, name, value, XattrFlags::empty()))?;
        let (accessed, modified) = times(entry);
        futimens(&fd, &accessed, &modified).map_err(call("set its times"))?;
        self.add_usage(&stat);
        Ok(())
    }

    fn write<R: Read>(&mut self, fd: &OwnedFd, archive: &mut Archive<R>) -> Result<(), Failure> {
        let (mut offset, mut started) = (0, 0);
        loop {
            let read = archive.read_data(&mut self.buffer).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            let mut rest = &self.buffer[..read];
            while !rest.is_empty() {
                match nix::unistd::write(fd, rest) {
                    Ok(written) => {
                        rest = &rest[written..];
                        offset += u64::try_from(written).expect("it is at most the buffer");
                    }
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(Failure::Call("write", errno)),
                }
            }
            if offset - started >= WRITE_BACK {
                berth_sys::writeback::start_writeback(fd.as_fd(), started, offset - started)
                    .map_err(call("start write-back"))?;
                started = offset;
            }
        }
        Ok(())
    }

    pub(super) fn directory(&mut self, name: &CStr, entry: &Entry) -> Result<(), Failure> {
        let parent = borrow(self.parent.as_ref());
        let path = self.path_of(name);
        let fd = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if format(&stat) == SFlag::S_IFDIR => {
                let fd = open_directory(parent, name)?;
                if !self.done.implied.remove(&path) {
                    self.done.recount = true;
                }
                fd
            }
            Ok(stat) if is_whiteout(&stat) => {
                let parent = self.parent.take().expect("the parent was entered");
                let made = self.replace_whiteout(parent.fd.as_fd(), &name.to_owned(), &path);
                self.parent = Some(parent);
                made?
            }
            Ok(_) | Err(Errno::ENOENT) => {
                let mode = permissions(0o755);
                self.place(name, |parent| mkdirat(parent, name, mode))?;
                let fd = open_directory(borrow(self.parent.as_ref()), name)?;
                self.add_usage(&fstat(&fd).map_err(call("read its metadata"))?);
                fd
            }
            Err(errno) => return Err(Failure::Call("look for it", errno)),
        };
        self.dress_directory(fd.as_fd(), entry)
    }

    /// Gives an open directory what its entry says.
    pub(super) fn dress_directory(&self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
        chown(fd, entry)?;
        fchmod(fd, permissions(entry.mode)).map_err(call("change its mode"))?;
        self.xattrs(entry, |name, value| fsetxattr(fd, name, value, XattrFlags::empty()))?;
        let (accessed, modified) = times(entry);
        futimens(fd, &accessed, &modified).map_err(call("set its times"))
    }

    pub(super) fn symlink(&mut self, name: &CStr, entry: &Entry) -> Result<(), Failure> {
        if entry.link.is_empty() || entry.link.len() > MAX_TARGET {
            return Err(BadEntry::LinkTarget.into());
        }
        let target = CString::new(entry.link.as_slice()).map_err(|_| BadEntry::LinkTarget)?;
        self.place(name, |parent| symlinkat(target.as_c_str(), parent, name))?;
        self.dress_other(name, entry, None)
    }

    pub(super) fn special(
        &mut self,
        name: &CStr,
        entry: &Entry,
        kind: SFlag,
    ) -> Result<(), Failure> {
        let (major, minor) = entry.device;
        // The kernel has 12 bits for major and 20 for minor numbers.
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(BadEntry::Device.into());
        }
        let device = makedev(u64::from(major), u64::from(minor));
        let mode = permissions(entry.mode & 0o777);
        self.place(name, |parent| mknodat(parent, name, kind, mode, device))?;
        self.dress_other(name, entry, Some(permissions(entry.mode)))
    }

    /// Gives what cannot be opened (a link, a device, a FIFO) what its entry says. A
    /// symbolic link has no mode.
    fn dress_other(
        &mut self,
        name: &CStr,
        entry: &Entry,
        mode: Option<Mode>,
    ) -> Result<(), Failure> {
        let parent = borrow(self.parent.as_ref());
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(call("change its owner"))?;
        if let Some(mode) = mode {
            // Only for what was just made here and is no symbolic link.
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)
                .map_err(call("change its mode"))?;
        }
        if !entry.xattrs.is_empty() {
            // A descriptor of O_PATH takes no fsetxattr(2), its name in /proc does.
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(parent, name, flags, Mode::empty()).map_err(call("open it"))?;
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            self.xattrs(entry, |name, value| {
                setxattr(path.as_str(), name, value, XattrFlags::empty())
            })?;
        }
        let (accessed, modified) = times(entry);
        utimensat(parent, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
            .map_err(call("set its times"))?;
        let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(call("read its metadata"))?;
        self.add_usage(&stat);
        Ok(())
    }

    pub(super) fn hard_link(&mut self, name: &CStr, entry: &Entry) -> Result<(), Failure> {
        let outside = || BadEntry::HardLinkOutside(shown(&entry.link));
        let path = LayerPath::parse(&entry.link, self.limits).map_err(|_| outside())?;
        let (above, target) = path.split().ok_or_else(outside)?;
        let target = component(target)?;
        let holder = open_in_root(self.root, &join(above)).map_err(|_| outside())?;
        let stat = match fstatat(&holder, target.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => return Err(outside().into()),
            Ok(stat) => stat,
            Err(_) => return Err(outside().into()),
        };
        if format(&stat) == SFlag::S_IFDIR {
            return Err(BadEntry::HardLinkDirectory(shown(&entry.link)).into());
        }
        let parent = borrow(self.parent.as_ref());
        if let Ok(existing) = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            && same(&existing, &stat)
        {
            return Ok(());
        }
        let linked = self.place(name, |parent| {
            linkat(&holder, target.as_c_str(), parent, name, AtFlags::empty())
        });
        match linked {
            // What was replaced held the target itself.
            Err(Failure::Call(_, Errno::ENOENT)) => Err(outside().into()),
            answer => answer,
        }
    }

    /// Makes something in the current directory; what an earlier entry made there gives
    /// way.
    fn place<T>(
        &mut self,
        name: &CStr,
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Failure> {
        match make(borrow(self.parent.as_ref())) {
            Err(Errno::EEXIST) => {}
            answer => return answer.map_err(call("make it")),
        }
        remove_tree(borrow(self.parent.as_ref()), name).map_err(LayerError::Snapshot)?;
        self.forget(&self.path_of(name));
        make(borrow(self.parent.as_ref())).map_err(call("make it"))
    }

    fn path_of(&self, name: &CStr) -> Vec<u8> {
        let parent = self.parent.as_ref().map_or(&b""[..], |parent| &parent.path);
        child(parent, name.to_bytes())
    }

    /// Sets the entry's extended attributes, overlay's own left out.
    fn xattrs(
        &self,
        entry: &Entry,
        set: impl Fn(&CStr, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), Failure> {
        for (name, value) in &entry.xattrs {
            if is_overlay_xattr(name) {
                continue;
            }
            let refused = || BadEntry::Xattr(shown(name));
            let key = CString::new(name.as_slice()).map_err(|_| refused())?;
            if value.len() > self.limits.xattr_bytes || name.len() > 255 {
                return Err(refused().into());
            }
            match set(&key, value) {
                // The file system has none of that kind, as any reader of tar accepts.
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                // Links and devices have no user attributes (xattr(7)).
                Err(rustix::io::Errno::PERM) if name.starts_with(b"user.") => {}
                Err(errno) => {
                    let errno = Errno::from_raw(errno.raw_os_error());
                    return Err(Failure::Call("set an extended attribute", errno));
                }
            }
        }
        Ok(())
    }
}

/// Opens a directory of the layer for a hard link's sake; the layer's own symbolic links
/// are followed with the layer for a root.
fn open_in_root(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    );
    openat2(root, path, how)
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Failure> {
    openat(parent, name, DIRECTORY, Mode::empty()).map_err(call("open it"))
}

fn chown(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
    fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(call("change its owner"))
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

fn same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn times(entry: &Entry) -> (TimeSpec, TimeSpec) {
    let spec = |time: crate::tar::Time| TimeSpec::new(time.seconds, i64::from(time.nanoseconds));
    let modified = spec(entry.mtime);
    (entry.atime.map_or(modified, spec), modified)
}
