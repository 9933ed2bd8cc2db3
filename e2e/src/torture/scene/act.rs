//! The verbs themselves.

use std::time::Duration;

use berth_api::v1;
use berth_testkit::Cri;
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use super::Scene::*;
use super::{LATE, MISSING, Props, SHARES, Scene};

/// Pause between two looks at a container.
const LOOK: Duration = Duration::from_millis(5);
/// Looks until a container that was to end has not.
const LOOKS: u32 = 4000;

impl Scene {
    /// Does the verb; returns the id it answers, if any. What it did before must not harm.
    pub(crate) async fn act(self, mut cri: Cri, props: &Props) -> Result<String, Status> {
        let (sandbox, container) = (&props.sandbox_id, &props.container_id);
        let done = |()| String::new();
        match self {
            Pull | PullMovedTag => cri.pull(&props.image).await,
            RemoveImage => remove_image(&mut cri, &props.image).await.map(done),
            Run | RunWithPorts | RunOnHost => cri.run_sandbox(&props.sandbox).await,
            Create => cri.create_container(sandbox, &props.sandbox, &props.container).await,
            Start => cri.start_container(container).await.map(done),
            StartMissing => match cri.start_container(container).await {
                Ok(()) => Err(Status::internal("what does not exist was executed")),
                Err(refused) if wants_program(&refused) => Ok(String::new()),
                Err(failed) => Err(failed),
            },
            Limit => limit(&mut cri, container).await.map(done),
            LimitSandbox => limit_sandbox(&mut cri, sandbox).await.map(done),
            StopPolite => cri.stop_container(container, 20).await.map(done),
            StopAtOnce | StopWedged => cri.stop_container(container, 0).await.map(done),
            StopDeaf => cri.stop_container(container, 1).await.map(done),
            Exit | EndShared => {
                if let Some(volume) = props.container.mounts.first() {
                    std::fs::write(format!("{}/go", volume.host_path), "")?;
                }
                exited(&mut cri, container).await.map(done)
            }
            RemoveRunning | RemoveExited => cri.remove_container(container).await.map(done),
            StopSandbox => cri.stop_sandbox(sandbox).await.map(done),
            RemoveSandbox | RemoveStopped => {
                let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
                cri.runtime.remove_pod_sandbox(request).await.map(|_| String::new())
            }
            LoseShim | LoseShimUnseen => {
                if let Some(shim) = props.shim.as_ref().filter(|shim| shim.runs()) {
                    if matches!(self, LoseShimUnseen) {
                        cri.exec(container, &["true"], 10).await?;
                    }
                    let killed = shim.signal(Signal::SIGKILL);
                    killed.map_err(|error| Status::internal(error.to_string()))?;
                }
                exited(&mut cri, container).await.map(done)
            }
            Exec => {
                let command = ["sh", "-c", "echo told; exit 7"];
                let answer = cri.exec(container, &command, 10).await?;
                Ok(format!(
                    "{} {}",
                    String::from_utf8_lossy(&answer.stdout).trim(),
                    answer.exit_code
                ))
            }
            ExecLate => match cri.exec(container, &["sleep", LATE], 1).await {
                Err(late) if late.code() == Code::DeadlineExceeded => Ok(String::new()),
                Err(failed) => Err(failed),
                Ok(answer) => Err(Status::internal(format!("it ended: {answer:?}"))),
            },
        }
    }

    /// Removes what the scene made, by verbs.
    pub(crate) async fn clear(
        self,
        mut cri: Cri,
        shared: &str,
        props: &Props,
        answer: &str,
    ) -> Result<(), Status> {
        match self {
            Pull | PullMovedTag | RemoveImage => {
                for image in [&props.image, &props.old_image_id] {
                    if !image.is_empty() {
                        remove_image(&mut cri, image).await?;
                    }
                }
            }
            Run | RunWithPorts | RunOnHost => cri.remove_sandbox(answer).await?,
            Create => cri.remove_container(answer).await?,
            StopWedged => {
                let woken = props.shim.as_ref().map_or(Ok(()), |shim| shim.signal(Signal::SIGCONT));
                woken.map_err(|error| Status::internal(error.to_string()))?;
                cri.remove_sandbox(&props.sandbox_id).await?;
            }
            _ if props.sandbox_id != shared => cri.remove_sandbox(&props.sandbox_id).await?,
            _ => cri.remove_container(&props.container_id).await?,
        }
        Ok(())
    }
}

async fn limit(cri: &mut Cri, id: &str) -> Result<(), Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(shares()),
        ..Default::default()
    };
    cri.runtime.update_container_resources(request).await.map(drop)
}

async fn limit_sandbox(cri: &mut Cri, id: &str) -> Result<(), Status> {
    let request = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        overhead: None,
        resources: Some(shares()),
    };
    cri.runtime.update_pod_sandbox_resources(request).await.map(drop)
}

fn shares() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources { cpu_shares: SHARES, ..Default::default() }
}

async fn remove_image(cri: &mut Cri, image: &str) -> Result<(), Status> {
    let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    cri.image.remove_image(v1::RemoveImageRequest { image }).await.map(drop)
}

/// Waits until a container has ended.
async fn exited(cri: &mut Cri, id: &str) -> Result<(), Status> {
    for _ in 0..LOOKS {
        let status = cri.container_status(id).await?;
        if status.state() == v1::ContainerState::ContainerExited {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Status::internal(format!("container {id} does not end")))
}

/// Whether a start was refused for the program, now or when it was tried before.
fn wants_program(refused: &Status) -> bool {
    refused.message().contains(MISSING) || refused.code() == Code::FailedPrecondition
}
