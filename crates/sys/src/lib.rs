//! The syscalls that `nix` and `rustix` lack, and all of Berth's `unsafe`.
//!
//! One file per subject, each with safe functions over owned or borrowed descriptors:
//! [`process`] (clone3 by a single-threaded caller), [`exec`] (execve from prepared
//! strings), [`descriptor`] (close_range), [`mount`] (mount_setattr), [`seccomp`]
//! (loading a filter), [`keyring`] (session keyrings), [`signal`] (default dispositions),
//! [`spawn`] (posix_spawn), [`network`] (bringing up loopback), [`writeback`] (starting to
//! write dirty pages), [`bpf`] (device programs of cgroup v2).
//!
//! Invariants: every `unsafe` block names the contract that makes it sound; no function
//! here is unsound whatever its arguments; errors are bare [`nix::errno::Errno`], since
//! only the caller knows which object it was working on. Not here: tokio, policy, or
//! anything that `nix` or `rustix` offers safely.

pub mod allocator;
pub mod bpf;
pub mod clock;
pub mod descriptor;
pub mod exec;
pub mod keyring;
pub mod mount;
pub mod netlink;
pub mod network;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod writeback;
