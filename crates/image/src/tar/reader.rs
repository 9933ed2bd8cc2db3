//! From blocks to entries.

use std::io::{self, Read};

use super::header::Header;
use super::pax::{self, Records};
use super::{BLOCK, Entry, Kind, MAX_EXTENDED, Time};
use crate::BadArchive;

/// Why an archive gives no further entry.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The archive itself.
    Bad(BadArchive),
    /// The stream it comes from.
    Io(io::Error),
}

impl From<BadArchive> for ReadError {
    fn from(bad: BadArchive) -> Self {
        Self::Bad(bad)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An archive being read.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    stream: R,
    /// Data of the current entry not read yet, bytes.
    data: u64,
    /// What pads it to whole blocks, bytes.
    padding: u64,
    finished: bool,
}

/// What extended headers before an entry have said.
#[derive(Default)]
struct Extended {
    records: Option<Records>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, data: 0, padding: 0, finished: false }
    }

    /// The stream, wherever it is now.
    pub(crate) fn into_inner(self) -> R {
        self.stream
    }

    /// Skips what is left of the current entry and reads the next; `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut extended = Extended::default();
        loop {
            self.skip_data()?;
            let mut block = [0; BLOCK];
            if self.finished || !self.read_block(&mut block)? {
                return self.end(&extended);
            }
            let Some(header) = Header::parse(&block)? else {
                self.expect_second_zero_block()?;
                return self.end(&extended);
            };
            match header.type_flag() {
                b'x' => {
                    let data = self.extended(&header)?;
                    set_once(&mut extended.records, Records::parse(&data)?)?;
                }
                b'g' => pax::check_global(&self.extended(&header)?)?,
                b'L' => set_once(&mut extended.long_path, self.long_name(&header)?)?,
                b'K' => set_once(&mut extended.long_link, self.long_name(&header)?)?,
                flag => {
                    let entry = entry(&header, flag, extended)?;
                    self.expect_data(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = retry(|| self.stream.read(&mut buffer[..most]))?;
        if read == 0 {
            return Err(BadArchive::Truncated.into());
        }
        self.data -= u64::try_from(read).expect("a read is no longer than its buffer");
        Ok(read)
    }

    fn expect_data(&mut self, size: u64) {
        let block = u64::try_from(BLOCK).expect("512 fits");
        self.data = size;
        self.padding = (block - size % block) % block;
    }

    fn skip_data(&mut self) -> Result<(), ReadError> {
        let mut waste = [0; 16 << 10];
        while self.read_data(&mut waste)? > 0 {}
        self.data = std::mem::take(&mut self.padding);
        while self.read_data(&mut waste)? > 0 {}
        Ok(())
    }

    /// Fills `block`; `false` where the stream ends before it.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, ReadError> {
        let mut filled = 0;
        while filled < BLOCK {
            match retry(|| self.stream.read(&mut block[filled..]))? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(BadArchive::Truncated.into()),
                read => filled += read,
            }
        }
        Ok(true)
    }

    /// An archive ends with two blocks of zeros, or with its stream after one or none.
    fn expect_second_zero_block(&mut self) -> Result<(), ReadError> {
        let mut block = [0; BLOCK];
        if self.read_block(&mut block)? && block.iter().any(|byte| *byte != 0) {
            return Err(BadArchive::AfterEnd.into());
        }
        self.finished = true;
        Ok(())
    }

    fn end(&mut self, extended: &Extended) -> Result<Option<Entry>, ReadError> {
        self.finished = true;
        let Extended { records: None, long_path: None, long_link: None } = extended else {
            return Err(BadArchive::Truncated.into());
        };
        Ok(None)
    }

    /// The data of an extended header.
    fn extended(&mut self, header: &Header<'_>) -> Result<Vec<u8>, ReadError> {
        let size = header.size()?;
        if size > MAX_EXTENDED {
            return Err(BadArchive::ExtendedTooLarge(size).into());
        }
        self.expect_data(size);
        let mut data = vec![0; usize::try_from(size).expect("it is at most 1 MiB")];
        let mut filled = 0;
        while filled < data.len() {
            filled += self.read_data(&mut data[filled..])?;
        }
        Ok(data)
    }

    /// A GNU long name: what precedes its NUL.
    fn long_name(&mut self, header: &Header<'_>) -> Result<Vec<u8>, ReadError> {
        let mut name = self.extended(header)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            if name[end..].iter().any(|byte| *byte != 0) {
                return Err(BadArchive::Nul.into());
            }
            name.truncate(end);
        }
        Ok(name)
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), BadArchive> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(BadArchive::Ambiguous),
    }
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer,
        }
    }
}

fn entry(header: &Header<'_>, flag: u8, extended: Extended) -> Result<Entry, BadArchive> {
    let records = extended.records.unwrap_or_default();
    let path = one_of(records.path, extended.long_path)?.unwrap_or_else(|| header.path());
    let link = one_of(records.link, extended.long_link)?.unwrap_or_else(|| header.link());
    let size = match records.size {
        Some(size) => size,
        None => header.size()?,
    };
    let kind = kind(flag, &path, size)?;
    Ok(Entry {
        kind,
        mode: header.mode()?,
        uid: records.uid.map_or_else(|| header.uid(), Ok)?,
        gid: records.gid.map_or_else(|| header.gid(), Ok)?,
        // A hard link may repeat its target's size; it has no data (POSIX, typeflag 1).
        size: if kind == Kind::File { size } else { 0 },
        mtime: match records.mtime {
            Some(mtime) => mtime,
            None => Time { seconds: header.mtime()?, nanoseconds: 0 },
        },
        atime: records.atime,
        device: match kind {
            Kind::CharDevice | Kind::BlockDevice => header.device()?,
            _ => (0, 0),
        },
        xattrs: records.xattrs,
        path,
        link,
    })
}

fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, BadArchive> {
    if pax.is_some() && gnu.is_some() {
        return Err(BadArchive::Ambiguous);
    }
    Ok(pax.or(gnu))
}

fn kind(flag: u8, path: &[u8], size: u64) -> Result<Kind, BadArchive> {
    let kind = match flag {
        // Before POSIX a directory was an empty file whose name ends in a slash.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(BadArchive::Sparse),
        other => return Err(BadArchive::Type(other)),
    };
    match kind {
        Kind::File if path.ends_with(b"/") => Err(BadArchive::Ambiguous),
        Kind::File | Kind::HardLink => Ok(kind),
        _ if size != 0 => Err(BadArchive::Ambiguous),
        _ => Ok(kind),
    }
}
