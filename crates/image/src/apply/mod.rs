//! Writing one layer's entries into its directory.
//!
//! Every call goes by descriptor and one name that is never followed; a parent is opened
//! by `openat2` without symbolic links, or, where the layer itself put a link on the
//! way, by walking component by component with the layer's directory for a root. So
//! nothing outside is reached, whatever the archive says, even if the directory could be
//! changed meanwhile (it cannot: it is private).
//!
//! Directories keep the times their entries gave them: whoever adds a name to one notes
//! its times before and restores them after, so nothing has to be remembered until the
//! end. What must be remembered (implied directories, whiteouts) has a bound.
//!
//! Not here: what implied directories look like, which needs the layers below
//! ([`settle`]).

mod node;
mod parent;
mod path;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use berth_snapshot::Size;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};

pub(crate) use settle::settle;

use crate::pull::Exceeded;
use crate::tar::{Archive, Entry, Kind, ReadError};
use crate::{BadEntry, LayerError, Limits};
use parent::Parent;
use path::{LayerPath, Meaning};

/// Most bytes of paths remembered of one layer.
const BOOKKEEPING: usize = 16 << 20;

/// Bytes read and written at once.
const BUFFER: usize = 256 << 10;

/// How much is written between two reports of it: few enough to cost nothing.
const REPORT_INODES: u64 = 256;
const REPORT_BYTES: u64 = 1 << 20;

/// What became of a layer's entries, and what [`settle`] has still to do.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Directories that no entry names.
    implied: BTreeSet<Vec<u8>>,
    /// Whether an entry names the root.
    root_named: bool,
    /// Whiteouts that were made.
    whiteouts: BTreeSet<Vec<u8>>,
    /// Directories that hide what lies below.
    opaque: BTreeSet<Vec<u8>>,
    remembered: usize,
    /// Allocated bytes and inodes, unless `recount`.
    bytes: u64,
    inodes: u64,
    /// Something was replaced, so that the sums above are too high.
    recount: bool,
}

/// Writes entries below a directory.
pub(crate) struct Applier<'a> {
    root: BorrowedFd<'a>,
    limits: &'a Limits,
    /// The lowest layer has nothing to hide.
    lowest: bool,
    parent: Option<Parent>,
    buffer: Vec<u8>,
    entries: u64,
    done: Applied,
    /// Is told, now and then, how much was written.
    report: &'a dyn Fn(Size),
}

/// Unpacks `archive` into the directory `root`, which must be empty and private; tells
/// `report` on the way how much that is by now.
pub(crate) fn apply<R: Read>(
    root: BorrowedFd<'_>,
    archive: &mut Archive<R>,
    lowest: bool,
    limits: &Limits,
    report: &dyn Fn(Size),
) -> Result<Applied, LayerError> {
    let mut applier = Applier {
        root,
        limits,
        lowest,
        parent: None,
        buffer: vec![0; BUFFER],
        entries: 0,
        done: Applied { inodes: 1, bytes: 4096, ..Applied::default() },
        report,
    };
    while let Some(entry) = archive.next_entry().map_err(unreadable)? {
        applier.entry(&entry, archive)?;
    }
    applier.leave()?;
    Ok(applier.done)
}

/// What went wrong with an entry; the caller adds which one.
enum Failure {
    Bad(BadEntry),
    Call(&'static str, Errno),
    Layer(LayerError),
}

impl From<BadEntry> for Failure {
    fn from(bad: BadEntry) -> Self {
        Self::Bad(bad)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

fn call(action: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure::Call(action, errno)
}

fn unreadable(error: ReadError) -> LayerError {
    match error {
        ReadError::Bad(bad) => LayerError::Archive(bad),
        ReadError::Io(error) => Exceeded::unwrap(error),
    }
}

impl Applier<'_> {
    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), LayerError> {
        let path = || path::shown(&entry.path);
        self.one(entry, archive).map_err(|failure| match failure {
            Failure::Bad(source) => LayerError::Entry { path: path(), source },
            Failure::Call(action, source) => LayerError::Apply { path: path(), action, source },
            Failure::Layer(error) => error,
        })
    }

    fn one<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Failure> {
        self.count_entry()?;
        let path = LayerPath::parse(&entry.path, self.limits)?;
        let meaning = path.meaning()?;
        let Some((parent, name)) = path.split() else { return self.root_entry(entry) };
        match meaning {
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => self.opaque(parent),
            Meaning::Whiteout(hidden) => self.whiteout(parent, hidden),
            // To overlayfs that device is a whiteout, wherever it comes from.
            Meaning::Plain if entry.kind == Kind::CharDevice && entry.device == (0, 0) => {
                self.whiteout(parent, name)
            }
            Meaning::Plain => {
                self.enter(parent)?;
                let name = component(name)?;
                match entry.kind {
                    Kind::File => self.file(&name, entry, archive),
                    Kind::Directory => self.directory(&name, entry),
                    Kind::HardLink => self.hard_link(&name, entry),
                    Kind::Symlink => self.symlink(&name, entry),
                    Kind::CharDevice => self.special(&name, entry, SFlag::S_IFCHR),
                    Kind::BlockDevice => self.special(&name, entry, SFlag::S_IFBLK),
                    Kind::Fifo => self.special(&name, entry, SFlag::S_IFIFO),
                }
            }
        }
    }

    /// Directories that entries imply count too: each is an inode.
    fn count_entry(&mut self) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::Entries(self.limits.entries));
        }
        Ok(())
    }

    fn remember(&mut self, path: &[u8]) -> Result<(), LayerError> {
        self.done.remembered += path.len() + 64;
        if self.done.remembered > BOOKKEEPING {
            return Err(LayerError::Bookkeeping(BOOKKEEPING));
        }
        Ok(())
    }

    /// The entry that names the layer's root.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.kind != Kind::Directory {
            return Err(BadEntry::Root.into());
        }
        self.leave()?;
        self.dress_directory(self.root, entry)?;
        self.done.root_named = true;
        Ok(())
    }

    /// Forgets what is known of `path` and all below it: it was removed.
    fn forget(&mut self, path: &[u8]) {
        let below = child_range(path);
        for set in [&mut self.done.implied, &mut self.done.whiteouts, &mut self.done.opaque] {
            set.remove(path);
            let gone: Vec<_> = set.range(below.clone()).cloned().collect();
            for path in gone {
                set.remove(&path);
            }
        }
        self.done.recount = true;
    }

    fn add_usage(&mut self, stat: &FileStat) {
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.done.inodes += 1;
        self.done.bytes += bytes;
        if self.done.inodes.is_multiple_of(REPORT_INODES) || bytes >= REPORT_BYTES {
            (self.report)(Size { bytes: self.done.bytes, inodes: self.done.inodes });
        }
    }
}

/// Every path below `path` in byte order: from `path/` up to before `path0`, `0` being
/// what follows `/`.
fn child_range(path: &[u8]) -> std::ops::Range<Vec<u8>> {
    [path, b"/"].concat()..[path, b"0"].concat()
}

/// A component for the kernel. The reader lets no NUL through.
fn component(name: &[u8]) -> Result<CString, BadEntry> {
    CString::new(name).map_err(|_| BadEntry::PathTooLong)
}

fn format(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// A character device 0:0 (overlayfs: "whiteouts and opaque directories").
fn is_whiteout(stat: &FileStat) -> bool {
    format(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn borrow(parent: Option<&Parent>) -> BorrowedFd<'_> {
    parent.expect("an entry's parent is entered before the entry is made").fd.as_fd()
}
