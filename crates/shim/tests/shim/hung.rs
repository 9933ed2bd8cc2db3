//! A log on a file system that hangs: one that a process serves, and that process does not.

use std::path::Path;
use std::time::{Duration, Instant};

use berth_model::{ContainerId, ErrorKind};
use berth_shim_client::{CreateRequest, Output, TaskStatus};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::fuse::Served;
use crate::support::{LONG, Pod, is_alive, is_root, wait_for};

/// What the shim promises its caller while a log hangs.
const PROMPT: Duration = Duration::from_secs(3);

fn logging_to(pod: &Pod, id: &str, script: &str, log: &Path) -> CreateRequest {
    let mut wanted = pod.wanted(id, pod.bundle(id, &["/bin/sh", "-c", script], |_| {}));
    wanted.stdout = Output::CriLog(log.to_owned());
    wanted.stderr = Output::CriLog(log.to_owned());
    wanted
}

/// The shim answers for, and signals, a container whose log is somewhere else.
async fn serves(pod: &Pod, other: &ContainerId) {
    for _ in 0..10 {
        let begun = Instant::now();
        let state = timeout(LONG, pod.shim.state(other)).await.unwrap().unwrap();
        assert_eq!(state.status, TaskStatus::Running);
        pod.shim.kill(other, Signal::SIGCONT as i32, true, LONG).await.unwrap();
        assert!(begun.elapsed() < PROMPT, "the shim took {:?} to answer", begun.elapsed());
        sleep(Duration::from_millis(10)).await;
    }
}

/// The text of each line, from the first on; whatever there is, is whole and in order.
fn count_in_order(text: &str) -> usize {
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line");
    let lines = text.lines().enumerate();
    let whole = lines.filter(|(n, line)| line.ends_with(&format!(" stdout F line {n}"))).count();
    assert_eq!(whole, text.lines().count(), "lines are missing");
    whole
}

const COUNT: &str = "n=0; while [ $n -lt 20000 ]; do echo line $n; n=$((n+1)); done";

