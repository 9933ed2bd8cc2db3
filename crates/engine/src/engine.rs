//! The engine as the fronts see it.

use std::sync::Arc;
use std::time::Duration;

use berth_image::Images;
use berth_model::image::ImageRecord;
use berth_model::{ContainerId, ContainerSpec, Reference, SandboxId, SandboxSpec};

use crate::status::{
    ContainerStats, ContainerStatus, ExecOutput, NodeStatus, SandboxStats, SandboxStatus,
};
use crate::{Auth, Config, Error, FsInfo};

/// The engine; clones share everything.
#[derive(Clone, Debug)]
pub struct Engine {}

impl Engine {
    /// Opens the stores under `config.root`, adopts what runs, marks what ended, and
    /// removes what no record names. Must be called on a tokio runtime.
    pub async fn open(_config: Config, _images: Images) -> Result<Self, Error> {
        todo!()
    }

    /// Ends the engine's own tasks; sandboxes and containers keep running.
    pub async fn shutdown(&self) {
        todo!()
    }

    /// Makes and starts a sandbox. A request with the name of one in the making awaits
    /// that one; with the name of a ready one it returns its id.
    pub async fn run_sandbox(&self, _spec: SandboxSpec) -> Result<SandboxId, Error> {
        todo!()
    }

    /// Kills the sandbox's containers, gives its address back and lets its namespaces go.
    /// A stopped or unknown sandbox is success.
    pub async fn stop_sandbox(&self, _id: &SandboxId) -> Result<(), Error> {
        todo!()
    }

    /// Stops the sandbox if need be and forgets it and its containers. An unknown one is
    /// success.
    pub async fn remove_sandbox(&self, _id: &SandboxId) -> Result<(), Error> {
        todo!()
    }

    /// What is known of one sandbox.
    pub fn sandbox(&self, _id: &SandboxId) -> Result<Arc<SandboxStatus>, Error> {
        todo!()
    }

    /// Every sandbox, in no order.
    pub fn sandboxes(&self) -> Vec<Arc<SandboxStatus>> {
        todo!()
    }

    /// Prepares a container in a ready sandbox. A request with the name of one in the
    /// making awaits that one; with the name of a created one it returns its id.
    pub async fn create_container(
        &self,
        _sandbox: &SandboxId,
        _spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        todo!()
    }

    /// Executes a created container's program; answers after execve(2). A running one is
    /// success; one that exited is `FailedPrecondition`.
    pub async fn start_container(&self, _id: &ContainerId) -> Result<(), Error> {
        todo!()
    }

    /// Asks the container to stop, and kills it after `grace`. One that does not run, or
    /// is unknown, is success.
    pub async fn stop_container(&self, _id: &ContainerId, _grace: Duration) -> Result<(), Error> {
        todo!()
    }

    /// Kills the container if it runs, and forgets it. An unknown one is success.
    pub async fn remove_container(&self, _id: &ContainerId) -> Result<(), Error> {
        todo!()
    }

    /// What is known of one container.
    pub fn container(&self, _id: &ContainerId) -> Result<Arc<ContainerStatus>, Error> {
        todo!()
    }

    /// Every container, in no order.
    pub fn containers(&self) -> Vec<Arc<ContainerStatus>> {
        todo!()
    }

    /// Runs `command` in a running container to its end. After `timeout` it is killed and
    /// the answer is `DeadlineExceeded`; it is killed too when the future is dropped.
    pub async fn exec_sync(
        &self,
        _id: &ContainerId,
        _command: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        todo!()
    }

    /// Makes the container's log file anew after its rotation; returns when it exists.
    pub async fn reopen_log(&self, _id: &ContainerId) -> Result<(), Error> {
        todo!()
    }

    /// Usage of one container.
    pub async fn container_stats(&self, _id: &ContainerId) -> Result<ContainerStats, Error> {
        todo!()
    }

    /// Usage of every container.
    pub async fn containers_stats(&self) -> Vec<ContainerStats> {
        todo!()
    }

    /// Usage of one sandbox.
    pub async fn sandbox_stats(&self, _id: &SandboxId) -> Result<SandboxStats, Error> {
        todo!()
    }

    /// Usage of every sandbox.
    pub async fn sandboxes_stats(&self) -> Vec<SandboxStats> {
        todo!()
    }

    /// Pulls an image, or joins the pull of the same reference.
    pub async fn pull_image(
        &self,
        _reference: &Reference,
        _auth: Option<Auth>,
    ) -> Result<ImageRecord, Error> {
        todo!()
    }

    /// Every image.
    pub async fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        todo!()
    }

    /// The image that `name` (an id or a reference) means; `None` if there is none.
    pub async fn image_status(&self, _name: &str) -> Result<Option<ImageRecord>, Error> {
        todo!()
    }

    /// Removes the image that `name` means, with all of its names. An unknown one is
    /// success.
    pub async fn remove_image(&self, _name: &str) -> Result<(), Error> {
        todo!()
    }

    /// Where images and writable layers are, and how much they use.
    pub async fn image_fs_info(&self) -> Result<FsInfo, Error> {
        todo!()
    }

    /// Whether the node can run sandboxes.
    pub async fn status(&self) -> NodeStatus {
        todo!()
    }

    /// Names of the configured runtime handlers, the default first.
    pub fn handlers(&self) -> Vec<String> {
        todo!()
    }
}
