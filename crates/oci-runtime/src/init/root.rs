//! Paths inside a container's root: every one goes through here (invariant I1).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

use crate::error::{AnyErrno, Error};

/// Most symbolic links on the way to a path (`MAXSYMLINKS` of the kernel).
const LINKS: usize = 40;

/// How often a lookup is repeated that a concurrent rename or mount has disturbed.
const ATTEMPTS: usize = 128;

/// What symbolic links on the way do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Links {
    /// They are followed, and lead nowhere but inside the root.
    Inside,
    /// The path is refused if there is one.
    Refused,
}

/// A container's root directory, seen from outside or inside.
#[derive(Debug)]
pub(crate) struct Root<'a> {
    directory: Directory<'a>,
}

#[derive(Debug)]
enum Directory<'a> {
    Borrowed(BorrowedFd<'a>),
    Owned(OwnedFd),
}

impl<'a> Root<'a> {
    /// The root directory `directory`.
    pub(crate) fn new(directory: BorrowedFd<'a>) -> Self {
        Self { directory: Directory::Borrowed(directory) }
    }

    /// The root directory of this process.
    pub(crate) fn own() -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(c"/", flags, Mode::empty())
            .map_err(Error::setup("open the root directory"))?;
        Ok(Self { directory: Directory::Owned(directory) })
    }

    /// Opens an existing file.
    pub(crate) fn open(&self, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if links == Links::Refused {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        open_again(self.fd(), path, flags, resolve)
    }

    /// Opens the directory `path` (`O_PATH`), making it and its parents, mode 0755, where
    /// they are missing. A link to nowhere makes the directory it names, inside the root.
    pub(crate) fn ensure_directory(&self, path: &Path, links: Links) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags, links) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(refused(path, "open the directory", errno)),
        }
        let plain = self.without_links(path, links)?;
        let mut missing: Vec<&OsStr> = Vec::new();
        let mut existing = plain.as_path();
        let mut directory = loop {
            let opened = self.open(existing, flags, Links::Refused);
            match (opened, existing.parent(), existing.file_name()) {
                (Ok(directory), ..) => break directory,
                (Err(Errno::NOENT), Some(parent), Some(name)) => {
                    missing.push(name);
                    existing = parent;
                }
                (Err(errno), ..) => return Err(refused(path, "open the directory", errno)),
            }
        };
        for name in missing.into_iter().rev() {
            directory = make_directory(directory.as_fd(), name)
                .map_err(|errno| refused(path, "make the directory", errno))?;
        }
        Ok(directory)
    }

    /// Opens the file `path` (`O_PATH`), making it, empty and mode 0644, where it is missing;
    /// links to nowhere as in [`Root::ensure_directory`].
    pub(crate) fn ensure_file(&self, path: &Path, links: Links) -> Result<OwnedFd, Error> {
        match self.open(path, OFlags::PATH, links) {
            Ok(file) => return Ok(file),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(refused(path, "open the file", errno)),
        }
        let plain = self.without_links(path, links)?;
        let (parent, name) = self.ensure_parent(&plain, Links::Refused)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => Ok(file),
            // Made in this moment by somebody else; a link is refused.
            Err(Errno::EXIST) => open_child(parent.as_fd(), name, OFlags::PATH)
                .map_err(|errno| refused(path, "open the file", errno)),
            Err(errno) => Err(refused(path, "make the file", errno)),
        }
    }

    /// The directory that has, or is to have, `path`, and the name there.
    pub(crate) fn ensure_parent<'p>(
        &self,
        path: &'p Path,
        links: Links,
    ) -> Result<(OwnedFd, &'p OsStr), Error> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refused(path, "find its directory", Errno::INVAL));
        };
        Ok((self.ensure_directory(parent, links)?, name))
    }

    /// `path` with every link on the way replaced by what it names, existing or not, and never
    /// above the root. This only reads; whoever makes something at the answer refuses links, so
    /// one that appears meanwhile is not followed.
    fn without_links(&self, path: &Path, links: Links) -> Result<PathBuf, Error> {
        let failed = |errno| refused(path, "follow its links", errno);
        let mut plain = PathBuf::from("/");
        if links == Links::Refused {
            return Ok(path.to_owned());
        }
        let mut left: Vec<OsString> = parts(path);
        let mut followed = 0;
        while let Some(part) = left.pop() {
            if part == ".." {
                plain.pop();
                continue;
            }
            let next = plain.join(&part);
            // With O_PATH and O_NOFOLLOW a link at the end is opened itself (openat2(2)).
            let link = match self.open(&next, OFlags::PATH | OFlags::NOFOLLOW, Links::Refused) {
                Ok(file) => match readlinkat(&file, c"", Vec::new()) {
                    Ok(target) => Some(target),
                    // ENOENT is what the kernel says of a file that is no link.
                    Err(Errno::NOENT | Errno::INVAL) => None,
                    Err(errno) => return Err(failed(errno)),
                },
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(failed(errno)),
            };
            let Some(target) = link else {
                plain = next;
                continue;
            };
            followed += 1;
            if followed > LINKS {
                return Err(failed(Errno::LOOP));
            }
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            if target.is_absolute() {
                plain = PathBuf::from("/");
            }
            left.extend(parts(target));
        }
        Ok(plain)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.directory {
            Directory::Borrowed(fd) => *fd,
            Directory::Owned(fd) => fd.as_fd(),
        }
    }
}

