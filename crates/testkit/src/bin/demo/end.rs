//! Ends what `--keep` left running.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_testkit::{Cri, remove_cgroups};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Removes the pods of the node in `dir`, ends its daemon and registry, removes `dir`.
pub(crate) async fn end(dir: &Path) -> Result<()> {
    let pids = fs::read_to_string(dir.join("kept"))
        .with_context(|| format!("{} is not what `demo --keep` left", dir.display()))?;
    let mut cri = Cri::connect(&dir.join("run/berth.sock")).await?;
    for id in cri.sandboxes().await? {
        cri.remove_sandbox(&id).await?;
    }
    for (pid, program) in pids.lines().filter_map(|line| line.split_once(' ')) {
        end_process(Pid::from_raw(pid.parse()?), program).await?;
    }
    let cgroup = fs::read_to_string(dir.join("cgroup")).context("read the name of the cgroup")?;
    remove_cgroups(&cgroup)?;
    fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    println!("ended, and removed {}", dir.display());
    Ok(())
}

async fn end_process(pid: Pid, program: &str) -> Result<()> {
    let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { return Ok(()) };
    // The kernel keeps 15 bytes of a name; another program may have got the number since.
    ensure!(program.starts_with(name.trim_end()), "process {pid} is {name:?}, not {program}");
    kill(pid, Signal::SIGTERM).with_context(|| format!("end {program}"))?;
    for _ in 0..1000 {
        if kill(pid, None) == Err(Errno::ESRCH) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{program} (process {pid}) still runs 10 s after SIGTERM")
}
