//! Paths as archives write them.

use crate::{BadEntry, Limits};

/// Prefix of the names that stand for a removal (OCI image layer, "Whiteouts").
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Prefix of names that storage drivers kept for themselves.
const RESERVED: &[u8] = b".wh..wh.";

/// The name that makes its directory hide what lies below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A path below the root: components that are never empty, `.` or `..`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct LayerPath<'a>(Vec<&'a [u8]>);

/// What a name asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Meaning<'a> {
    /// To be made.
    Plain,
    /// This name in the layers below is to be hidden.
    Whiteout(&'a [u8]),
    /// Everything in its directory in the layers below is to be hidden.
    Opaque,
    /// A storage driver's own business.
    Ignored,
}

impl<'a> LayerPath<'a> {
    /// Absolute paths start at the layer's root, as every path does.
    pub(super) fn parse(path: &'a [u8], limits: &Limits) -> Result<Self, BadEntry> {
        if path.len() > limits.path_bytes {
            return Err(BadEntry::PathTooLong);
        }
        let mut components = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(BadEntry::ParentReference),
                _ if component.len() > 255 => return Err(BadEntry::PathTooLong),
                _ => components.push(component),
            }
        }
        if components.len() > limits.path_depth {
            return Err(BadEntry::PathTooDeep);
        }
        Ok(Self(components))
    }

    /// The components above the last, and the last; `None` for the root.
    pub(super) fn split(&self) -> Option<(&[&'a [u8]], &'a [u8])> {
        self.0.split_last().map(|(name, parent)| (parent, *name))
    }

    pub(super) fn meaning(&self) -> Result<Meaning<'a>, BadEntry> {
        let Some((parent, name)) = self.split() else { return Ok(Meaning::Plain) };
        if parent.iter().any(|component| component.starts_with(RESERVED)) {
            return Ok(Meaning::Ignored);
        }
        if parent.iter().any(|component| component.starts_with(WHITEOUT)) {
            return Err(BadEntry::Whiteout);
        }
        if name == OPAQUE {
            return Ok(Meaning::Opaque);
        }
        if name.starts_with(RESERVED) {
            return Ok(Meaning::Ignored);
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Plain),
            Some(b"" | b"." | b"..") => Err(BadEntry::Whiteout),
            Some(hidden) => Ok(Meaning::Whiteout(hidden)),
        }
    }
}

pub(super) fn join(components: &[&[u8]]) -> Vec<u8> {
    components.join(&b'/')
}

/// `path` and `name` with a slash between, unless `path` is the root.
pub(super) fn child(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// For people: at most 200 characters.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
