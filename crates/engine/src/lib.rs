//! Sandboxes and containers: their drivers, their recovery.
//!
//! ```text
//!  run_sandbox ──▶ sandbox driver ──create──▶ container driver ──▶ shim ──▶ container
//!                        │                          │
//!                        └────────── board ◀────────┘     list, status: read, never wait
//! ```
//!
//! Each sandbox and each container has one driver, a task with a bounded queue and the
//! only code that changes its record. A transition is decided (a pure function), stored,
//! published on the board, then acted on. Requests for work in flight join it; work
//! outlives its client, but for exec.
//!
//! Invariants: nothing is published that is not stored; whoever makes something pushes
//! its undo; no lock is held across an await, and no lock is shared by all objects.
//! Not here: CRI translation (`cri`), what a pull does (`image`), namespaces of containers
//! (`oci-runtime`, behind the shim).

mod again;
mod attach;
mod board;
mod client;
mod clock;
mod config;
mod container;
mod core;
mod engine;
mod error;
mod events;
mod exec;
mod files;
mod forward;
mod hooks;
mod leases;
mod lsm;
mod names;
mod network;
mod open;
mod pending;
mod recovery;
mod sandbox;
mod spawner;
mod stats;
mod status;
mod undo;
mod users;
mod worker;

pub use berth_cdi::Overview as NamedDevices;
pub use berth_image::{Auth, FsInfo};
pub use berth_nri::{PluginStatus, Status as PluginsStatus};
pub use berth_shim_client::ShimInfo;
pub use client::{Duplex, Io, Reader, Size, Writer};
pub use config::{Config, RuntimeConfig};
pub use engine::Engine;
pub use error::Error;
pub use events::{Event, EventKind, Events, EventsEnd};
pub use status::{
    Condition, ContainerMetrics, ContainerStats, ContainerStatus, ExecOutput, FilesystemUsage,
    Handler, ListItem, NetworkUsage, NodeMetrics, NodeStatus, SandboxMetrics, SandboxStats,
    SandboxStatus, UndoStatus, UnfinishedUndo,
};

/// Most bytes kept of each output stream of [`Engine::exec_sync`] (what kubelet expects).
pub const MAX_EXEC_OUTPUT: usize = 16 << 20;
