//! What a caller asks for.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use berth_cgroup::{Cgroup, Hierarchy};
use berth_model::mount::Mount;
use oci_spec::runtime::{Process, Spec};

use crate::shared::SharedMounts;

/// Standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// These descriptors become 0, 1 and 2; the caller's copies are closed by the call.
    Fds {
        /// Read by the process.
        stdin: OwnedFd,
        /// Written by the process.
        stdout: OwnedFd,
        /// Written by the process.
        stderr: OwnedFd,
    },
    /// A new pseudo-terminal of the container's own devpts; its master is
    /// [`crate::Created::console`].
    Terminal,
}

/// A container to be made.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Its id; names its session keyring, and its cgroup if the spec does not.
    pub id: &'a str,
    /// Bundle directory, absolute; a relative `root.path` of the spec starts here.
    pub bundle: &'a Path,
    /// What it shall be (`config.json`).
    pub spec: &'a Spec,
    /// Mounts that make up its root file system, performed in its own mount namespace; empty
    /// when the directory `root.path` is it already.
    pub rootfs: &'a [Mount],
    /// Its standard streams; [`Stdio::Terminal`] exactly if `process.terminal` is set.
    pub stdio: Stdio,
    /// What its sandbox shares.
    pub shared: &'a SharedMounts,
    /// The host's cgroups.
    pub cgroups: &'a Hierarchy,
}

/// A further process in a running container.
///
/// It is a child of the caller, and has to be reaped when it ends: the kernel lets a
/// container's init finish only when every process of its pid namespace is reaped
/// (pid_namespaces(7)), so one that is forgotten makes the container's end wait.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// The container's id; names the process's session keyring.
    pub id: &'a str,
    /// A pidfd of its init, which must not have been reaped.
    pub init: BorrowedFd<'a>,
    /// The container's spec: its seccomp profile applies.
    pub spec: &'a Spec,
    /// The process to run.
    pub process: &'a Process,
    /// Its standard streams; [`Stdio::Terminal`] exactly if `process.terminal` is set.
    pub stdio: Stdio,
    /// The container's cgroup; `None` leaves the process in the caller's.
    pub cgroup: Option<&'a Cgroup>,
}
