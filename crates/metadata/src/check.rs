//! Checksums of rows. SQLite finds pages that contradict each other, not a byte that
//! changed inside of a value.
//!
//! A record carries its own: the last field of its JSON object, which a version that does
//! not know it ignores and leaves out when it writes. Rows without JSON have a column
//! `sum` that such a version leaves empty. What has no checksum was written by such a
//! version and is taken as it is.

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

const FIELD: &str = ",\"check\":\"";
/// 16 hexadecimal digits, quote, brace.
const TAIL: usize = 18;

/// FNV-1a, 64 bits: each step is a bijection, so one changed byte is always found.
fn fnv(parts: &[&[u8]]) -> u64 {
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0xff])) {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    sum
}

/// The checksum of a row without JSON.
pub(crate) fn row(columns: &[&str]) -> i64 {
    let columns: Vec<&[u8]> = columns.iter().map(|column| column.as_bytes()).collect();
    fnv(&columns).cast_signed()
}

/// A record as JSON with its checksum.
pub(crate) fn seal<T: Serialize>(record: &T) -> serde_json::Result<String> {
    let mut text = serde_json::to_string(record)?;
    let sum = fnv(&[text.as_bytes()]);
    text.pop();
    text.push_str(FIELD);
    text.push_str(&format!("{sum:016x}\"}}"));
    Ok(text)
}

/// What [`seal`] wrote, or a version without checksums; `sealed` refuses the latter.
pub(crate) fn open<T>(text: &str, sealed: bool) -> serde_json::Result<T>
where
    T: Serialize + DeserializeOwned,
{
    let Some((body, sum)) = split(text) else {
        return if sealed { Err(serde_json::Error::custom("no checksum")) } else { plain(text) };
    };
    let mut body = body.to_owned();
    body.push('}');
    if format!("{:016x}", fnv(&[body.as_bytes()])) != sum {
        return Err(serde_json::Error::custom("the checksum does not match"));
    }
    serde_json::from_str(&body)
}

fn split(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_suffix("\"}")?;
    let at = text.len().checked_sub(TAIL)?;
    let (body, sum) = (rest.get(..at)?, rest.get(at..)?);
    Some((body.strip_suffix(FIELD)?, sum))
}

/// A record without checksum: a field that nobody knows may be a damaged checksum.
fn plain<T: Serialize + DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    let record: T = serde_json::from_str(text)?;
    let found: serde_json::Value = serde_json::from_str(text)?;
    let known = serde_json::to_value(&record)?;
    if let (Some(found), Some(known)) = (found.as_object(), known.as_object())
        && let Some(stranger) = found.keys().find(|key| !known.contains_key(*key))
    {
        return Err(serde_json::Error::custom(format_args!("unknown field {stranger:?}")));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
    struct Thing {
        name: String,
        size: u32,
    }

    fn thing() -> Thing {
        Thing { name: "a \"quoted\" ü".into(), size: 7 }
    }

    #[test]
    fn no_changed_or_missing_byte_is_taken() {
        let text = seal(&thing()).unwrap();
        assert_eq!(open::<Thing>(&text, true).unwrap(), thing());
        for at in 0..text.len() {
            for flip in 1..=255u8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= flip;
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                for sealed in [true, false] {
                    // Another spelling of the checksum's digits is the only thing let through.
                    let found = open::<Thing>(&changed, sealed);
                    assert!(found.is_err(), "{changed}");
                }
            }
            if let Some(cut) = text.get(..at) {
                assert!(open::<Thing>(cut, false).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn a_record_of_an_older_version_is_taken_and_an_older_version_takes_ours() {
        let plain = serde_json::to_string(&thing()).unwrap();
        assert_eq!(open::<Thing>(&plain, false).unwrap(), thing());
        assert!(open::<Thing>(&plain, true).is_err());
        let sealed = seal(&thing()).unwrap();
        assert_eq!(serde_json::from_str::<Thing>(&sealed).unwrap(), thing());
    }
}
