//! How long a daemon takes to be ready again: `berth-demo --measure-restart PODS`.
//!
//! Pods of one busybox container each are started, then the daemon is killed and started
//! again a few times. **ready** is the time from its start until it has answered how many
//! containers run, which must be all of them. As `--measure`, a first look.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{Node, NodeOptions, container_config};

use crate::narrator::milliseconds;
use crate::story::daemon_memory;

const ROUNDS: usize = 7;

/// Starts `pods` pods, restarts the daemon, and prints how long that took.
pub(crate) async fn measure(pods: usize) -> Result<()> {
    ensure!(pods > 0, "--measure-restart needs at least one pod");
    let mut node = Node::start_with(NodeOptions { quiet: true, ..Default::default() }).await?;
    let image = node.busybox().await?;
    let began = Instant::now();
    for number in 0..pods {
        let pod = node.pod(&format!("pod-{number}")).await?;
        node.run(&pod, &container_config("main", &image, &["sleep", "100000"])).await?;
    }
    println!("{pods} pods started in {:.1} s", began.elapsed().as_secs_f64());
    println!("berthd: {}", daemon_memory(&node)?);
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 1..=ROUNDS {
        node.kill_daemon()?;
        let began = Instant::now();
        node.start_daemon().await?;
        let running = running(&mut node).await?;
        let taken = began.elapsed();
        ensure!(running == pods, "{running} of {pods} containers run after a restart");
        println!(
            "restart {round}: ready after {:.0} ms, {} ms of processor time (load {})",
            milliseconds(taken),
            processor_time(&node)?,
            load()?
        );
        times.push(taken);
    }
    times.sort();
    println!(
        "ready again with {pods} pods: median {:.0} ms, longest {:.0} ms",
        milliseconds(times[ROUNDS / 2]),
        milliseconds(times.last().copied().unwrap_or(Duration::ZERO))
    );
    println!("berthd: {}", daemon_memory(&node)?);
    node.assert_clean().await
}

async fn running(node: &mut Node) -> Result<usize> {
    let state = v1::ContainerState::ContainerRunning.into();
    let filter = v1::ContainerFilter {
        state: Some(v1::ContainerStateValue { state }),
        ..Default::default()
    };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let answer = node.cri.runtime.list_containers(request).await?;
    Ok(answer.into_inner().containers.len())
}

/// What the daemon has used since its start, milliseconds: what a quiet machine would take
/// at most (proc_pid_stat(5), fields 14 and 15, in hundredths of a second).
fn processor_time(node: &Node) -> Result<u64> {
    let pid = node.daemon().pid().context("the daemon does not run")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("no name in stat")?.1.split_ascii_whitespace();
    let ticks: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<u64>() * 10)
}

/// The machine's load average of the last minute: what a time is worth.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("no load average")?.to_owned())
}
