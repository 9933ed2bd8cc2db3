//! Shims that die, hang or lie, and a store that refuses: nothing is lost, nobody waits.

mod commands;
mod hung;
mod killed;
mod unkillable;
mod unstored;
mod wedged;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Node, Pod};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Generous: the machine may be busy with other tests.
const SOON: Duration = Duration::from_secs(10);

/// A shim of a node, by process id.
#[derive(Clone, Copy, Debug)]
struct Shim(Pid);

impl Shim {
    async fn of(node: &mut Node, pod: &Pod) -> Result<Self> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let info = node.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
        let text: String = info.into_values().collect();
        let verbose: serde_json::Value = serde_json::from_str(&text).context("verbose status")?;
        let pid = verbose["pid"].as_i64().filter(|pid| *pid != 0).context("no shim")?;
        Ok(Self(Pid::from_raw(i32::try_from(pid)?)))
    }

    fn signal(self, signal: Signal) -> Result<()> {
        nix::sys::signal::kill(self.0, signal).with_context(|| format!("{signal} to shim"))
    }

    fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    fn stop(self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    fn resume(self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }
}

/// The node's shims: its processes that are neither daemon nor registry.
fn shims(node: &Node) -> Result<Vec<Shim>> {
    let known = [node.daemon().pid(), Some(node.registry.pid()), Some(std::process::id())];
    let processes = node.processes()?.into_iter().filter(|pid| !known.contains(&Some(*pid)));
    processes.map(|pid| Ok(Shim(Pid::from_raw(i32::try_from(pid)?)))).collect()
}

/// Whether a process lives; one that waits to be reaped does not.
fn lives(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("\nState:\tZ") && !status.contains("\nState:\tX")
}

/// Waits until `done`, for which `what` is the name.
async fn until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !done() {
        ensure!(began.elapsed() < SOON, "{what}: not after {SOON:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Processes of the container whose first one is `pid`, by its cgroup.
fn members(pid: u32) -> Result<Vec<u32>> {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let dir = cgroups
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .filter(|(controllers, path)| {
            path.contains("berth-test-") && (controllers.is_empty() || *controllers == "pids")
        })
        .flat_map(|(controllers, path)| {
            let roots = match controllers {
                "" => ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].as_slice(),
                _ => &["/sys/fs/cgroup/pids"],
            };
            roots.iter().map(move |root| format!("{root}{path}"))
        })
        .map(PathBuf::from)
        .find(|dir| dir.join("cgroup.procs").exists())
        .with_context(|| format!("no cgroup of process {pid}: {cgroups}"))?;
    let listed = std::fs::read_to_string(dir.join("cgroup.procs"))?;
    Ok(listed.lines().filter_map(|pid| pid.parse().ok()).collect())
}

/// Waits until the sandbox is not ready.
async fn not_ready(node: &mut Node, pod: &Pod) -> Result<()> {
    let began = Instant::now();
    while node.cri.sandbox_status(&pod.id).await?.state() != v1::PodSandboxState::SandboxNotready {
        ensure!(began.elapsed() < SOON, "sandbox {} is ready still", pod.id);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Another pod is served, from its start to its end.
async fn others_are_served(node: &mut Node, image: &str, name: &str) -> Result<()> {
    let pod = node.pod(name).await?;
    assert_eq!(node.shell(&pod, image, "echo served").await?, "served\n");
    Ok(node.cri.remove_sandbox(&pod.id).await?)
}
