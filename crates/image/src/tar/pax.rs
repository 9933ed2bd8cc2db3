//! Extended header records (POSIX pax utility, "pax Extended Header").

use std::collections::BTreeMap;

use super::Time;
use super::header::owner;
use crate::BadArchive;

/// Prefix of the records that carry extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the records before one entry say of it; `None` leaves the header's own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Records {
    /// Parses the records before one entry.
    pub(super) fn parse(data: &[u8]) -> Result<Self, BadArchive> {
        let mut records = Self::default();
        each(data, |key, value| records.take(key, value))?;
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), BadArchive> {
        let number = |name| decimal(value).ok_or(BadArchive::Number(name));
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" if value.is_empty() => self.size = None,
            b"size" => {
                let size = u64::try_from(number("size")?);
                self.size = Some(size.map_err(|_| BadArchive::Number("size"))?);
            }
            b"uid" if value.is_empty() => self.uid = None,
            b"uid" => self.uid = Some(owner("uid", number("uid")?)?),
            b"gid" if value.is_empty() => self.gid = None,
            b"gid" => self.gid = Some(owner("gid", number("gid")?)?),
            b"mtime" => self.mtime = time("mtime", value)?,
            b"atime" => self.atime = time("atime", value)?,
            _ if key.starts_with(b"GNU.sparse.") => return Err(BadArchive::Sparse),
            _ => {
                if let Some(attribute) = key.strip_prefix(XATTR) {
                    self.xattr(attribute, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, attribute: &[u8], value: &[u8]) -> Result<(), BadArchive> {
        if attribute.is_empty() || attribute.contains(&0) {
            return Err(BadArchive::Pax);
        }
        self.xattrs.insert(attribute.to_vec(), value.to_vec());
        Ok(())
    }
}

/// Checks a global header: it may say what concerns no entry (git writes a comment), and
/// nothing else, since readers disagree on what it would change.
pub(super) fn check_global(data: &[u8]) -> Result<(), BadArchive> {
    each(data, |key, _| {
        let steers =
            matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"uname" | b"gname");
        if steers || key.starts_with(b"GNU.sparse.") || key.starts_with(XATTR) {
            return Err(BadArchive::Global);
        }
        Ok(())
    })
}

/// Splits `"%d %s=%s\n"` records; the number counts the whole record.
fn each(
    mut data: &[u8],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), BadArchive>,
) -> Result<(), BadArchive> {
    while !data.is_empty() {
        let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or(BadArchive::Pax)?;
        let length = decimal(&data[..space])
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length > space + 1 && *length <= data.len())
            .ok_or(BadArchive::Pax)?;
        let (record, rest) = data.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or(BadArchive::Pax)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BadArchive::Pax)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(BadArchive::Pax);
        }
        take(key, value)?;
        data = rest;
    }
    Ok(())
}

/// An empty value takes the header's own.
fn name(value: &[u8]) -> Result<Option<Vec<u8>>, BadArchive> {
    if value.contains(&0) {
        return Err(BadArchive::Nul);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Digits only, with a minus sign at most.
fn decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .try_fold(0_i64, |sum, digit| sum.checked_mul(10)?.checked_add(i64::from(digit - b'0')))?;
    Some(if negative { -number } else { number })
}

/// Seconds with an optional fraction, of which nine digits count.
fn time(field: &'static str, value: &[u8]) -> Result<Option<Time>, BadArchive> {
    if value.is_empty() {
        return Ok(None);
    }
    let bad = || BadArchive::Number(field);
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let seconds = decimal(whole).ok_or_else(bad)?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    if whole.starts_with(b"-") && nanoseconds > 0 {
        // -1.25 is 0.75 after the second before.
        let seconds = seconds.checked_sub(1).ok_or_else(bad)?;
        return Ok(Some(Time { seconds, nanoseconds: 1_000_000_000 - nanoseconds }));
    }
    Ok(Some(Time { seconds, nanoseconds }))
}
