//! Distribution client: resolve a reference, fetch manifests and blobs.
//!
//! ```text
//! Client ── repository(reference, auth) ──> Repository ── resolve, manifest ──> Manifest
//!                                                      ── blob ──> Blob ── next ──> bytes
//! ```
//!
//! A [`Repository`] is what one pull speaks to: one path at one host or several, one set
//! of credentials, and the tokens they were traded for. A [`Blob`] survives broken
//! connections by asking for the rest, of another host if there is one.
//!
//! HTTP/1.1 only: layers come in parallel, and one connection each is as fast as any
//! multiplexing and leaves its flow control and its attacks out.
//!
//! Invariants: credentials and tokens go to the registry host the reference names, or to
//! the host they name themselves, and to the token service that this host itself names, and
//! nowhere else, mirrors and redirects included; they are in no error, log or `Debug`; what came is no larger than what was expected,
//! and nothing waits longer than its deadline. A manifest has been verified against its
//! digest; **a blob has only been measured**: whoever stores it hashes it (`content`).
//! Not here: what a manifest means (`image`).

mod access;
mod attempts;
mod auth;
mod blob;
mod body;
mod challenge;
mod client;
mod config;
mod connect;
mod error;
mod fallback;
mod host;
mod hosts;
mod manifest;
mod tls;
mod token;
mod transport;

pub use auth::{Auth, InvalidAuth};
pub use blob::{Blob, Distrusted};
pub use client::{Client, Repository};
pub use config::{Config, Proxies};
pub use error::{Detail, Error, Subject};
pub use hosts::check_hosts;
pub use manifest::{MAX_MANIFEST_BYTES, Manifest, MediaType};
pub use tls::check_authorities;
