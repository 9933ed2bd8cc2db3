//! The CRI as a client sees it: a connection, and requests as kubelet makes them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_api::v1::image_service_client::ImageServiceClient;
use berth_api::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

/// kubelet accepts answers up to this size, bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// Longer than any single request of a test may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Both services of one daemon.
#[derive(Clone, Debug)]
pub struct Cri {
    /// Sandboxes and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub image: ImageServiceClient<Channel>,
}

impl Cri {
    /// Connects to the daemon that listens on `socket`.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .timeout(DEADLINE)
            .connect()
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    /// Removes the image that `image` names.
    pub async fn remove_image(&mut self, image: &str) -> Result<(), tonic::Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        self.image.remove_image(v1::RemoveImageRequest { image }).await.map(drop)
    }

    /// Whether the image that `image` names is there.
    pub async fn has_image(&mut self, image: &str) -> Result<bool, tonic::Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        Ok(self.image.image_status(request).await?.into_inner().image.is_some())
    }

    /// Pulls `image`; returns its id.
    pub async fn pull(&mut self, image: &str) -> Result<String, tonic::Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        Ok(self.image.pull_image(request).await?.into_inner().image_ref)
    }

    /// Runs a sandbox; returns its id.
    pub async fn run_sandbox(
        &mut self,
        config: &v1::PodSandboxConfig,
    ) -> Result<String, tonic::Status> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Creates a container; returns its id.
    pub async fn create_container(
        &mut self,
        sandbox_id: &str,
        sandbox: &v1::PodSandboxConfig,
        config: &v1::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// Starts a container.
    pub async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.start_container(request).await.map(drop)
    }

    /// Stops a container, killing it after `grace` seconds.
    pub async fn stop_container(&mut self, id: &str, grace: i64) -> Result<(), tonic::Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.runtime.stop_container(request).await.map(drop)
    }

    /// Removes a container.
    pub async fn remove_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.remove_container(request).await.map(drop)
    }

    /// Stops and removes a sandbox.
    pub async fn remove_sandbox(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.stop_sandbox(id).await?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.map(drop)
    }

    /// Stops a sandbox.
    pub async fn stop_sandbox(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    /// Status of a sandbox.
    pub async fn sandbox_status(
        &mut self,
        id: &str,
    ) -> Result<v1::PodSandboxStatus, tonic::Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::data_loss("the answer has no status"))
    }

    /// Status of a container.
    pub async fn container_status(
        &mut self,
        id: &str,
    ) -> Result<v1::ContainerStatus, tonic::Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::data_loss("the answer has no status"))
    }

    /// Runs a command in a container to its end.
    pub async fn exec(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, tonic::Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// Ids of all sandboxes.
    pub async fn sandboxes(&mut self) -> Result<Vec<String>, tonic::Status> {
        let request = v1::ListPodSandboxRequest::default();
        let items = self.runtime.list_pod_sandbox(request).await?.into_inner().items;
        Ok(items.into_iter().map(|item| item.id).collect())
    }

    /// Ids of all containers.
    pub async fn containers(&mut self) -> Result<Vec<String>, tonic::Status> {
        let request = v1::ListContainersRequest::default();
        let items = self.runtime.list_containers(request).await?.into_inner().containers;
        Ok(items.into_iter().map(|item| item.id).collect())
    }
}

/// A sandbox as kubelet asks for one: its own network and IPC, a process namespace for
/// each container, the default seccomp profile.
#[must_use]
pub fn sandbox_config(name: &str, log_directory: &Path) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            namespace: "tests".to_owned(),
            uid: format!("uid-{name}"),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: log_directory.display().to_string(),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container as kubelet asks for one, with its log in `NAME.log`.
#[must_use]
pub fn container_config(name: &str, image: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(v1::SecurityProfile::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() }
}

/// A container called `main` that runs a shell script.
#[must_use]
pub fn script(image: &str, script: &str) -> v1::ContainerConfig {
    container_config("main", image, &["sh", "-c", script])
}

/// What a container may do.
pub fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// What a container may use.
pub fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// What a sandbox may do.
pub fn sandbox_security(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The node's `host` at `container`, writable and private.
#[must_use]
pub fn bind(container: &str, host: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container.into(),
        host_path: host.to_string_lossy().into_owned(),
        ..Default::default()
    }
}
