//! `containerd.task.v3.Task`, which also answers as v2.

use std::sync::Arc;

use async_trait::async_trait;
use berth_model::mount::Mount;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::Task;
use ttrpc::Result;
use ttrpc::asynchronous::TtrpcContext;

use super::metrics;
use crate::error::Error;
use crate::events::timestamp;
use crate::io::Uris;
use crate::process::Status;
use crate::shim::{Shim, Wanted, owned};

pub(super) struct TaskService(pub(super) Arc<Shim>);

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, r: api::StateRequest) -> Result<api::StateResponse> {
        let container = self.0.container(&r.id)?;
        let process = container.process(&r.exec_id)?;
        let mut response = api::StateResponse::new();
        response.id = container.id.clone();
        response.bundle = container.bundle.to_string_lossy().into_owned();
        response.pid = process.pid();
        response.exec_id = r.exec_id;
        response.terminal = process.uris.terminal;
        response.stdin.clone_from(&process.uris.stdin);
        response.stdout.clone_from(&process.uris.stdout);
        response.stderr.clone_from(&process.uris.stderr);
        response.status = match process.status() {
            Status::Created => api::Status::CREATED,
            Status::Running if container.paused() => api::Status::PAUSED,
            Status::Running => api::Status::RUNNING,
            Status::Stopped(exit) => {
                let exit = process.told(exit).await;
                response.exit_status = exit.code;
                response.exited_at = Some(timestamp(exit.at)).into();
                api::Status::STOPPED
            }
        }
        .into();
        Ok(response)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        r: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse> {
        if !r.checkpoint.is_empty() {
            return Err(Error::Unimplemented("restoring a checkpoint").into());
        }
        let wanted = Wanted {
            rootfs: r.rootfs.into_iter().map(mount).collect::<std::result::Result<_, _>>()?,
            id: r.id,
            bundle: r.bundle,
            uris: Uris { terminal: r.terminal, stdin: r.stdin, stdout: r.stdout, stderr: r.stderr },
        };
        let mut response = api::CreateTaskResponse::new();
        response.pid = owned(Arc::clone(&self.0).create(wanted)).await?;
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, r: api::StartRequest) -> Result<api::StartResponse> {
        let mut response = api::StartResponse::new();
        response.pid = owned(Arc::clone(&self.0).start(r.id, r.exec_id)).await?;
        Ok(response)
    }

    async fn delete(&self, _: &TtrpcContext, r: api::DeleteRequest) -> Result<api::DeleteResponse> {
        let (pid, exit) = owned(Arc::clone(&self.0).delete(r.id, r.exec_id)).await?;
        let mut response = api::DeleteResponse::new();
        response.pid = pid;
        response.exit_status = exit.code;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, r: api::PidsRequest) -> Result<api::PidsResponse> {
        let pids = self.0.container(&r.id)?.pids()?;
        let mut response = api::PidsResponse::new();
        response.processes = pids
            .into_iter()
            .map(|pid| api::ProcessInfo { pid, ..api::ProcessInfo::default() })
            .collect();
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, r: api::PauseRequest) -> Result<api::Empty> {
        let container = self.0.container(&r.id)?;
        owned(async move { container.set_paused(true).await }).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, r: api::ResumeRequest) -> Result<api::Empty> {
        let container = self.0.container(&r.id)?;
        owned(async move { container.set_paused(false).await }).await?;
        Ok(api::Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: api::CheckpointTaskRequest,
    ) -> Result<api::Empty> {
        Err(Error::Unimplemented("Checkpoint").into())
    }

    async fn kill(&self, _: &TtrpcContext, r: api::KillRequest) -> Result<api::Empty> {
        let signal = i32::try_from(r.signal)
            .map_err(|_| Error::invalid("signal", format!("{} is too large", r.signal)))?;
        let container = self.0.container(&r.id)?;
        if r.all {
            container.kill_all(signal)?;
        } else {
            container.kill(&*container.process(&r.exec_id)?, signal)?;
        }
        Ok(api::Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> Result<api::Empty> {
        let uris =
            Uris { terminal: r.terminal, stdin: r.stdin, stdout: r.stdout, stderr: r.stderr };
        let spec = r.spec.unwrap_or_default();
        self.0.exec(&r.id, &r.exec_id, uris, &spec.value)?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: api::ResizePtyRequest) -> Result<api::Empty> {
        let size = |field, value: u32| {
            u16::try_from(value).map_err(|_| Error::invalid(field, format!("{value} is too large")))
        };
        let (width, height) = (size("width", r.width)?, size("height", r.height)?);
        if let Some(streams) = self.0.container(&r.id)?.process(&r.exec_id)?.streams() {
            streams.resize(width, height)?;
        }
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, r: api::CloseIORequest) -> Result<api::Empty> {
        let process = self.0.container(&r.id)?.process(&r.exec_id)?;
        if r.stdin {
            process.close_stdin();
        }
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: api::UpdateTaskRequest) -> Result<api::Empty> {
        let resources = r.resources.unwrap_or_default();
        self.0.container(&r.id)?.update(&resources.value)?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: api::WaitRequest) -> Result<api::WaitResponse> {
        let process = self.0.container(&r.id)?.process(&r.exec_id)?;
        let exit = process.wait().await;
        let mut response = api::WaitResponse::new();
        response.exit_status = exit.code;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, r: api::StatsRequest) -> Result<api::StatsResponse> {
        let container = self.0.container(&r.id)?;
        let cgroup = container.cgroup.as_ref();
        let usage = cgroup.ok_or(Error::Unimplemented("Stats without a cgroup"))?.usage();
        let mut response = api::StatsResponse::new();
        response.stats = Some(metrics::encode(&usage.map_err(Error::from)?)?).into();
        Ok(response)
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        r: api::ConnectRequest,
    ) -> Result<api::ConnectResponse> {
        let mut response = api::ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        // containerd asks for its container; berthd, before there is one, for the shim.
        if let Ok(container) = self.0.container(&r.id) {
            response.task_pid = container.init.pid();
        }
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Result<api::Empty> {
        self.0.shutdown();
        Ok(api::Empty::new())
    }
}

fn mount(from: api::Mount) -> std::result::Result<Mount, Error> {
    if !matches!(from.target.as_str(), "" | "/") {
        return Err(Error::Unimplemented("a rootfs mount with a target"));
    }
    Ok(Mount { fs_type: from.type_, source: from.source, options: from.options })
}
