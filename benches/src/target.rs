//! One runtime: its socket, what it says of itself, and pods as kubelet makes them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::Cri;
use serde::{Deserialize, Serialize};

/// A runtime to be measured.
#[derive(Debug)]
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
    /// Where its pods' logs go.
    pub(crate) logs: PathBuf,
    /// The image of its containers, pulled.
    pub(crate) image: String,
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
