//! `vendor/class=device`.

use std::fmt;

use crate::Error;

/// Longest name, bytes.
const LONGEST: usize = 512;

/// The name of a device (CDI specification, "Kinds" and "Devices").
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DeviceName {
    /// `vendor/class`.
    pub kind: String,
    /// Of the device, among those of its kind.
    pub device: String,
}

impl DeviceName {
    /// Checks and takes a name apart.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn parse(name: &str) -> Result<Self, Error> {
        let bad = || Error::Name(name.chars().take(128).collect());
        let (kind, device) = name.split_once('=').ok_or_else(bad)?;
        if name.len() > LONGEST || !is_kind(kind) || !is_device(device) {
            return Err(bad());
        }
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Whether `text` is `vendor/class`.
pub(crate) fn is_kind(text: &str) -> bool {
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic()) && is_word(text, &['_', '-', '.'])
    };
    text.split_once('/').is_some_and(|(vendor, class)| word(vendor) && word(class))
}

/// Whether `text` can name a device.
pub(crate) fn is_device(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_word(text, &['_', '-', '.', ':'])
}

fn is_word(text: &str, marks: &[char]) -> bool {
    text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_three_parts() {
        for good in ["nvidia.com/gpu=0", "v/c=d", "vendor.com/net_x-y=GPU-1:2.3", "v/c=all"] {
            assert_eq!(DeviceName::parse(good).unwrap().to_string(), good);
        }
        let long = format!("v/c={}", "d".repeat(LONGEST));
        for bad in [
            "", "v", "v/c", "v/c=", "/c=d", "v/=d", "=d", "v/c=d=e", "v/c/x=d", "1v/c=d", "v/c=-d",
            "v/c=d-", "v/c=d/e", "v/c=..", "v/c=d\n", "../c=d", "v /c=d", &long,
        ] {
            assert!(DeviceName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
