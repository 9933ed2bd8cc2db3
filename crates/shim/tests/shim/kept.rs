//! What a shim keeps for a daemon that is away: logs, exit codes and times.
//!
//! `BERTH_TEST_LOG_MIB` is how much a container logs meanwhile; the row of the failures table
//! asks for 100.

use std::time::{Duration, SystemTime};

use berth_model::ContainerId;
use berth_shim_client::{Exited, Shim, TaskStatus, delete};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::support::{LONG, Pod, count, is_root, request, runtime, wait_for};

/// The end of a container by the `delete` command, which containerd runs for a dead shim.
async fn by_delete(pod: &Pod, id: &str) -> Exited {
    let mut cleaning = request(pod.dir.path(), &pod.id, Vec::new());
    cleaning.bundle = pod.dir.path().join(id);
    delete(&runtime(), cleaning).await.unwrap()
}

/// Nanoseconds since the epoch at which the container wrote that file.
fn written(pod: &Pod, id: &str, file: &str) -> i128 {
    let path = pod.dir.path().join(id).join("rootfs").join(file);
    let at = std::fs::metadata(path).unwrap().modified().unwrap();
    i128::try_from(at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// The exit is the container's own, at the moment of its last deed and not at that of asking.
#[track_caller]
fn assert_true(pod: &Pod, id: &str, exit: Exited, code: i32) {
    assert_eq!(exit.code, code);
    let late = i128::from(exit.at.0) - written(pod, id, "tmp/last");
    // The file's time is that of the last tick.
    assert!((-20_000_000..1_000_000_000).contains(&late), "told {late} ns after the end");
}

#[tokio::test]
async fn while_the_daemon_is_down_no_log_byte_exit_code_or_time_is_lost() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    let mib = count("BERTH_TEST_LOG_MIB", 8);
    // 64 bytes a line, without what the log adds.
    let lines = mib * (1 << 20) / 64;
    let fill = "x".repeat(53);
    let print = format!("for (n = 1; n <= {lines}; n++) printf \"%010d{fill}\\n\", n");
    let script = format!("busybox awk 'BEGIN {{ {print} }}'; echo > /tmp/last; exit 42");
    let container = pod.create("a", &["/bin/sh", "-c", &script]).await;
    let bootstrap = pod.shim.bootstrap();
    pod.shim.start(&container).await.unwrap();
    // The daemon dies. It comes back to rotate the log, and dies again, twice.
    let mut rotated = Vec::new();
    for round in 0..2 {
        disconnect(&mut pod).await;
        sleep(Duration::from_millis(50)).await;
        let path = pod.log("a").with_extension(round.to_string());
        std::fs::rename(pod.log("a"), &path).unwrap();
        rotated.push(path);
        disconnect(&mut pod).await;
        let shim = Shim::connect(&bootstrap, LONG, false).await.unwrap();
        if shim.reopen_log(&container).await.is_err() {
            // It has ended: kubelet renames back.
            std::fs::rename(rotated.pop().unwrap(), pod.log("a")).unwrap();
        }
    }
    let last = pod.dir.path().join("a/rootfs/tmp/last");
    let until = std::time::Instant::now() + Duration::from_secs(300);
    while !last.exists() {
        assert!(std::time::Instant::now() < until, "it does not end");
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(1500)).await;

    pod.shim = Shim::connect(&bootstrap, LONG, false).await.unwrap();
    let state = pod.shim.state(&container).await.unwrap();
    let TaskStatus::Stopped(exit) = state.status else { panic!("{state:?}") };
    assert_true(&pod, "a", exit, 42);
    assert_eq!(pod.wait(&container).await, exit);
    let mut next = 1;
    for path in rotated.iter().chain([&pod.log("a")]) {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "a torn line");
        for line in text.lines() {
            let wanted = format!(" stdout F {next:010}{fill}");
            assert!(line.ends_with(&wanted), "{line:?} is not line {next}");
            next += 1;
        }
    }
    assert_eq!(next - 1, lines, "lines are lost");
    assert_eq!(pod.shim.delete(&container).await.unwrap(), exit);
    pod.finish().await;
}

/// Breaks the connection, as the death of a daemon does.
async fn disconnect(pod: &mut Pod) {
    let bootstrap = pod.shim.bootstrap();
    pod.shim = Shim::connect(&bootstrap, LONG, false).await.unwrap();
    pod.started.shim = pod.shim.clone();
}

async fn run_to_its_end(pod: &Pod, id: &str, code: i32) -> ContainerId {
    let script = format!("sleep 0.3; echo > /tmp/last; exit {code}");
    pod.run(id, &["/bin/sh", "-c", &script]).await
}

#[tokio::test]
async fn an_exit_that_nobody_waited_for_outlives_a_shim_told_to_end() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    run_to_its_end(&pod, "a", 7).await;
    run_to_its_end(&pod, "b", 8).await;
    pod.process.kill(Signal::SIGTERM).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    wait_for("the shim goes on", || !pod.process.exists()).await;
    sleep(Duration::from_millis(1200)).await;
    let (a, b) = (by_delete(&pod, "a").await, by_delete(&pod, "b").await);
    assert_true(&pod, "a", a, 7);
    assert_true(&pod, "b", b, 8);
    assert!(!pod.cgroup_exists("a") && !pod.cgroup_exists("b"));
    pod.finished().await;
}

#[tokio::test]
async fn an_exit_before_its_shim_was_killed_is_told_afterwards() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let ended = run_to_its_end(&pod, "a", 9).await;
    let exit = pod.wait(&ended).await;
    pod.run("b", &["/bin/sleep", "1000"]).await;
    pod.process.kill(Signal::SIGKILL).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    assert_eq!(by_delete(&pod, "a").await, exit);
    assert_true(&pod, "a", exit, 9);
    assert_eq!(by_delete(&pod, "b").await.code, 137);
    pod.finished().await;
}

#[tokio::test]
async fn a_container_made_while_its_shim_is_told_to_end_is_not_left_behind() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    run_to_its_end(&pod, "a", 1).await;
    pod.process.kill(Signal::SIGTERM).unwrap();
    let late = pod.run("b", &["/bin/sh", "-c", "sleep 1; echo > /tmp/last; exit 3"]).await;
    assert_eq!(pod.wait(&late).await.code, 3);
    timeout(LONG, pod.shim.closed()).await.unwrap();
    let exit = by_delete(&pod, "b").await;
    assert_true(&pod, "b", exit, 3);
    assert_eq!(by_delete(&pod, "a").await.code, 1);
    pod.finished().await;
}

#[tokio::test]
async fn what_could_not_be_started_is_kept_with_the_code_that_was_told() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    let container = pod.create("a", &["/bin/nothing"]).await;
    pod.shim.start(&container).await.unwrap_err();
    let exit = pod.wait(&container).await;
    assert_eq!(exit.code, 128);
    pod.process.kill(Signal::SIGKILL).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    assert_eq!(by_delete(&pod, "a").await, exit);
}