/// Opens `path` of the host, which has no symbolic link on the way.
pub(crate) fn open_exact(path: &Path) -> Result<OwnedFd, Errno> {
    open_again(rustix::fs::CWD, path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
}

/// openat2(2), again when a rename or mount came in between.
fn open_again(
    place: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut left = ATTEMPTS;
    loop {
        match openat2(place, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if left > 0 => left -= 1,
            answer => return answer,
        }
    }
}

/// The names of a path, the first one last, `..` among them.
fn parts(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    let mut parts: Vec<OsString> = path.components().filter_map(name).collect();
    parts.reverse();
    parts
}

fn make_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    open_child(parent, name, OFlags::PATH | OFlags::DIRECTORY)
}

/// Opens a direct child that is no symbolic link.
pub(crate) fn open_child(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(parent, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The error for a path of the container.
pub(crate) fn refused(path: &Path, step: &'static str, errno: Errno) -> Error {
    Error::Path {
        path: PathBuf::from(path),
        step: if errno == Errno::LOOP { "a symbolic link is in the way" } else { step }.into(),
        source: AnyErrno::from(errno).0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::fstat;

    use super::*;

    /// A root directory beside a file that must never be reached.
    fn with_root(test: impl FnOnce(&Root<'_>, &Path)) {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("canary"), "alive").unwrap();
        let inside = outside.path().join("root");
        std::fs::create_dir(&inside).unwrap();
        let directory = std::fs::File::open(&inside).unwrap();
        test(&Root::new(directory.as_fd()), &inside);
        let canary = std::fs::read_to_string(outside.path().join("canary")).unwrap();
        assert_eq!(canary, "alive");
        let mut left: Vec<_> =
            std::fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["canary", "root"], "something was made outside");
    }

    #[test]
    fn a_link_out_of_the_root_stays_inside() {
        with_root(|root, inside| {
            symlink("../..", inside.join("up")).unwrap();
            symlink(inside.parent().unwrap(), inside.join("absolute")).unwrap();
            assert_eq!(
                root.open(Path::new("/up/canary"), OFlags::PATH, Links::Inside).err(),
                Some(Errno::NOENT)
            );
            assert_eq!(
                root.open(Path::new("/absolute/canary"), OFlags::PATH, Links::Inside).err(),
                Some(Errno::NOENT)
            );
            root.ensure_directory(Path::new("/up/made/here"), Links::Inside).unwrap();
            assert!(inside.join("made/here").is_dir());
        });
    }

    #[test]
    fn r12_a_link_to_nowhere_is_made_good_inside_the_root() {
        with_root(|root, inside| {
            symlink("../new/deep", inside.join("relative")).unwrap();
            symlink(inside.parent().unwrap().join("canary2"), inside.join("absolute")).unwrap();
            symlink("relative/../link2", inside.join("link1")).unwrap();
            symlink("/file", inside.join("link2")).unwrap();
            root.ensure_directory(Path::new("/relative/x"), Links::Inside).unwrap();
            root.ensure_file(Path::new("/absolute"), Links::Inside).unwrap();
            assert!(inside.join("new/deep/x").is_dir());
            let outside = inside.parent().unwrap().strip_prefix("/").unwrap();
            assert!(inside.join(outside).join("canary2").is_file());
            // ".." leads from where the link is, not from where it points.
            root.ensure_directory(Path::new("/new/link2"), Links::Inside).unwrap();
            root.ensure_file(Path::new("/link1"), Links::Inside).unwrap();
            symlink("loop2", inside.join("loop1")).unwrap();
            symlink("loop1", inside.join("loop2")).unwrap();
            assert!(root.ensure_file(Path::new("/loop1"), Links::Inside).is_err());
            assert!(root.ensure_file(Path::new("/relative/y"), Links::Refused).is_err());
        });
    }

    #[test]
    fn r9_links_can_be_refused_altogether() {
        with_root(|root, inside| {
            std::fs::create_dir(inside.join("real")).unwrap();
            for target in ["real", "/real", "loop", "../../dev"] {
                let link = inside.join("loop");
                symlink(target, &link).unwrap();
                let answer = root.ensure_directory(Path::new("/loop"), Links::Refused);
                assert!(
                    matches!(answer, Err(Error::Path { source: nix::errno::Errno::ELOOP, .. })),
                    "{target}: {answer:?}"
                );
                std::fs::remove_file(link).unwrap();
            }
        });
    }

    #[test]
    fn r3_magic_links_are_not_followed() {
        let root = Root::own().unwrap();
        for path in ["/proc/self/root/etc", "/proc/self/fd/0", "/proc/self/cwd"] {
            let answer = root.open(Path::new(path), OFlags::PATH, Links::Inside);
            assert_eq!(answer.err(), Some(Errno::LOOP), "{path}");
        }
    }

    #[test]
    fn a_file_is_made_with_its_parents() {
        with_root(|root, inside| {
            let file = root.ensure_file(Path::new("/a/b/c"), Links::Inside).unwrap();
            let again = root.ensure_file(Path::new("/a/b/c"), Links::Refused).unwrap();
            assert_eq!(fstat(&file).unwrap().st_ino, fstat(&again).unwrap().st_ino);
            assert!(inside.join("a/b/c").is_file());
        });
    }
}
