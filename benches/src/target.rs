//! One runtime: its socket, and what it says of itself.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::Cri;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use crate::measure::listener;

/// A runtime to be measured. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// For tables: `berth`, `containerd + runc`, ….
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) cri: Cri,
    /// What is asked for in `RunPodSandboxRequest.runtime_handler`; empty is its default.
    pub(crate) handler: String,
    pub(crate) version: Version,
    /// Pid of the daemon that answers on the socket (`SO_PEERCRED`); 0 if unknown.
    pub(crate) daemon: u32,
    /// Below which the cgroups of its pods are made.
    pub(crate) cgroup_parent: String,
    /// Whether its pods have the network of the node, so that none is made for them.
    pub(crate) host_network: bool,
    /// Where its pods' logs go.
    pub(crate) logs: PathBuf,
    /// The image of its containers, pulled.
    pub(crate) image: String,
    /// Images that this run gave it, to be removed with the run, whatever ends it.
    pub(crate) images: Vec<String>,
    /// The label value that tells this run's pods from those of others.
    pub(crate) run: String,
}

/// What a runtime says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Target {
    /// Asks the runtime on `socket` who it is.
    pub(crate) async fn version(cri: &mut Cri, socket: &Path) -> Result<Version> {
        let answer = cri.runtime.version(v1::VersionRequest { version: "v1".to_owned() }).await;
        let answer = answer.with_context(|| format!("ask {} who it is", socket.display()))?;
        let answer = answer.into_inner();
        Ok(Version { name: answer.runtime_name, version: answer.runtime_version })
    }
}

/// Pid of the process that serves `socket`; 0 if it is unknown, as in another PID namespace.
pub(crate) fn daemon_of(socket: &Path) -> Result<u32> {
    let stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let peer = getsockopt(&stream, PeerCredentials)
        .with_context(|| format!("ask who listens on {}", socket.display()))?;
    match u32::try_from(peer.pid()) {
        // A service manager listens, and has another process serve.
        Ok(1) => Ok(listener::holder(socket)?.unwrap_or(0)),
        Ok(pid) => Ok(pid),
        Err(_) => Ok(0),
    }
}
