//! Exec, attach and port-forward: the server behind the URLs that the CRI hands out.
//!
//! ```text
//! CRI Exec ──▶ Urls: a token for a promise ──▶ http://127.0.0.1:PORT/exec/TOKEN
//!
//! client ──▶ http: token, origin, protocol ──101──▶ spdy or websocket: frames ⇄ mux
//!                                                            │
//!                     Backend ◀── remote, forward: streams by name, pairs by request
//! ```
//!
//! Kubernetes' protocols as its own streaming server speaks them: `channel.k8s.io` up to
//! version 5 and `portforward.k8s.io`, over SPDY/3.1, WebSocket, and SPDY inside WebSocket.
//!
//! Invariants: a connection is one request, and ends with it, upgraded or not; no answer is
//! a redirect; a token is good for one request, for a minute, for what it was issued for.
//! What the client may send, and how much of it is kept, has limits that do not depend on
//! what the client says. Nothing runs for a client that is gone. Knows no engine: whoever
//! runs containers is a [`Backend`].

mod backend;
mod config;
mod forward;
#[cfg(test)]
mod hostile;
mod http;
mod mux;
mod origin;
mod peer;
mod remote;
mod server;
mod session;
pub mod spdy;
mod status;
mod tls;
mod token;
mod upgrade;
mod websocket;

pub use backend::{Backend, BackendError, Duplex, Io, Outcome, Size};
pub use config::{Config, Error, TlsFiles};
pub use server::{Server, Streams, Urls};
