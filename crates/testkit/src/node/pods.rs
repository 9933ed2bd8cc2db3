//! Pods on a node, as tests speak of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::v1;

use super::Node;
use crate::{cri, log};

/// Longest that a container may take to write what it should.
const DEADLINE: Duration = Duration::from_secs(20);

/// A sandbox that was run, with what was asked for.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Id of the sandbox.
    pub id: String,
    /// What was asked for.
    pub config: v1::PodSandboxConfig,
}

/// What a container did from start to end.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: v1::ContainerStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Node {
    /// A node with the busybox image and a sandbox called `pod`.
    pub async fn with_pod() -> Result<(Self, String, Pod)> {
        let mut node = Self::start().await?;
        let image = node.busybox().await?;
        let pod = node.pod("pod").await?;
        Ok((node, image, pod))
    }

    /// The address of a sandbox.
    pub async fn address(&mut self, pod: &Pod) -> Result<String> {
        let status = self.cri.sandbox_status(&pod.id).await?;
        Ok(status.network.context("no network status")?.ip)
    }

    /// Process id, on the node, of a container's first process.
    pub async fn container_pid(&mut self, id: &str) -> Result<u32> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info = self.cri.runtime.container_status(request).await?.into_inner().info;
        let text: String = info.into_values().collect();
        let verbose: serde_json::Value = serde_json::from_str(&text).context("verbose status")?;
        let pid = verbose["pid"].as_u64().with_context(|| format!("no pid in {text}"))?;
        Ok(u32::try_from(pid)?)
    }

    /// Process id, on the node, of a sandbox's shim.
    pub async fn shim_pid(&mut self, id: &str) -> Result<u32> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let info = self.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
        let text: String = info.into_values().collect();
        let verbose: serde_json::Value = serde_json::from_str(&text).context("verbose status")?;
        let pid = verbose["pid"].as_u64().filter(|pid| *pid != 0);
        Ok(u32::try_from(pid.with_context(|| format!("no shim in {text}"))?)?)
    }

    /// Waits until the log of a container has the line `text` on standard output.
    pub async fn wait_for_line(&self, sandbox: &str, container: &str, text: &str) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // A line that is being written now looks torn.
            let lines = self.read_log(sandbox, container).unwrap_or_default();
            if log::text(&lines, "stdout").lines().any(|line| line == text) {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{container} never wrote {text:?}: {lines:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a sandbox with nothing special about it.
    pub async fn pod(&mut self, name: &str) -> Result<Pod> {
        let config = self.sandbox_config(name);
        self.pod_with(config).await
    }

    /// Runs the sandbox that `config` asks for.
    pub async fn pod_with(&mut self, config: v1::PodSandboxConfig) -> Result<Pod> {
        let id = self.cri.run_sandbox(&config).await?;
        Ok(Pod { id, config })
    }

    /// Creates and starts a container in `pod`; returns its id.
    pub async fn run(&mut self, pod: &Pod, config: &v1::ContainerConfig) -> Result<String> {
        self.run_container(&pod.id, &pod.config, config).await
    }

    /// Runs a container to its end, removes it, and returns what it did.
    pub async fn finish(&mut self, pod: &Pod, config: &v1::ContainerConfig) -> Result<Finished> {
        let id = self.run(pod, config).await?;
        let status = self.wait_exit(&id).await?;
        let sandbox = &pod.config.metadata.as_ref().context("the pod has no metadata")?.name;
        let name = &config.metadata.as_ref().context("the container has no metadata")?.name;
        let lines = self.read_log(sandbox, name)?;
        self.cri.remove_container(&id).await?;
        std::fs::remove_file(self.path("logs").join(sandbox).join(&config.log_path))?;
        let (stdout, stderr) = (log::text(&lines, "stdout"), log::text(&lines, "stderr"));
        Ok(Finished { status, stdout, stderr })
    }

    /// What the shell script `script` prints in a container of `image`.
    pub async fn shell(&mut self, pod: &Pod, image: &str, script: &str) -> Result<String> {
        let config = cri::container_config("shell", image, &["sh", "-c", script]);
        let finished = self.finish(pod, &config).await?;
        anyhow::ensure!(
            finished.status.exit_code == 0,
            "{script:?} ended with {}: {}",
            finished.status.exit_code,
            finished.stderr
        );
        Ok(finished.stdout)
    }
}
