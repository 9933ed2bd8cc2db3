//! The 512 bytes before an entry (POSIX pax utility, "ustar Interchange Format").

use super::BLOCK;
use crate::BadArchive;

/// Which fields beyond the oldest ones a header has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    /// Before POSIX: neither devices nor a prefix.
    Old,
    /// POSIX: a prefix of 155 bytes.
    Ustar,
    /// Schilling's star: ustar with a prefix of 131 bytes.
    Star,
    /// GNU: no prefix.
    Gnu,
}

/// One header block.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Checks the checksum; `None` for a block of zeros.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Option<Self>, BadArchive> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Self(block);
        let stored = number(header.field(148, 8)).ok_or(BadArchive::Checksum)?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(BadArchive::Checksum);
        }
        Ok(Some(header))
    }

    fn field(&self, at: usize, length: usize) -> &'a [u8] {
        &self.0[at..at + length]
    }

    fn format(&self) -> Format {
        match self.field(257, 8) {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if self.field(508, 4) == b"tar\0" {
                    return Format::Star;
                }
                Format::Ustar
            }
            _ => Format::Old,
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// Prefix and name joined.
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.format() {
            Format::Ustar => text(self.field(345, 155)),
            Format::Star => text(self.field(345, 131)),
            Format::Old | Format::Gnu => b"",
        };
        let name = text(self.field(0, 100));
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, BadArchive> {
        let mode = self.number("mode", 100, 8)?;
        u32::try_from(mode & 0o7777).map_err(|_| BadArchive::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<u32, BadArchive> {
        owner("uid", self.number("uid", 108, 8)?)
    }

    pub(super) fn gid(&self) -> Result<u32, BadArchive> {
        owner("gid", self.number("gid", 116, 8)?)
    }

    pub(super) fn size(&self) -> Result<u64, BadArchive> {
        let size = self.number("size", 124, 12)?;
        u64::try_from(size).map_err(|_| BadArchive::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, BadArchive> {
        self.number("mtime", 136, 12)
    }

    pub(super) fn device(&self) -> Result<(u32, u32), BadArchive> {
        if self.format() == Format::Old {
            return Ok((0, 0));
        }
        let part = |name, at| {
            u32::try_from(self.number(name, at, 8)?).map_err(|_| BadArchive::Number(name))
        };
        Ok((part("devmajor", 329)?, part("devminor", 337)?))
    }

    fn number(&self, name: &'static str, at: usize, length: usize) -> Result<i64, BadArchive> {
        number(self.field(at, length)).ok_or(BadArchive::Number(name))
    }
}

/// An owner that chown(2) can set: −1 means "leave it" there.
pub(super) fn owner(name: &'static str, id: i64) -> Result<u32, BadArchive> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(BadArchive::Number(name))
}

/// What precedes the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or a big-endian two's complement number marked
/// by its highest bit (GNU base-256).
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; the lower six start the number.
        let start = if first & 0x40 != 0 { -64 } else { 0 } + i64::from(first & 0x3f);
        return rest
            .iter()
            .try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(i64::from(*byte)));
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end].iter().try_fold(0_i64, |sum, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        sum.checked_mul(8)?.checked_add(i64::from(digit))
    })
}
