//! What a verb must have done.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::Pod;

use super::Scene::*;
use super::{CREATED_LINES, EXIT_LINES, LATE, Props, SHARES, Scene, name_of};
use crate::host::{self, Process};
use crate::stage::Stage;

/// How long processes may take to be gone once nobody wants them.
const GONE: Duration = Duration::from_secs(10);

/// What cgroup v2 makes of [`SHARES`].
const WEIGHT: &str = "42";

impl Scene {
    /// What is true once the verb has succeeded.
    pub(crate) async fn verify(self, stage: &mut Stage, props: &Props, answer: &str) -> Result<()> {
        match self {
            Pull | PullMovedTag => {
                ensure!(answer == props.image_id, "pulled {answer} for {}", props.image_id);
                let pod = stage.pod.clone();
                let told =
                    stage.node.shell(&pod, &props.image, "cat /one /three; wc -c < /two").await?;
                ensure!(told.contains(" newnew200000"), "the image holds {told:?}");
            }
            RemoveImage => {
                let spec = v1::ImageSpec { image: props.image.clone(), ..Default::default() };
                let request = v1::ImageStatusRequest { image: Some(spec), verbose: false };
                let found = stage.node.cri.image.image_status(request).await?.into_inner().image;
                ensure!(found.is_none(), "removed, and there: {found:?}");
            }
            Run | RunWithPorts | RunOnHost => self.verify_run(stage, props, answer).await?,
            Create => {
                let status = stage.node.cri.container_status(answer).await?;
                ensure!(status.state() == v1::ContainerState::ContainerCreated, "{status:?}");
                stage.node.cri.start_container(answer).await?;
                ended(stage, answer, props, Some(CREATED_LINES)).await?;
            }
            Start => {
                let status = stage.node.cri.container_status(&props.container_id).await?;
                ensure!(status.state() == v1::ContainerState::ContainerRunning, "{status:?}");
                stage.node.wait_for_line("rounds", &name_of(&props.container), "line 1").await?;
                stage.log(&name_of(&props.container)).advance()?;
            }
            StartMissing => {
                let status = stage.node.wait_exit(&props.container_id).await?;
                ensure!(status.exit_code == 128 && status.reason == "StartError", "{status:?}");
            }
            Exit => ended(stage, &props.container_id, props, Some(EXIT_LINES)).await?,
            EndShared => {
                let status = stage.node.wait_exit(&props.container_id).await?;
                ensure!(status.exit_code == props.code, "{status:?}");
                no_process(LATE).await?;
            }
            Limit => limited(stage, &props.container_id).await?,
            LimitSandbox => limited_sandbox(stage, &props.sandbox_id).await?,
            StopPolite => ended(stage, &props.container_id, props, None).await?,
            StopAtOnce | StopDeaf | StopWedged => killed(stage, props, 137).await?,
            RemoveRunning | RemoveExited | RemoveSandbox | RemoveStopped => gone(props)?,
            StopSandbox => {
                killed(stage, props, 137).await?;
                self.verify_stopped(stage, props).await?;
            }
            LoseShim | LoseShimUnseen => {
                killed(stage, props, 255).await?;
                self.verify_stopped(stage, props).await?;
            }
            Exec => ensure!(answer == "told 7", "the command said {answer:?}"),
            ExecLate => no_process(LATE).await?,
        }
        Ok(())
    }

    async fn verify_run(self, stage: &mut Stage, props: &Props, id: &str) -> Result<()> {
        let status = stage.node.cri.sandbox_status(id).await?;
        ensure!(status.state() == v1::PodSandboxState::SandboxReady, "{status:?}");
        ensure!(status.metadata == props.sandbox.metadata, "{status:?}");
        let address = status.network.context("no network status")?.ip;
        ensure!(address.is_empty() == matches!(self, RunOnHost), "address {address:?}");
        let pod = Pod { id: id.to_owned(), config: props.sandbox.clone() };
        let told = stage.node.shell(&pod, &stage.image.clone(), "echo runs").await?;
        ensure!(told == "runs\n", "it said {told:?}");
        Ok(())
    }

    async fn verify_stopped(self, stage: &mut Stage, props: &Props) -> Result<()> {
        let status = stage.node.cri.sandbox_status(&props.sandbox_id).await?;
        ensure!(status.state() == v1::PodSandboxState::SandboxNotready, "{status:?}");
        let status = stage.node.cri.container_status(&props.other_id).await?;
        ensure!(status.state() == v1::ContainerState::ContainerCreated, "{status:?}");
        Ok(())
    }
}

/// The container's new limits are told, and are what its processes have.
async fn limited(stage: &mut Stage, id: &str) -> Result<()> {
    let cri = &mut stage.node.cri;
    let told = cri.container_status(id).await?.resources.and_then(|all| all.linux);
    let shares = told.context("no resources in the status")?.cpu_shares;
    ensure!(shares == SHARES, "told to have {shares} shares");
    let show = "cd /sys/fs/cgroup; cat cpu/cpu.shares || cat cpu.weight";
    let shown = cri.exec(id, &["sh", "-c", show], 10).await?;
    let shown = String::from_utf8_lossy(&shown.stdout).trim().to_owned();
    ensure!([SHARES.to_string().as_str(), WEIGHT].contains(&shown.as_str()), "it has {shown}");
    Ok(())
}

/// What the whole pod may use now is told.
async fn limited_sandbox(stage: &mut Stage, id: &str) -> Result<()> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let status = stage.node.cri.runtime.pod_sandbox_status(request).await?.into_inner();
    let info: serde_json::Value =
        serde_json::from_str(status.info.get("info").context("no info")?)?;
    let shares = &info["limits"]["resources"]["cpu_shares"];
    ensure!(*shares == SHARES, "the sandbox may use {shares}");
    Ok(())
}

/// The container ended as its program has it, and wrote all that it should.
async fn ended(stage: &mut Stage, id: &str, props: &Props, lines: Option<u64>) -> Result<()> {
    let status = stage.node.wait_exit(id).await?;
    ensure!(status.exit_code == props.code, "ended with {}: {status:?}", props.code);
    ensure!(status.started_at <= status.finished_at, "{status:?}");
    let name = name_of(&props.container);
    let written = stage.log(&name).finish()?;
    ensure!(written == lines.unwrap_or(written), "{written} lines of {lines:?}: {name}");
    Ok(())
}

/// The container ended because it was killed, and nothing of it runs.
async fn killed(stage: &mut Stage, props: &Props, code: i32) -> Result<()> {
    let status = stage.node.wait_exit(&props.container_id).await?;
    ensure!(status.exit_code == code, "killed, so {code}: {status:?}");
    gone(props)
}

fn gone(props: &Props) -> Result<()> {
    let Some(process) = &props.process else { return Ok(()) };
    ensure!(!process.runs(), "its end was told, and it runs: {process:?}");
    Ok(())
}

/// Nothing below this process has `argument` in its command line, after a while.
async fn no_process(argument: &str) -> Result<()> {
    let deadline = Instant::now() + GONE;
    loop {
        let processes = host::descendants()?.into_iter();
        let left: Vec<Process> =
            processes.filter(|process| process.command().contains(argument)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "nobody waits for it, and it runs: {left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
