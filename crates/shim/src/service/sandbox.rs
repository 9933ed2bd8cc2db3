//! `containerd.runtime.sandbox.v1.Sandbox`.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::types::platform::Platform;
use ttrpc::Result;
use ttrpc::asynchronous::TtrpcContext;

use crate::error::Error;
use crate::events::timestamp;
use crate::sandbox::Options;
use crate::shim::{Shim, owned};

/// Type of the options that berthd sends; others, containerd's, ask for nothing.
const OPTIONS: &str = "berth.shim.v1.SandboxOptions";

pub(super) struct SandboxService(pub(super) Arc<Shim>);

fn options(request: &api::CreateSandboxRequest) -> std::result::Result<Options, Error> {
    match request.options.as_ref() {
        Some(any) if any.type_url == OPTIONS => serde_json::from_slice(&any.value)
            .map_err(|error| Error::invalid("options", error.to_string())),
        _ => Ok(Options::default()),
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> Result<api::CreateSandboxResponse> {
        let options = options(&request)?;
        let shim = Arc::clone(&self.0);
        owned(shim.create_sandbox(request.sandbox_id, options)).await?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> Result<api::StartSandboxResponse> {
        let (pid, created_at) = self.0.sandbox.start(&request.sandbox_id)?;
        let mut response = api::StartSandboxResponse::new();
        response.pid = pid;
        response.created_at = Some(timestamp(created_at)).into();
        Ok(response)
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        _: api::PlatformRequest,
    ) -> Result<api::PlatformResponse> {
        let mut platform = Platform::new();
        platform.os = "linux".to_owned();
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned();
        let mut response = api::PlatformResponse::new();
        response.platform = Some(platform).into();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> Result<api::StopSandboxResponse> {
        self.0.sandbox.status(&request.sandbox_id)?;
        owned(Arc::clone(&self.0).stop_sandbox()).await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> Result<api::WaitSandboxResponse> {
        let exit = self.0.sandbox.wait(&request.sandbox_id).await?;
        let mut response = api::WaitSandboxResponse::new();
        response.exit_status = exit.code;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> Result<api::SandboxStatusResponse> {
        let status = self.0.sandbox.status(&request.sandbox_id)?;
        let ready = status.created_at.is_some() && status.stopped_at.is_none();
        let mut response = api::SandboxStatusResponse::new();
        response.sandbox_id = request.sandbox_id;
        response.pid = status.pid;
        response.state = if ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.to_owned();
        response.created_at = status.created_at.map(timestamp).into();
        response.exited_at = status.stopped_at.map(timestamp).into();
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> Result<api::PingResponse> {
        self.0.sandbox.status(&request.sandbox_id)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        _: api::ShutdownSandboxRequest,
    ) -> Result<api::ShutdownSandboxResponse> {
        let shim = Arc::clone(&self.0);
        owned(async move { shim.shutdown_sandbox().await }).await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        _: api::SandboxMetricsRequest,
    ) -> Result<api::SandboxMetricsResponse> {
        Err(Error::Unimplemented("SandboxMetrics").into())
    }
}