#[tokio::test]
async fn a_log_whose_file_system_hangs_stops_no_other_container_and_loses_nothing() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let log = pod.dir.path().join("fuse/0.log");
    let beat = "while :; do echo beat; sleep 0.02; done";
    let other = pod.run("b", &["/bin/sh", "-c", beat]).await;
    let wanted = logging_to(&pod, "a", COUNT, &log);
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    wait_for("nothing is logged", || !served.text().is_empty()).await;
    served.hang(true);
    // The container is behind a full pipe, and goes on when its log does.
    serves(&pod, &other).await;
    let beats = pod.lines("b").len();
    wait_for("the other log stands still", || pod.lines("b").len() > beats).await;
    assert_eq!(pod.shim.state(&wanted.id).await.unwrap().status, TaskStatus::Running);
    served.hang(false);
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    assert_eq!(count_in_order(&served.text()), 20_000);
    pod.shim.kill(&other, 9, true, LONG).await.unwrap();
    pod.wait(&other).await;
    pod.shim.delete(&other).await.unwrap();
    pod.shim.delete(&wanted.id).await.unwrap();
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_container_whose_log_hangs_is_killed_and_told_of() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let log = pod.dir.path().join("fuse/0.log");
    // It ends by no other way.
    let count = COUNT.replace("[ $n -lt 20000 ]", ":");
    let wanted = logging_to(&pod, "a", &count, &log);
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    wait_for("nothing is logged", || !served.text().is_empty()).await;
    served.hang(true);
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    pod.shim.kill(&wanted.id, 9, true, LONG).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 137);
    pod.shim.delete(&wanted.id).await.unwrap();
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    // What it said before is not lost with it: the writer goes on when it can.
    let before = served.text().len();
    served.hang(false);
    wait_for("nothing more is logged", || served.text().len() > before).await;
    wait_for("the writer goes on", || writers(&pod).is_empty()).await;
    count_in_order(&served.text());
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_since_its_file_system_hangs_fails_the_creation_alone() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    served.hang(true);
    let other = pod.run("b", &["/bin/sleep", "1000"]).await;
    let wanted = logging_to(&pod, "a", COUNT, &pod.dir.path().join("fuse/0.log"));
    let creating = {
        let (shim, wanted) = (pod.shim.clone(), wanted.clone());
        tokio::spawn(async move { shim.create(&wanted).await })
    };
    serves(&pod, &other).await;
    let error = timeout(LONG, creating).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("0.log"), "{error}");
    assert!(!pod.cgroup_exists("a"));
    served.hang(false);
    // And the next try works.
    pod.shim.create(&wanted).await.unwrap();
    // The writer that nobody waits for any more has its answer now, and ends.
    wait_for("not one writer", || writers(&pod).len() == 1).await;
    pod.shim.delete(&wanted.id).await.unwrap();
    let late = pod.shim.state(&wanted.id).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotFound);
    pod.shim.kill(&other, 9, true, LONG).await.unwrap();
    pod.wait(&other).await;
    pod.shim.delete(&other).await.unwrap();
    wait_for("a writer is left", || writers(&pod).is_empty()).await;
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_creation_whose_mount_hangs_stops_nobody_else_and_ends_when_it_can() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    served.hang(true);
    let other = pod.run("b", &["/bin/sleep", "1000"]).await;
    let source = pod.dir.path().join("fuse/nothing");
    let bundle = pod.bundle("a", &["/bin/echo"], |spec| {
        spec["mounts"].as_array_mut().unwrap().push(serde_json::json!({
            "destination": "/data", "type": "bind", "source": source, "options": ["bind"]
        }));
    });
    let wanted = pod.wanted("a", bundle);
    let creating = {
        let (shim, wanted) = (pod.shim.clone(), wanted.clone());
        tokio::spawn(async move { shim.create(&wanted).await })
    };
    serves(&pod, &other).await;
    let taken = pod.shim.create(&wanted).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    served.hang(false);
    let error = timeout(LONG, creating).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("fuse/nothing"), "{error}");
    assert!(!pod.cgroup_exists("a"));
    pod.shim.kill(&other, 9, true, LONG).await.unwrap();
    pod.wait(&other).await;
    pod.shim.delete(&other).await.unwrap();
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_shim_killed_while_a_creation_hangs_is_seen_to_be_gone_at_once() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    // It has begun to serve: the next question is the one that it has when it hangs.
    assert!(!pod.dir.path().join("fuse/other").exists());
    served.hang(true);
    let source = pod.dir.path().join("fuse/nothing");
    let bundle = pod.bundle("a", &["/bin/echo"], |spec| {
        spec["mounts"].as_array_mut().unwrap().push(serde_json::json!({
            "destination": "/data", "type": "bind", "source": source, "options": ["bind"]
        }));
    });
    let wanted = pod.wanted("a", bundle);
    let creating = {
        let shim = pod.shim.clone();
        tokio::spawn(async move { shim.create(&wanted).await })
    };
    let path = format!("/proc/{0}/task/{0}/children", pod.process.pid);
    wait_for("no creation hangs", || served.is_awaited()).await;
    let worker = std::fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    let worker = berth_shim_client::ProcessId::of(worker).unwrap();
    pod.process.kill(Signal::SIGKILL).unwrap();
    // The worker cannot die yet; it has nothing of the shim's that would keep its caller waiting.
    timeout(PROMPT, pod.shim.closed()).await.expect("the shim seems to be there");
    timeout(PROMPT, creating).await.unwrap().unwrap().unwrap_err();
    assert!(is_alive(worker));
    served.hang(false);
    wait_for("the worker goes on", || !is_alive(worker)).await;
    drop(served);
}

