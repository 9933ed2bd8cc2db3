//! The Node Resource Interface: plugins that are told of pods and containers, and asked
//! before one is made, changed or ended.
//!
//! ```text
//! plugin ── socket ── Connection ── Plugin ─┐
//! plugin ── socket ── Connection ── Plugin ─┴─ Nri ◀── hooks of the engine
//!                                               └────▶ Runtime: snapshots and updates
//! ```
//!
//! A plugin connects to the socket, or is a program of the plugin directory, started with
//! its socket as descriptor 3. It registers, says what it wants to hear, and is told all
//! that exists before it hears anything else ([`Nri::pass`] says how nothing is missed).
//! Then every hook asks the plugins one after the other, in the order of their indices,
//! and one hook at a time: what one plugin decides, the next one sees.
//!
//! Invariants: every message and queue is bounded and every answer has a deadline; a
//! plugin that breaks either is dropped, and the pod goes on; without a plugin a hook is
//! the reading of one integer. Not here: what an adjustment does to a specification
//! (`engine`).

mod connection;
mod error;
mod frames;
mod join;
mod launch;
mod listen;
mod merge;
mod names;
mod nri;
mod plugin;
mod relay;
mod synchronize;

pub use berth_api::nri as api;

pub use error::Error;
pub use merge::Wanted;
pub use nri::{Answer, Config, Nri, Passage, PluginStatus, Runtime, Snapshot, Status};
