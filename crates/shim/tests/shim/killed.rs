//! A shim that is killed, at any moment, or whose daemon was, leaves nothing that a daemon
//! would not find by its cgroup.
//!
//! `BERTH_TEST_KILLS` is how often; the full count is 200.

use std::time::Duration;

use berth_cgroup::{CgroupPath, Hierarchy};
use berth_model::{ContainerId, ExecId};
use berth_shim_client::{ExecRequest, Input, Output, Process, SandboxOptions, Shim};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{LONG, Pod, count, is_root, runtime, set_namespace, wait_for};

/// Live processes that name the pod on their command lines: the shim and what it has forked
/// that executed nothing.
fn forks(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!(" -id {id} ")) {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // A zombie's command line is empty.
            found.push(format!("{line} {stat}"));
        }
    }
    found
}

/// Creates, starts and adds processes until somebody kills the shim.
async fn work(shim: Shim, wanted: berth_shim_client::CreateRequest) {
    if shim.create(&wanted).await.is_err() || shim.start(&wanted.id).await.is_err() {
        return;
    }
    for n in 0.. {
        let exec = ExecId::new(format!("e{n}")).unwrap();
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "args": ["sleep", "1000"], "env": ["PATH=/bin"],
            "cwd": "/"
        });
        let request = ExecRequest {
            container: wanted.id.clone(),
            id: exec.clone(),
            process: process.to_string().into_bytes(),
            terminal: false,
            stdin: Input::Null,
            stdout: Output::Null,
            stderr: Output::Null,
        };
        let process = Process { container: &wanted.id, exec: Some(&exec) };
        if shim.exec(&request).await.is_err() || shim.start(process).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_shim_killed_at_any_moment_leaves_nothing_outside_of_its_containers_cgroup() {
    if !is_root() {
        return;
    }
    let rounds = count("BERTH_TEST_KILLS", 24);
    for round in 0..rounds {
        let pod = Pod::start().await;
        let options = SandboxOptions { shm_size: 1 << 20, share_pid: true, user: None };
        pod.shim.sandbox_create(&pod.id, pod.dir.path(), options).await.unwrap();
        let bundle = pod.bundle("a", &["/bin/sleep", "1000"], |spec| {
            set_namespace(spec, "pid", Some("/proc/self/fd/13"));
        });
        let working = tokio::spawn(work(pod.shim.clone(), pod.wanted("a", bundle)));
        // From before the first fork to some execs: a prime step visits every phase.
        sleep(Duration::from_micros(u64::try_from(round * 1237 % 25_000).unwrap())).await;
        pod.process.kill(Signal::SIGKILL).unwrap();
        timeout(LONG, pod.shim.closed()).await.unwrap();
        timeout(LONG, working).await.unwrap().unwrap();
        // As berthd does.
        let path = CgroupPath::new(&format!("{}/a", pod.cgroup)).unwrap();
        let hierarchy = Hierarchy::detect().unwrap();
        let until = Instant::now() + LONG;
        while let Ok(cgroup) = hierarchy.open(&path) {
            cgroup.kill_all().unwrap();
            if cgroup.remove().is_ok() {
                break;
            }
            assert!(Instant::now() < until, "the cgroup cannot be removed");
            sleep(Duration::from_millis(2)).await;
        }
        wait_for("a process is left", || forks(pod.id.as_str()).is_empty()).await;
        assert!(hierarchy.open(&path).is_err(), "the cgroup was made again");
        // Its socket is berthd's to remove, as it has none of the shim's words any more.
        std::fs::remove_file(pod.dir.path().join("shim.sock")).unwrap();
        pod.finished().await;
    }
}

#[tokio::test]
async fn a_start_killed_at_any_moment_leaves_no_shim_for_long() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rounds = count("BERTH_TEST_KILLS", 24);
    let names: Vec<String> =
        (0..rounds).map(|round| format!("start-{}-{round}", std::process::id())).collect();
    for (round, name) in (0..).zip(&names) {
        let mut start = std::process::Command::new(runtime().path)
            .args(["-namespace", "k8s.io", "-address", "", "-id", name, "start"])
            .env("BERTH_SOCKET", dir.path().join(name))
            .env("BERTH_SHIM_UNUSED", "1")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_micros(round * 397 % 6_000)).await;
        start.kill().unwrap();
        start.wait().unwrap();
    }
    for name in &names {
        wait_for("a shim is left", || forks(name).is_empty()).await;
        // One that ran has removed its socket; at one that never ran nobody listens.
        assert!(std::os::unix::net::UnixStream::connect(dir.path().join(name)).is_err());
    }
}

#[tokio::test]
async fn a_killed_shims_containers_live_until_their_cgroup_is_killed() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "1000"]).await;
    let [pid] = pod.shim.pids(&container).await.unwrap()[..] else { panic!("not one process") };
    let process = berth_shim_client::ProcessId::of(pid).unwrap();
    pod.process.kill(Signal::SIGKILL).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(crate::support::is_alive(process), "it died with the shim");
}

/// What a shim that does nothing waits for: a timer would wake it, and all shims of a node.
///
/// teeth: crates/shim/src/daemon.rs: `if shim.is_used() {` → `if false {`
#[tokio::test]
async fn an_idle_shim_has_no_timer() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "1000"]).await;
    // The call it is in, in hexadecimal: epoll_wait(2) or epoll_pwait(2) and its arguments,
    // the fourth of which is how long.
    let syscall = || std::fs::read_to_string(format!("/proc/{}/syscall", pod.process.pid)).unwrap();
    let endless = |call: &str| {
        let timeout = call.split(' ').nth(4).unwrap_or_default();
        timeout.ends_with("ffffffff")
    };
    // What it gives back a second after its last work has a timer, for once.
    wait_for("it waits with a timer", || endless(&syscall())).await;
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_shim_that_nobody_uses_ends_by_itself_and_one_that_is_used_does_not() {
    if !is_root() {
        return;
    }
    let unused = |request: &mut berth_shim_client::StartRequest| {
        request.env.push(("BERTH_SHIM_UNUSED".into(), "1".into()));
    };
    let (mut idle, used, created) =
        (Pod::start_as(unused).await, Pod::start_as(unused).await, Pod::start_as(unused).await);
    idle.complains = true;
    used.shim.sandbox_create(&used.id, used.dir.path(), SandboxOptions::default()).await.unwrap();
    let container = created.create("a", &["/bin/sleep", "1000"]).await;
    created.shim.delete(&container).await.unwrap();
    idle.finished().await;
    sleep(Duration::from_millis(500)).await;
    used.shim.sandbox_ping(&used.id, LONG).await.unwrap();
    assert_eq!(created.shim.shim_pid("").await.unwrap(), created.process.pid);
    used.shim.sandbox_shutdown(&used.id).await.unwrap();
    used.finished().await;
    let gone = ContainerId::new("a").unwrap();
    assert!(created.shim.state(&gone).await.is_err());
    created.finish().await;
}