#[tokio::test]
async fn a_writer_that_dies_is_followed_by_another_and_its_log_is_reopened() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let log = pod.dir.path().join("fuse/0.log");
    let script = "while read line; do echo $line; done";
    let mut wanted = logging_to(&pod, "a", script, &log);
    let fifo = pod.dir.path().join("in");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    wanted.stdin = berth_shim_client::Input::Fifo(fifo.clone());
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    std::fs::write(&fifo, "one\n").unwrap();
    wait_for("nothing is logged", || served.text().ends_with("F one\n")).await;
    let [writer] = writers(&pod)[..] else { panic!("not one writer") };
    let writer = berth_shim_client::ProcessId::of(writer).unwrap();
    writer.kill(Signal::SIGKILL).unwrap();
    std::fs::write(&fifo, "two\n").unwrap();
    wait_for("nobody follows", || served.text().ends_with("F two\n")).await;
    pod.shim.reopen_log(&wanted.id).await.unwrap();
    pod.shim.close_stdin(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    pod.shim.delete(&wanted.id).await.unwrap();
    wait_for("a writer is left", || writers(&pod).is_empty()).await;
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_writer_that_dies_while_its_log_cannot_be_opened_is_followed_when_it_can() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let wanted = logging_to(&pod, "a", COUNT, &pod.dir.path().join("fuse/0.log"));
    pod.shim.create(&wanted).await.unwrap();
    let [writer] = writers(&pod)[..] else { panic!("not one writer") };
    served.refuse(true);
    berth_shim_client::ProcessId::of(writer).unwrap().kill(Signal::SIGKILL).unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let refused = || std::fs::read_to_string(pod.dir.path().join("shim.log")).unwrap();
    wait_for("nobody follows", || refused().contains("in a new writer")).await;
    assert_eq!(served.text(), "");
    served.refuse(false);
    // More than a pipe holds: it ends only if somebody reads.
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    assert_eq!(count_in_order(&served.text()), 20_000);
    pod.shim.delete(&wanted.id).await.unwrap();
    wait_for("a writer is left", || writers(&pod).is_empty()).await;
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_writer_that_dies_is_not_followed_once_its_container_is_deleted() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let wanted = logging_to(&pod, "a", COUNT, &pod.dir.path().join("fuse/0.log"));
    pod.shim.create(&wanted).await.unwrap();
    let [writer] = writers(&pod)[..] else { panic!("not one writer") };
    berth_shim_client::ProcessId::of(writer).unwrap().kill(Signal::SIGKILL).unwrap();
    wait_for("it does not die", || writers(&pod).is_empty()).await;
    pod.shim.delete(&wanted.id).await.unwrap();
    // Its successor would have been there by now, and have made the log anew.
    sleep(Duration::from_millis(1500)).await;
    assert!(writers(&pod).is_empty(), "somebody writes the log of a deleted container");
    drop(served);
    pod.finish().await;
}

#[tokio::test]
async fn a_writer_dies_with_its_shim() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let log = pod.dir.path().join("fuse/0.log");
    let wanted = logging_to(&pod, "a", COUNT, &log);
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    wait_for("nothing is logged", || !served.text().is_empty()).await;
    served.hang(true);
    let [writer] = writers(&pod)[..] else { panic!("not one writer") };
    let writer = berth_shim_client::ProcessId::of(writer).unwrap();
    pod.process.kill(Signal::SIGKILL).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    // It waits for an answer that the server has the question of already, and only then dies.
    served.hang(false);
    wait_for("the writer goes on", || !is_alive(writer)).await;
    drop(served);
}

/// The processes that write logs for a shim.
fn writers(pod: &Pod) -> Vec<u32> {
    let path = format!("/proc/{0}/task/{0}/children", pod.process.pid);
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_ascii_whitespace().map(|pid| pid.parse::<u32>().unwrap());
    let is_writer = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name == "berth-log\n")
    };
    children.filter(is_writer).collect()
}
