//! What confines a container, by the names a client has for it.

use serde::{Deserialize, Serialize};

/// Which security profile applies (CRI `SecurityProfile`).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Profile {
    /// The runtime's own default.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A file (seccomp) or a loaded profile (AppArmor) of the node.
    Localhost(String),
}

impl Profile {
    /// Whether it is [`Profile::RuntimeDefault`].
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::RuntimeDefault
    }
}

/// Parts of an SELinux context (CRI `SELinuxOption`); an empty one is the node's default.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// SELinux user.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type, that is the domain of processes.
    pub kind: String,
    /// Sensitivity and categories (`s0:c1,c2`).
    pub level: String,
}
