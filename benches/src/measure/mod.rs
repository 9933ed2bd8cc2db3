//! What a runtime costs, read from `/proc`: which processes are its own, what memory they
//! and the kernel hold for pods, what they do while pods idle.
//!
//! Nothing here knows a runtime by name. A process belongs to one because it lives in a
//! pod's cgroup, is above one that does, names a pod on its command line, or was started by
//! the daemon; see [`tree`].

pub(crate) mod footprint;
pub(crate) mod listener;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod tree;
pub(crate) mod work;
