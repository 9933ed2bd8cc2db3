//! Archives for tests, well-formed and not.

use super::BLOCK;

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tar(Vec<u8>);

/// One header's fields, every one of which a test can bend.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
    /// What the size field says; `None` is the truth.
    pub(crate) size: Option<[u8; 12]>,
    pub(crate) magic: &'a [u8],
    pub(crate) prefix: &'a [u8],
    pub(crate) data: &'a [u8],
}

impl Default for Fields<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            link: b"",
            kind: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            size: None,
            magic: b"ustar\x0000",
            prefix: b"",
            data: b"",
        }
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn entry(mut self, fields: &Fields<'_>) -> Self {
        self.0.extend_from_slice(&header(fields));
        self.0.extend_from_slice(fields.data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(&Fields { name: name.as_bytes(), data, ..Fields::default() })
    }

    pub(crate) fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(&Fields { name: name.as_bytes(), mode, kind: b'5', ..Fields::default() })
    }

    pub(crate) fn symlink(self, name: &str, link: &str) -> Self {
        let (name, link) = (name.as_bytes(), link.as_bytes());
        self.entry(&Fields { name, link, kind: b'2', mode: 0o777, ..Fields::default() })
    }

    pub(crate) fn hard_link(self, name: &str, link: &str) -> Self {
        let (name, link) = (name.as_bytes(), link.as_bytes());
        self.entry(&Fields { name, link, kind: b'1', ..Fields::default() })
    }

    /// An extended header before the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.extended(b'x', &data)
    }

    pub(crate) fn extended(self, kind: u8, data: &[u8]) -> Self {
        self.entry(&Fields { name: b"././@LongLink", kind, data, ..Fields::default() })
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    /// The archive without its end.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// `"%d %s=%s\n"`, the number counting itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != length.to_string().len() + rest.len() {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

pub(crate) fn header(fields: &Fields<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, fields.name);
    put(100, format!("{:07o}", fields.mode).as_bytes());
    put(108, format!("{:07o}", fields.uid).as_bytes());
    put(116, format!("{:07o}", fields.gid).as_bytes());
    put(124, format!("{:011o}", fields.data.len()).as_bytes());
    if let Some(size) = &fields.size {
        put(124, size);
    }
    put(136, format!("{:011o}", fields.mtime).as_bytes());
    put(156, &[fields.kind]);
    put(157, fields.link);
    put(257, fields.magic);
    if !fields.magic.is_empty() {
        put(329, format!("{:07o}", fields.device.0).as_bytes());
        put(337, format!("{:07o}", fields.device.1).as_bytes());
    }
    put(345, fields.prefix);
    put(148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
