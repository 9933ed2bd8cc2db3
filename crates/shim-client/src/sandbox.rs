//! The Sandbox API: what the containers of a pod share.

use std::time::Duration;

use berth_model::SandboxId;
use berth_model::container::Timestamp;
use containerd_shim_protos::sandbox_api as api;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};
use std::path::Path;

use crate::task::timestamp;
use crate::{Error, Exited, Shim};

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
/// Mounts and namespaces are made, and the last processes waited for.
const SLOW: Duration = Duration::from_secs(30);
const QUICK: Duration = Duration::from_secs(10);

/// What the in-tree shim makes for a sandbox (`berth.shim.v1.SandboxOptions`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SandboxOptions {
    /// Size of the shared `/dev/shm`, bytes; 0 makes none.
    pub shm_size: u64,
    /// Whether the containers share one pid namespace.
    pub share_pid: bool,
    /// Its user namespace, descriptor 14; `None` is the node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SandboxUser>,
}

/// The users of a sandbox, for what its shim makes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SandboxUser {
    /// Who its root is on the node.
    pub uid: u32,
    /// Its root's group on the node.
    pub gid: u32,
    /// How many ids it has.
    pub ids: u32,
}

/// What a shim says of its sandbox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SandboxStatus {
    /// Pid of the sandbox's own process; 0 when it has none.
    pub pid: u32,
    /// `SANDBOX_READY` or `SANDBOX_NOTREADY`, in the shim's words.
    pub state: String,
    /// When it was started; zero if never.
    pub created_at: Timestamp,
    /// When it was stopped; zero if it was not.
    pub exited_at: Timestamp,
}

impl Shim {
    /// Makes what the sandbox's containers will share.
    pub async fn sandbox_create(
        &self,
        id: &SandboxId,
        bundle: &Path,
        options: SandboxOptions,
    ) -> Result<(), Error> {
        let mut message = api::CreateSandboxRequest::new();
        message.sandbox_id = id.to_string();
        message.bundle_path = bundle.to_string_lossy().into_owned();
        let mut any = Any::new();
        any.type_url = "berth.shim.v1.SandboxOptions".to_owned();
        any.value = serde_json::to_vec(&options).expect("numbers always have a JSON form");
        message.options = Some(any).into();
        let method = "CreateSandbox";
        self.call::<_, api::CreateSandboxResponse>(SERVICE, method, &message, Some(SLOW)).await?;
        Ok(())
    }

    /// Starts the sandbox; the pid of its own process, 0 when it has none.
    pub async fn sandbox_start(&self, id: &SandboxId) -> Result<u32, Error> {
        let mut message = api::StartSandboxRequest::new();
        message.sandbox_id = id.to_string();
        let answer: api::StartSandboxResponse =
            self.call(SERVICE, "StartSandbox", &message, Some(SLOW)).await?;
        Ok(answer.pid)
    }

    /// Kills every container and drops what they shared; stopping twice is success.
    pub async fn sandbox_stop(&self, id: &SandboxId, deadline: Duration) -> Result<(), Error> {
        let mut message = api::StopSandboxRequest::new();
        message.sandbox_id = id.to_string();
        message.timeout_secs = u32::try_from(deadline.as_secs()).unwrap_or(u32::MAX);
        let method = "StopSandbox";
        self.call::<_, api::StopSandboxResponse>(SERVICE, method, &message, Some(deadline)).await?;
        Ok(())
    }

    /// Waits until the sandbox was stopped: for ever, or until the connection is lost.
    pub async fn sandbox_wait(&self, id: &SandboxId) -> Result<Exited, Error> {
        let mut message = api::WaitSandboxRequest::new();
        message.sandbox_id = id.to_string();
        let answer: api::WaitSandboxResponse =
            self.call(SERVICE, "WaitSandbox", &message, None).await?;
        let at = answer.exited_at.as_ref().map(timestamp).unwrap_or_default();
        Ok(Exited { code: i32::try_from(answer.exit_status).unwrap_or(255), at })
    }

    /// What the shim says of the sandbox.
    pub async fn sandbox_status(&self, id: &SandboxId) -> Result<SandboxStatus, Error> {
        let mut message = api::SandboxStatusRequest::new();
        message.sandbox_id = id.to_string();
        let answer: api::SandboxStatusResponse =
            self.call(SERVICE, "SandboxStatus", &message, Some(QUICK)).await?;
        Ok(SandboxStatus {
            pid: answer.pid,
            state: answer.state,
            created_at: answer.created_at.as_ref().map(timestamp).unwrap_or_default(),
            exited_at: answer.exited_at.as_ref().map(timestamp).unwrap_or_default(),
        })
    }

    /// Asks for a sign of life; any answer to anybody is one.
    pub async fn sandbox_ping(&self, id: &SandboxId, deadline: Duration) -> Result<(), Error> {
        let mut message = api::PingRequest::new();
        message.sandbox_id = id.to_string();
        let before = self.answers();
        match self.call(SERVICE, "PingSandbox", &message, Some(deadline)).await {
            Err(Error::Deadline { .. }) if self.answers() != before => Ok(()),
            answer => answer.map(|_: api::PingResponse| ()),
        }
    }

    /// Stops the sandbox if need be and ends the shim.
    pub async fn sandbox_shutdown(&self, id: &SandboxId) -> Result<(), Error> {
        let mut message = api::ShutdownSandboxRequest::new();
        message.sandbox_id = id.to_string();
        let method = "ShutdownSandbox";
        self.call::<_, api::ShutdownSandboxResponse>(SERVICE, method, &message, Some(SLOW)).await?;
        Ok(())
    }
}
