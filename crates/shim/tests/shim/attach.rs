//! Clients that are given a container's streams.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_model::ErrorKind;
use berth_shim_client::{AttachRequest, Attachment, Door, Error, Input, Output, Packet};
use tokio::time::{sleep, timeout};

use crate::fuse::Served;
use crate::support::{LONG, Pod, count, is_root, wait_for};

fn all(container: &berth_model::ContainerId) -> AttachRequest {
    AttachRequest {
        container: container.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        close_stdin: false,
    }
}

fn door(pod: &Pod) -> (PathBuf, Door) {
    let path = pod.dir.path().join("door");
    let door = Door::open(&path).unwrap();
    (path, door)
}

async fn attach(pod: &Pod, request: &AttachRequest) -> Result<Attachment, Error> {
    let (path, door) = door(pod);
    let attached = pod.shim.attach(request, door).await;
    assert!(!Path::new(&path).exists(), "the socket is left");
    attached
}

/// Hears until standard output has `text`.
async fn hear(client: &Attachment, text: &str) -> String {
    let mut heard = String::new();
    let hearing = async {
        while !heard.contains(text) {
            match client.receive().await.unwrap() {
                Packet::Stdout(bytes) => heard += &String::from_utf8(bytes).unwrap(),
                Packet::Stderr(_) | Packet::InputTaken => {}
                other => panic!("{other:?} after {heard:?}"),
            }
        }
    };
    timeout(LONG, hearing).await.unwrap_or_else(|_| panic!("{text:?} is not heard"));
    heard
}

/// Open files of the shim.
fn files(pod: &Pod) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", pod.process.pid)).unwrap().count()
}

const ECHO: &str = "while read line; do echo got $line; done";

/// teeth: crates/shim/src/io/streams/clients.rs: `outlets.remove(&outlet);` → ``
/// teeth: crates/shim/src/io/attached.rs: `None => return Stop::Gone,` → `None => std::future::pending().await,`
#[tokio::test]
async fn d2_clients_that_vanish_leave_nothing_with_the_shim() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let mut wanted = pod.wanted("a", pod.bundle("a", &["/bin/sh", "-c", ECHO], |_| {}));
    wanted.stdin = Input::Hold;
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let first = attach(&pod, &all(&wanted.id)).await.unwrap();
    first.input(b"one\n").await.unwrap();
    hear(&first, "got one\n").await;
    drop(first);
    // The container is silent, so nobody finds out by writing to a client.
    let baseline = files(&pod);
    for round in 0..count("BERTH_TEST_CLIENTS", 200) {
        let client = attach(&pod, &all(&wanted.id)).await.unwrap();
        match round % 4 {
            // What a container does not read yet goes with the client, or is read.
            0 => client.input(b"").await.unwrap(),
            1 => client.end_input().await.unwrap(),
            _ => {}
        }
    }
    wait_for("files are left open", || files(&pod) <= baseline).await;
    let last = attach(&pod, &all(&wanted.id)).await.unwrap();
    last.input(b"last\n").await.unwrap();
    hear(&last, "got last\n").await;
    drop(last);
    pod.shim.close_stdin(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn what_has_no_streams_to_give_is_refused() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let created = pod.create("a", &["/bin/true"]).await;
    let early = attach(&pod, &all(&created)).await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::FailedPrecondition, "{early}");
    pod.shim.start(&created).await.unwrap_err();
    pod.wait(&created).await;
    let late = attach(&pod, &all(&created)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::FailedPrecondition, "{late}");
    pod.shim.delete(&created).await.unwrap();

    let mut wanted = pod.wanted("b", pod.bundle("b", &["/bin/sleep", "1000"], |_| {}));
    (wanted.stdout, wanted.stderr) = (Output::Null, Output::Null);
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let elsewhere = attach(&pod, &all(&wanted.id)).await.unwrap_err();
    assert_eq!(elsewhere.kind(), ErrorKind::FailedPrecondition, "{elsewhere}");
    assert!(elsewhere.to_string().contains("streams"), "{elsewhere}");
    pod.shim.kill(&wanted.id, 9, true, LONG).await.unwrap();
    pod.wait(&wanted.id).await;
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_container_that_ends_gives_its_last_words_to_who_reads_late() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let script = "read line; seq 1 50000; echo err >&2";
    let mut wanted = pod.wanted("a", pod.bundle("a", &["/bin/sh", "-c", script], |_| {}));
    wanted.stdin = Input::Hold;
    (wanted.stdout, wanted.stderr) = (Output::Drain, Output::Drain);
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let client = attach(&pod, &all(&wanted.id)).await.unwrap();
    client.input(b"go\n").await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    pod.shim.delete(&wanted.id).await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(LONG, client.receive()).await.unwrap().unwrap() {
            Packet::Stdout(bytes) => out.extend(bytes),
            Packet::Stderr(bytes) => err.extend(bytes),
            Packet::End => break,
            other => panic!("{other:?}"),
        }
    }
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    assert!(out == expected.into_bytes(), "{} bytes", out.len());
    assert_eq!(err, b"err\n");
    assert_eq!(client.receive().await.unwrap(), Packet::Lost);
    pod.finish().await;
}

/// The log is written by a process of its own there, which gives the clients their copies.
#[tokio::test]
async fn clients_hear_a_container_whose_log_is_served_by_others() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    pod.complains = true;
    let served = Served::mount(&pod.dir.path().join("fuse"));
    let mut wanted = pod.wanted("a", pod.bundle("a", &["/bin/sh", "-c", ECHO], |_| {}));
    wanted.stdin = Input::Hold;
    wanted.stdout = Output::CriLog(pod.dir.path().join("fuse/0.log"));
    wanted.stderr = wanted.stdout.clone();
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let (one, two) = (
        attach(&pod, &all(&wanted.id)).await.unwrap(),
        attach(&pod, &all(&wanted.id)).await.unwrap(),
    );
    one.input(b"first\n").await.unwrap();
    hear(&one, "got first\n").await;
    hear(&two, "got first\n").await;
    drop(two);
    // A writer that dies is followed by one that knows the client.
    let children = format!("/proc/{0}/task/{0}/children", pod.process.pid);
    let writer = std::fs::read_to_string(children).unwrap();
    let writer = writer
        .split_ascii_whitespace()
        .map(|pid| pid.parse::<u32>().unwrap())
        .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "berth-log\n");
    let writer = berth_shim_client::ProcessId::of(writer.unwrap()).unwrap();
    writer.kill(nix::sys::signal::Signal::SIGKILL).unwrap();
    let shim_log = pod.dir.path().join("shim.log");
    let said = || std::fs::read_to_string(&shim_log).unwrap().contains("another follows");
    wait_for("its death is not seen", said).await;
    // Heard by the follower, whenever that is there.
    sleep(Duration::from_millis(1200)).await;
    one.input(b"second\n").await.unwrap();
    hear(&one, "got second\n").await;
    pod.shim.close_stdin(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    while timeout(LONG, one.receive()).await.unwrap().unwrap() != Packet::End {}
    assert!(served.text().ends_with("F got second\n"), "{}", served.text());
    pod.shim.delete(&wanted.id).await.unwrap();
    drop(served);
    pod.finish().await;
}
