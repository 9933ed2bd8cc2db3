//! Orphans are reaped, and nobody's exit code with them.
//!
//! `BERTH_TEST_ORPHANS` is how many there are; the row of the failures table asks for 100,000.

use berth_model::{ContainerId, ExecId};
use berth_shim_client::{ExecRequest, Input, Output, Process, SandboxOptions};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{LONG, Pod, count, is_root, set_namespace, wait_for};

/// How long the full count may take.
const LONGER: std::time::Duration = std::time::Duration::from_secs(1200);

/// Zombies whose parent is that process.
fn zombies(parent: u32) -> usize {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let is_zombie = |pid: &&str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") Z ")
    };
    children.split_ascii_whitespace().filter(is_zombie).count()
}

/// Runs a program in the container that ends with `code`, and proves that it did.
async fn exec(pod: &Pod, container: &ContainerId, id: String, script: &str, code: i32) {
    let exec = ExecId::new(id).unwrap();
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "env": ["PATH=/bin"],
        "cwd": "/tmp"
    });
    let request = ExecRequest {
        container: container.clone(),
        id: exec.clone(),
        process: process.to_string().into_bytes(),
        terminal: false,
        stdin: Input::Null,
        stdout: Output::Null,
        stderr: Output::Null,
    };
    pod.shim.exec(&request).await.unwrap();
    let process = Process { container, exec: Some(&exec) };
    pod.shim.start(process).await.unwrap();
    let exit = timeout(LONGER, pod.shim.wait(process)).await.unwrap().unwrap();
    assert_eq!(exit.code, code, "a code was stolen");
    assert_eq!(pod.shim.delete(process).await.unwrap(), exit);
}

/// Runs a container that makes orphans, `BERTH_TEST_ORPHANS` with those of its execs, and
/// proves that every code is true and no zombie is left. `reaper` is who has to reap.
async fn orphans(pod: &Pod, reaper: u32, change: impl Fn(&mut Value)) {
    let count = count("BERTH_TEST_ORPHANS", 2000);
    let execs = 20;
    let make = |count| format!("n=0; while [ $n -lt {count} ]; do (: &); n=$((n+1)); done");
    // Orphans that end with it, in one moment, are there too.
    let last = "(sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 &)";
    let script = format!("{}; {last}; exit 9", make(count / 2));
    let container = pod.create_with("a", &["/bin/sh", "-c", &script], &change).await;
    // With pids of its own a container's first process has to reap, as this one does.
    let idle = ["/bin/sh", "-c", "while :; do sleep 1; done"];
    let idle = pod.create_with("idle", &idle, &change).await;
    pod.shim.start(&idle).await.unwrap();
    pod.shim.start(&container).await.unwrap();
    for n in 0..execs {
        let code = i32::from(n + 10_u8);
        let script = format!("{}; exit {code}", make(count / 2 / usize::from(execs)));
        exec(pod, &idle, format!("e{n}"), &script, code).await;
    }
    let exit = timeout(LONGER, pod.shim.wait(&container)).await.unwrap().unwrap();
    assert_eq!(exit.code, 9, "the code of the container was stolen");
    wait_for("zombies are left", || zombies(reaper) + zombies(pod.process.pid) == 0).await;
    pod.shim.delete(&container).await.unwrap();
    pod.shim.kill(&idle, 9, true, LONG).await.unwrap();
    assert_eq!(pod.wait(&idle).await.code, 137);
    pod.shim.delete(&idle).await.unwrap();
    let children = format!("/proc/{0}/task/{0}/children", pod.process.pid);
    let init = if reaper == pod.process.pid { String::new() } else { format!("{reaper} ") };
    wait_for("children are left", || std::fs::read_to_string(&children).unwrap() == init).await;
}

#[tokio::test]
async fn orphans_with_the_nodes_pids_are_reaped_by_the_shim() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    orphans(&pod, pod.process.pid, |spec| set_namespace(spec, "pid", None)).await;
    pod.finish().await;
}

#[tokio::test]
async fn orphans_with_shared_pids_are_reaped_by_the_pods_init() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let options = SandboxOptions { shm_size: 0, share_pid: true, user: None };
    pod.shim.sandbox_create(&pod.id, pod.dir.path(), options).await.unwrap();
    let init = pod.shim.sandbox_start(&pod.id).await.unwrap();
    let share = |spec: &mut Value| set_namespace(spec, "pid", Some("/proc/self/fd/13"));
    orphans(&pod, init, share).await;
    pod.shim.sandbox_shutdown(&pod.id).await.unwrap();
    pod.finished().await;
}

#[tokio::test]
async fn orphans_with_pids_of_their_own_end_with_their_container() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    orphans(&pod, pod.process.pid, |_| {}).await;
    pod.finish().await;
}

#[tokio::test]
async fn a_thousand_orphans_that_end_with_their_container_do_not_take_its_code() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    for round in 0..3 {
        let id = format!("a{round}");
        // They all wait for one FIFO to open, and end in the moment that the first process does.
        let script = "busybox mkfifo /tmp/f; n=0;
            while [ $n -lt 300 ]; do (cat /tmp/f &); n=$((n+1)); done; : > /tmp/f; exit 5";
        let node = |spec: &mut Value| set_namespace(spec, "pid", None);
        let container = pod.create_with(&id, &["/bin/sh", "-c", script], node).await;
        pod.shim.start(&container).await.unwrap();
        assert_eq!(pod.wait(&container).await.code, 5);
        wait_for("zombies are left", || zombies(pod.process.pid) == 0).await;
        pod.shim.delete(&container).await.unwrap();
    }
    pod.finish().await;
}

#[tokio::test]
async fn a_process_killed_before_it_was_started_has_its_own_code_and_is_reaped() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.create("a", &["/bin/sleep", "1000"]).await;
    pod.shim.kill(&container, 9, false, LONG).await.unwrap();
    assert_eq!(pod.wait(&container).await.code, 137);
    assert_eq!(zombies(pod.process.pid), 0);
    assert_eq!(pod.shim.delete(&container).await.unwrap().code, 137);
    pod.finish().await;
}

#[tokio::test]
async fn a_process_that_ends_while_somebody_traces_it_has_its_own_code() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let script = "while [ ! -e /tmp/go ]; do :; done; exit 7";
    let container = pod.create("a", &["/bin/sh", "-c", script]).await;
    let pid = pod.shim.start(&container).await.unwrap();
    // As strace(1) on the node does, or gdb(1) in a debugging container.
    let traced = Pid::from_raw(i32::try_from(pid).unwrap());
    ptrace::seize(traced, ptrace::Options::empty()).unwrap();
    std::fs::write(pod.dir.path().join("a/rootfs/tmp/go"), "").unwrap();
    wait_for("it does not end", || zombies(pod.process.pid) == 1).await;
    let shim = pod.shim.clone();
    let mut exit = Box::pin(shim.wait(&container));
    // Its end is its tracer's first.
    let early = timeout(std::time::Duration::from_millis(300), exit.as_mut()).await;
    let seen = waitpid(traced, Some(WaitPidFlag::__WALL)).unwrap();
    assert_eq!(seen, WaitStatus::Exited(traced, 7));
    let exit = match early {
        Ok(exit) => exit,
        Err(_) => timeout(LONG, exit).await.unwrap(),
    };
    assert_eq!(exit.unwrap().code, 7);
    assert_eq!(zombies(pod.process.pid), 0);
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}
