//! Kubernetes' CRI v1 in front of the engine.
//!
//! ```text
//! socket ─▶ tonic ─▶ service (41 RPCs) ─▶ edge: span, one log line, status code
//!                        │
//!                        ├─▶ translate: request ─▶ model types, refusals by field name
//!                        ├─▶ engine
//!                        └─▶ translate: engine's statuses ─▶ answer
//! ```
//!
//! One file per family of verbs; each verb is a function from request to answer, and
//! `service` only names them. Invariants: nothing is decided here but whether a request
//! makes sense; a field that cannot be honoured is refused by its name, never ignored; a
//! failed request is logged once, here, with its whole chain of causes. Stop and remove
//! of what does not exist is success. Not here: sockets and their modes (`daemon`).

mod batch;
mod container;
mod deadline;
mod edge;
mod error;
mod events;
mod exec;
mod ids;
mod images;
mod list;
mod metrics;
mod node;
mod sandbox;
mod serve;
mod service;
mod stats;
mod stream;
mod translate;

pub use error::Error;
pub use serve::serve;
pub use stream::StreamBackend;
