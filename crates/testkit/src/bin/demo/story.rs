//! The steps of the demo, in the order in which kubelet makes them.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Cri, Node, container_config, image, log};

use crate::narrator::{Narrator, end_progress, progress};

const UP: &[&str] = &["RunPodSandbox", "CreateContainer", "StartContainer"];
const DOWN: &[&str] = &["StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"];
const SCRIPT: &str = "echo hello from $(hostname) on $(uname -sr); trap exit TERM; \
                      while true; do sleep 1 & wait $!; done";

/// A pod that runs.
struct Pod {
    sandbox: String,
    container: String,
}

/// Runs the demo; with `keep`, everything is left running.
pub(crate) async fn tell(keep: bool) -> Result<()> {
    let mut narrator = Narrator::default();
    narrator.say("Berth demo: a pod from a registry image, in a network namespace of its own\n");
    let mut node = narrator
        .step("start", async {
            let node = Node::start().await?;
            let told =
                format!("docker-registry on {}, berthd on a private root", node.registry.address());
            Ok((node, told))
        })
        .await?;
    greet(&mut narrator, &mut node.cri).await?;
    let reference = pull(&mut narrator, &mut node).await?;
    let pod = start(&mut narrator, &mut node, &reference).await?;
    look(&mut narrator, &mut node, &pod).await?;
    if keep {
        return leave_running(&narrator, node);
    }
    stop(&mut narrator, &mut node.cri, &pod).await?;
    let memory = daemon_memory(&node)?;
    narrator
        .step("check", async {
            node.assert_clean().await?;
            let told = "no process, mount, link, cgroup, socket, snapshot, lease or record is left";
            Ok(((), told.to_owned()))
        })
        .await?;
    narrator.say(&format!(
        "\nup {:.1} ms (sandbox, create, start), down {:.1} ms, berthd {memory}",
        narrator.sum(UP),
        narrator.sum(DOWN)
    ));
    Ok(())
}

