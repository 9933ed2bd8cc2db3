//! The merged view of a chain, looked up layer by layer without a mount.
//!
//! The lookup does in user space what overlayfs does (kernel documentation, "Overlay
//! Filesystem": merging, whiteouts, opaque directories): works on every kernel whatever
//! the number of layers, costs no mount, and opens nothing but directories on the way,
//! each by one component that is never followed.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::Error;
use crate::meta::is_opaque;

/// Most symbolic links in one lookup (the kernel's own `MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Most components in one lookup, those of symbolic links included.
const MAX_COMPONENTS: usize = 4096;

/// A chain of committed layers, or of directories that stand for them, merged.
#[derive(Debug)]
pub struct MergedView {
    root: Merged,
}

/// One directory of the merged view: its parts, top first.
#[derive(Debug)]
struct Merged(Vec<OwnedFd>);

/// What a lookup found.
#[derive(Debug)]
pub struct Found {
    parent: OwnedFd,
    name: CString,
    stat: FileStat,
}

impl Found {
    /// Its metadata.
    #[must_use]
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        format(&self.stat) == SFlag::S_IFDIR
    }

    /// Opens the directory for reading; fails on anything else.
    pub fn open_directory(&self) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.parent, self.name.as_c_str(), flags, Mode::empty())
            .map_err(Error::io("open", shown(&self.name)))
    }
}

enum Step {
    Absent,
    Directory(Merged, Found),
    Other(Found),
}

impl Merged {
    /// Looks up one component.
    fn step(&self, name: &CString) -> Result<Step, Error> {
        let failed = |action| Error::io(action, shown(name));
        let mut parts: Vec<OwnedFd> = Vec::new();
        let mut top = None;
        for layer in &self.0 {
            let stat = match fstatat(layer, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT | Errno::ENAMETOOLONG) => continue,
                Err(errno) => return Err(failed("read metadata of")(errno)),
            };
            let found = || -> Result<Found, Error> {
                let parent = layer.try_clone().map_err(Error::io("keep parent of", shown(name)))?;
                Ok(Found { parent, name: name.clone(), stat })
            };
            if format(&stat) != SFlag::S_IFDIR {
                if top.is_some() || is_whiteout(&stat) {
                    break;
                }
                return Ok(Step::Other(found()?));
            }
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let part =
                openat(layer, name.as_c_str(), flags, Mode::empty()).map_err(failed("open"))?;
            if top.is_none() {
                top = Some(found()?);
            }
            let last = is_opaque(part.as_fd());
            parts.push(part);
            if last {
                break;
            }
        }
        Ok(top.map_or(Step::Absent, |found| Step::Directory(Self(parts), found)))
    }
}

impl MergedView {
    /// Merges directories open for reading, top first. One whose own root is opaque
    /// hides all that follow.
    #[must_use]
    pub fn new(layers: Vec<OwnedFd>) -> Self {
        let mut parts = Vec::with_capacity(layers.len());
        for layer in layers {
            let last = is_opaque(layer.as_fd());
            parts.push(layer);
            if last {
                break;
            }
        }
        Self { root: Merged(parts) }
    }

