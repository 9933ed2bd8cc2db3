//! A tar writer for test layers: ustar headers, and nothing it refuses to write.

use std::fmt::Write as _;

const BLOCK: usize = 512;

/// A tar archive under construction.
#[derive(Clone, Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// One entry, as the header has it. Public so that tests can write hostile ones.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Path, at most 100 bytes.
    pub name: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type flag: `0` file, `1` hard link, `2` symbolic link, `5` directory …
    pub kind: u8,
    /// Target of a link, at most 100 bytes.
    pub link: &'a str,
    /// Modification time, seconds since the epoch.
    pub mtime: u64,
    /// Content of a file.
    pub data: &'a [u8],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            name: "",
            mode: 0o644,
            uid: 0,
            gid: 0,
            kind: b'0',
            link: "",
            mtime: 1_700_000_000,
            data: b"",
        }
    }
}

impl Tar {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; its name should end in a slash.
    #[must_use]
    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(&Entry { name, mode, kind: b'5', ..Entry::default() })
    }

    /// Adds a regular file of root's.
    #[must_use]
    pub fn file(self, name: &str, mode: u32, data: &[u8]) -> Self {
        self.entry(&Entry { name, mode, data, ..Entry::default() })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, link: &str) -> Self {
        self.entry(&Entry { name, link, mode: 0o777, kind: b'2', ..Entry::default() })
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, link: &str) -> Self {
        self.entry(&Entry { name, link, kind: b'1', ..Entry::default() })
    }

    /// Adds any entry.
    #[must_use]
    pub fn entry(mut self, entry: &Entry<'_>) -> Self {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, entry.name.as_bytes());
        put(100, format!("{:07o}", entry.mode).as_bytes());
        put(108, format!("{:07o}", entry.uid).as_bytes());
        put(116, format!("{:07o}", entry.gid).as_bytes());
        put(124, format!("{:011o}", entry.data.len()).as_bytes());
        put(136, format!("{:011o}", entry.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[entry.kind]);
        put(157, entry.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        let mut checksum = String::new();
        write!(checksum, "{sum:06o}").expect("writing to a string cannot fail");
        header[148..154].copy_from_slice(checksum.as_bytes());
        header[154] = 0;
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(entry.data);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive with its two closing blocks.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}
