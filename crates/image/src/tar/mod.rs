//! A streaming reader of tar archives as layers have them: POSIX ustar and pax, GNU long
//! names and base-256 numbers, and the old format before both.
//!
//! Where readers in the field disagree about an archive it is refused, so that two
//! programs never see different files in one layer: sizes on entries that carry no data,
//! both pax and GNU names on one entry, numbers with odd characters, global headers that
//! would change entries, sparse files.
//!
//! Invariants: no more is held in memory than one extended header ([`MAX_EXTENDED`]);
//! an entry's data ends where its header said, whatever its reader took.

#[cfg(test)]
pub(crate) mod build;
mod header;
mod pax;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(crate) use reader::{Archive, ReadError};

/// Longest extended header or long name, bytes.
pub(crate) const MAX_EXTENDED: u64 = 1 << 20;

/// Size of a header, and what data is padded to, bytes.
pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry's metadata.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As written; never holds NUL.
    pub(crate) path: Vec<u8>,
    /// Target of a link, as written; never holds NUL.
    pub(crate) link: Vec<u8>,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Size of the data that follows, bytes.
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) atime: Option<Time>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes: name without NUL, value.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A point in time; the nanoseconds count upwards from the second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}