async fn greet(narrator: &mut Narrator, cri: &mut Cri) -> Result<()> {
    narrator
        .step("Version", async {
            let answer = cri.runtime.version(v1::VersionRequest::default()).await?.into_inner();
            let told = format!(
                "{} {}, CRI {}",
                answer.runtime_name, answer.runtime_version, answer.runtime_api_version
            );
            Ok(((), told))
        })
        .await?;
    narrator
        .step("Status", async {
            let answer = cri.runtime.status(v1::StatusRequest::default()).await?.into_inner();
            let conditions = answer.status.context("the answer has no status")?.conditions;
            let told: Vec<_> =
                conditions.iter().map(|c| format!("{}={}", c.r#type, c.status)).collect();
            ensure!(
                conditions.iter().all(|condition| condition.status),
                "not ready: {conditions:?}"
            );
            Ok(((), told.join(", ")))
        })
        .await
}

async fn pull(narrator: &mut Narrator, node: &mut Node) -> Result<String> {
    let reference = narrator
        .step("push", async {
            let image = image::busybox()?;
            let size: usize = image.blobs.iter().map(|blob| blob.bytes.len()).sum();
            let reference = node.push("busybox", "latest", &image)?;
            Ok((reference, format!("a busybox image of {} KiB, made here", size / 1024)))
        })
        .await?;
    for name in ["PullImage", "PullImage again"] {
        let mut cri = node.cri.clone();
        narrator
            .step(name, async {
                let id = with_progress(node.cri.clone(), cri.pull(&reference)).await?;
                Ok(((), format!("{reference} is {}", short(&id))))
            })
            .await?;
    }
    Ok(reference)
}

/// Shows how much of the image is on disk while `pulling` goes on.
async fn with_progress<T>(
    mut cri: Cri,
    pulling: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T> {
    let mut pulling = std::pin::pin!(pulling);
    loop {
        match tokio::time::timeout(Duration::from_millis(200), &mut pulling).await {
            Ok(pulled) => {
                end_progress();
                return Ok(pulled?);
            }
            Err(_) => {
                let request = v1::ImageFsInfoRequest::default();
                let info = cri.image.image_fs_info(request).await?.into_inner();
                let used = info.image_filesystems.iter().filter_map(|fs| fs.used_bytes);
                let bytes: u64 = used.map(|bytes| bytes.value).sum();
                progress(&format!("pulling: {} KiB on disk", bytes / 1024));
            }
        }
    }
}

async fn start(narrator: &mut Narrator, node: &mut Node, reference: &str) -> Result<Pod> {
    let sandbox_config = node.sandbox_config("demo");
    let cri = &mut node.cri;
    let sandbox = narrator
        .step("RunPodSandbox", async {
            let id = cri.run_sandbox(&sandbox_config).await?;
            let told = format!("sandbox {}", short(&id));
            Ok((id, told))
        })
        .await?;
    let config = container_config("hello", reference, &["sh", "-c", SCRIPT]);
    let container = narrator
        .step("CreateContainer", async {
            let id = cri.create_container(&sandbox, &sandbox_config, &config).await?;
            let told = format!("container {}", short(&id));
            Ok((id, told))
        })
        .await?;
    narrator
        .step("StartContainer", async {
            cri.start_container(&container).await?;
            Ok(((), "the program was executed".to_owned()))
        })
        .await?;
    Ok(Pod { sandbox, container })
}

async fn look(narrator: &mut Narrator, node: &mut Node, pod: &Pod) -> Result<()> {
    narrator
        .step("logs", async {
            let path = node.log_directory("demo").join("hello.log");
            let text = first_output(&path).await?;
            Ok(((), format!("{text:?}")))
        })
        .await?;
    let cri = &mut node.cri;
    narrator
        .step("PodSandboxStatus", async {
            let status = cri.sandbox_status(&pod.sandbox).await?;
            let address = status.network.map(|network| network.ip).unwrap_or_default();
            Ok((
                (),
                format!("{:?}, address {address}", v1::PodSandboxState::try_from(status.state)?),
            ))
        })
        .await?;
    narrator
        .step("ExecSync", async {
            let answer = cri.exec(&pod.container, &["sh", "-c", "echo $$; exit 3"], 10).await?;
            ensure!(answer.exit_code == 3, "exit code {} instead of 3", answer.exit_code);
            let output = String::from_utf8_lossy(&answer.stdout);
            Ok(((), format!("exit code 3 as asked, output {output:?}")))
        })
        .await?;
    narrator
        .step("ContainerStats", async {
            let request = v1::ContainerStatsRequest { container_id: pod.container.clone() };
            let stats = cri.runtime.container_stats(request).await?.into_inner().stats;
            let stats = stats.context("the answer has no stats")?;
            let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds);
            let kibibytes = memory.context("no working set")?.value / 1024;
            let microseconds = cpu.context("no CPU time")?.value / 1000;
            Ok(((), format!("{kibibytes} KiB working set, {microseconds} µs of CPU")))
        })
        .await
}

/// Waits for the first whole line in the log.
async fn first_output(path: &std::path::Path) -> Result<String> {
    for _ in 0..500 {
        if let Ok(lines) = log::read(path)
            && !lines.is_empty()
        {
            return Ok(log::text(&lines, "stdout").trim_end().to_owned());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("no output in {} after 5 s", path.display())
}

async fn stop(narrator: &mut Narrator, cri: &mut Cri, pod: &Pod) -> Result<()> {
    let done = |told: &str| Ok(((), told.to_owned()));
    narrator
        .step("StopContainer", async {
            cri.stop_container(&pod.container, 10).await?;
            let status = cri.container_status(&pod.container).await?;
            done(&format!("exit code {}, {}", status.exit_code, status.reason))
        })
        .await?;
    narrator
        .step("RemoveContainer", async {
            cri.remove_container(&pod.container).await?;
            done("its writable layer is gone")
        })
        .await?;
    narrator
        .step("StopPodSandbox", async {
            cri.stop_sandbox(&pod.sandbox).await?;
            done("its network is let go")
        })
        .await?;
    narrator
        .step("RemovePodSandbox", async {
            cri.remove_sandbox(&pod.sandbox).await?;
            done("its record is gone")
        })
        .await
}

/// The proportional set size of the daemon, in words.
pub(crate) fn daemon_memory(node: &Node) -> Result<String> {
    let pid = node.daemon().pid().context("the daemon does not run")?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(format!("PSS {}", pss.trim()))
}

fn leave_running(narrator: &Narrator, node: Node) -> Result<()> {
    let socket = node.daemon().socket().to_owned();
    let dir = node.detach()?;
    narrator.say(&format!(
        "\nLeft running. Look around with crictl:\n  \
           export CONTAINER_RUNTIME_ENDPOINT=unix://{socket} IMAGE_SERVICE_ENDPOINT=unix://{socket}\n  \
           crictl pods; crictl ps; crictl exec --sync ID date\n\
         End it all:\n  cargo xtask demo --end {dir}",
        socket = socket.display(),
        dir = dir.display()
    ));
    Ok(())
}

/// The digits by which people and crictl know an id.
fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..13).unwrap_or(digits)
}