    /// The topmost directory of the root, whose metadata the merged root shows; `None`
    /// without layers.
    #[must_use]
    pub fn root(&self) -> Option<BorrowedFd<'_>> {
        self.root.0.first().map(AsFd::as_fd)
    }

    /// Looks `components` up without following any symbolic link: where one is not a
    /// directory, what lies behind it is absent.
    pub fn lookup<'a>(
        &self,
        components: impl IntoIterator<Item = &'a OsStr>,
    ) -> Result<Option<Found>, Error> {
        let mut found = None;
        let mut held: Option<Merged> = None;
        for component in components {
            let Ok(name) = CString::new(component.as_bytes()) else { return Ok(None) };
            if found.is_some() && held.is_none() {
                return Ok(None);
            }
            match held.as_ref().unwrap_or(&self.root).step(&name)? {
                Step::Absent => return Ok(None),
                Step::Directory(next, here) => (held, found) = (Some(next), Some(here)),
                Step::Other(here) => (held, found) = (None, Some(here)),
            }
        }
        Ok(found)
    }

    /// Looks `path` up as a process with this view for its root would: symbolic links
    /// are followed and never lead out.
    pub fn resolve(&self, path: &Path) -> Result<Option<Found>, Error> {
        let looped = || Error::Loop { path: path.to_owned() };
        // Only one directory is held, whose parts may be as many as there are layers.
        let mut here: Option<(Merged, Found)> = None;
        let mut walked: Vec<OsString> = Vec::new();
        let mut pending: VecDeque<OsString> = components(path.as_os_str());
        let (mut links, mut steps) = (0, 0);
        while let Some(component) = pending.pop_front() {
            steps += 1;
            if steps > MAX_COMPONENTS || pending.len() > MAX_COMPONENTS {
                return Err(looped());
            }
            if component == ".." {
                walked.pop();
                walked.drain(..).rev().for_each(|name| pending.push_front(name));
                here = None;
                continue;
            }
            let Ok(name) = CString::new(component.as_bytes()) else { return Ok(None) };
            match here.as_ref().map_or(&self.root, |(merged, _)| merged).step(&name)? {
                Step::Absent => return Ok(None),
                Step::Directory(merged, found) => {
                    here = Some((merged, found));
                    walked.push(component);
                }
                Step::Other(found) if format(&found.stat) == SFlag::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(looped());
                    }
                    let target = readlinkat(&found.parent, found.name.as_c_str())
                        .map_err(Error::io("read symbolic link", path))?;
                    if target.as_bytes().starts_with(b"/") {
                        here = None;
                        walked.clear();
                    }
                    for component in components(&target).into_iter().rev() {
                        pending.push_front(component);
                    }
                }
                Step::Other(found) => return Ok(pending.is_empty().then_some(found)),
            }
        }
        Ok(here.map(|(_, found)| found))
    }

    /// Reads the regular file at `path`, at most `limit` bytes of it; `None` if there is
    /// none. Symbolic links are followed inside the view.
    ///
    /// # Errors
    /// [`Error::NotAFile`] for anything that is not a regular file, which is never opened;
    /// [`Error::TooLarge`] for a file beyond `limit`.
    pub fn read_file(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(found) = self.resolve(path)? else { return Ok(None) };
        let refuse = |stat: &FileStat| match what(stat) {
            Some(what) => Err(Error::NotAFile { path: path.to_owned(), what }),
            None => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                if size > limit {
                    return Err(Error::TooLarge { path: path.to_owned(), size, limit });
                }
                Ok(())
            }
        };
        refuse(&found.stat)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = openat(&found.parent, found.name.as_c_str(), flags, Mode::empty())
            .map_err(Error::io("open", path))?;
        refuse(&fstat(&fd).map_err(Error::io("read metadata of", path))?)?;
        let mut content = Vec::new();
        std::fs::File::from(fd)
            .take(limit.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(Error::io("read", path))?;
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if size > limit {
            return Err(Error::TooLarge { path: path.to_owned(), size, limit });
        }
        Ok(Some(content))
    }
}

fn shown(name: &CString) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
        .map(|component| OsStr::from_bytes(component).to_owned())
        .collect()
}

fn format(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// A character device 0:0 hides what lies below it.
fn is_whiteout(stat: &FileStat) -> bool {
    format(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

/// What it is, unless it is a regular file.
fn what(stat: &FileStat) -> Option<&'static str> {
    match format(stat) {
        SFlag::S_IFREG => None,
        SFlag::S_IFDIR => Some("directory"),
        SFlag::S_IFLNK => Some("symbolic link"),
        SFlag::S_IFIFO => Some("FIFO"),
        SFlag::S_IFSOCK => Some("socket"),
        SFlag::S_IFCHR => Some("character device"),
        SFlag::S_IFBLK => Some("block device"),
        _ => Some("file of unknown type"),
    }
}
