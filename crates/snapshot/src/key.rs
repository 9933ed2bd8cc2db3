//! Keys of active snapshots.

use std::fmt;
use std::str::FromStr;

use berth_model::ContainerId;
use berth_model::id::InvalidId;

/// Names an active snapshot: an identifier, usually that of its container.
///
/// Safe as one path component: it never holds `/` and never starts with a dot.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SnapshotKey(ContainerId);

impl SnapshotKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl From<&ContainerId> for SnapshotKey {
    fn from(id: &ContainerId) -> Self {
        Self(id.clone())
    }
}

impl FromStr for SnapshotKey {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        ContainerId::new(text).map(Self)
    }
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
