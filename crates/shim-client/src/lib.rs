//! Starts, finds and talks to any shim v2: ours and third-party ones.
//!
//! [`start`] runs a shim's `start` command and understands the three forms of its
//! answer ([`Bootstrap`]); [`Shim`] is one connection to a running shim, which dials
//! again when it was lost; [`EventServer`] is what shims publish their events to;
//! [`Attachment`] is a
//! client's end of a container's streams; [`ProcessId`] names a process so that a recycled pid is never killed.
//!
//! ```text
//! start ──posix_spawn──▶ containerd-shim-x start ──fork──▶ the shim
//!   ▲                        │ address                       ▲ ttrpc
//!   └────────────────────────┘        Shim ──────────────────┘
//! ```
//!
//! A shim may be older or younger than this daemon: `extension` says how that is told.
//!
//! Invariants: every call has a deadline, except [`Shim::wait`], which ends with the
//! connection; a request is never sent twice, save where the shim said that it does
//! not have the service at all (v3 to v2 of the Task API). Not here: what a sandbox
//! or a container is (`engine`), FIFOs and logs (`engine`, `shim`).

mod attach;
mod bootstrap;
mod connection;
mod error;
mod events;
mod extension;
mod namespaces;
mod process;
mod sandbox;
mod socket;
mod start;
mod task;

pub use attach::{AttachRequest, Attachment, Door, MAX_PACKET, Packet};
pub use bootstrap::{ApiVersion, Bootstrap};
pub use connection::Shim;
pub use error::Error;
pub use events::{Event, EventKind, EventServer};
pub use extension::ShimInfo;
pub use namespaces::{MadeNamespaces, NamespacesRequest, namespaces, probe_namespaces};
pub use process::{ProcessId, unreaped};
pub use sandbox::{SandboxOptions, SandboxStatus, SandboxUser};
pub use start::{Runtime, StartRequest, Started, delete, start};
pub use task::{CreateRequest, ExecRequest, Exited, Input, Output, Process, TaskState, TaskStatus};
