//! What a shim leaves in a bundle.

use serde::{Deserialize, Serialize};

use crate::container::Timestamp;

/// How a container's first process ended, for who finds its shim gone.
///
/// The in-tree shim writes it into the bundle, as JSON in the file [`TaskEnd::FILE`], at the
/// moment of the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TaskEnd {
    /// Exit code, or 128 and the signal's number.
    pub code: i32,
    /// When it ended.
    pub at: Timestamp,
    /// Processes of the container that the kernel killed for the memory limit.
    pub oom_kills: u64,
    /// Whether its program was executed; a shim that does not say so has not looked.
    #[serde(default = "executed")]
    pub executed: bool,
}

fn executed() -> bool {
    true
}

impl TaskEnd {
    /// Name of the file in the bundle.
    pub const FILE: &str = "exit.json";
    /// No such file is longer, bytes.
    pub const MAX_BYTES: u64 = 1024;
}
