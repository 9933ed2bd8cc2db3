//! The built shim, driven through `shim-client` as berthd drives it: real containers from
//! the static busybox of this machine. Needs root.

#![allow(clippy::unwrap_used, missing_docs)]

mod attach;
mod death;
mod exec;
mod fuse;
mod hung;
mod kept;
mod killed;
mod logs;
mod run;
mod sandbox;
mod support;
mod zombies;
