//! What happens when somebody dies: the client, the shim, an orphan.

use std::time::Duration;

use berth_cgroup::{CgroupPath, Hierarchy};
use berth_shim_client::{Shim, TaskStatus, delete, start};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

use crate::support::{LONG, Pod, is_root, request, runtime, set_namespace};

#[tokio::test]
async fn a_client_that_comes_back_finds_everything_and_the_exit_code() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sh", "-c", "sleep 0.3; echo late; exit 5"]).await;
    let bootstrap = pod.shim.bootstrap();
    // Half a creation must go on without its client.
    let wanted = pod.wanted("b", pod.bundle("b", &["/bin/sleep", "100"], |_| {}));
    let shim = pod.shim.clone();
    let creating = tokio::spawn(async move { shim.create(&wanted).await });
    tokio::task::yield_now().await;
    creating.abort();

    pod.started.shim = Shim::connect(&bootstrap, LONG, false).await.unwrap();
    pod.shim = pod.started.shim.clone();
    sleep(Duration::from_millis(500)).await;
    let state = pod.shim.state(&container).await.unwrap();
    assert!(matches!(state.status, TaskStatus::Stopped(exit) if exit.code == 5), "{state:?}");
    assert_eq!(pod.lines("a"), ["stdout F late"]);
    pod.shim.delete(&container).await.unwrap();
    let other = berth_model::ContainerId::new("b").unwrap();
    match pod.shim.state(&other).await {
        Ok(state) => {
            assert_eq!(state.status, TaskStatus::Created);
            pod.shim.delete(&other).await.unwrap();
        }
        // The request never left the client.
        Err(error) => assert_eq!(error.kind(), berth_model::ErrorKind::NotFound),
    }
    pod.finish().await;
}

#[tokio::test]
async fn a_second_start_finds_the_same_shim() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let again = start(&runtime(), request(pod.dir.path(), &pod.id, Vec::new())).await.unwrap();
    assert_eq!(again.bootstrap, pod.started.bootstrap);
    assert_eq!(again.shim.peer(), Some(pod.process));
    drop(again);
    pod.finish().await;
}

#[tokio::test]
async fn a_killed_shim_is_noticed_and_its_container_is_cleaned_up_by_delete() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let bundle = pod.dir.path().join("a");
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let pids = pod.shim.pids(&container).await.unwrap();
    let waiting = {
        let shim = pod.shim.clone();
        tokio::spawn(async move { shim.wait(&container).await })
    };
    sleep(Duration::from_millis(50)).await;
    pod.process.kill(Signal::SIGKILL).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    let lost = timeout(LONG, waiting).await.unwrap().unwrap().unwrap_err();
    assert_eq!(lost.kind(), berth_model::ErrorKind::Unavailable);

    let mut cleaning = request(pod.dir.path(), &pod.id, Vec::new());
    cleaning.bundle = bundle;
    assert_eq!(delete(&runtime(), cleaning).await.unwrap().code, 137);
    assert!(!pod.cgroup_exists("a"));
    for pid in pids {
        // A zombie is init's business now, and soon gone.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "process {pid} is left: {stat}");
    }
    pod.finished().await;
}

#[tokio::test]
async fn delete_finds_the_cgroup_of_a_spec_that_names_none() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    // As containerd has it: the shim's id is the container's.
    let bundle = pod.bundle(pod.id.as_str(), &["/bin/sleep", "100"], |spec| {
        spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    });
    let wanted = pod.wanted(pod.id.as_str(), bundle.clone());
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let cgroup = CgroupPath::new(&format!("/berth/{}", pod.id)).unwrap();
    let hierarchy = Hierarchy::detect().unwrap();
    assert_eq!(hierarchy.open(&cgroup).unwrap().pids().unwrap().len(), 1);
    pod.process.kill(Signal::SIGKILL).unwrap();
    timeout(LONG, pod.shim.closed()).await.unwrap();
    let mut cleaning = request(pod.dir.path(), &pod.id, Vec::new());
    cleaning.bundle = bundle;
    let cleaned = delete(&runtime(), cleaning).await;
    let left = hierarchy.open(&cgroup);
    if let Ok(left) = &left {
        left.kill_all().unwrap();
    }
    assert_eq!(cleaned.unwrap().code, 137);
    assert!(left.is_err(), "the cgroup is left");
    pod.finished().await;
}

#[tokio::test]
async fn orphans_of_the_nodes_pid_namespace_are_killed_with_their_container_and_reaped() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let script = "sh -c 'sleep 0.05 & sleep 0.05 & sleep 100 & sleep 100 &'; sleep 0.3; exit 4";
    let container = pod
        .create_with("a", &["/bin/sh", "-c", script], |spec| set_namespace(spec, "pid", None))
        .await;
    pod.shim.start(&container).await.unwrap();
    assert_eq!(pod.wait(&container).await.code, 4);
    let cgroup = CgroupPath::new(&format!("{}/a", pod.cgroup)).unwrap();
    let cgroup = Hierarchy::detect().unwrap().open(&cgroup).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", pod.process.pid);
    timeout(LONG, async {
        while !cgroup.pids().unwrap().is_empty()
            || !std::fs::read_to_string(&children).unwrap().is_empty()
        {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("orphans or zombies are left");
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_shim_asked_to_end_waits_for_its_containers() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sh", "-c", "sleep 0.3; echo done"]).await;
    pod.process.kill(Signal::SIGTERM).unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(pod.process.exists());
    assert_eq!(pod.wait(&container).await.code, 0);
    timeout(LONG, pod.shim.closed()).await.unwrap();
    assert_eq!(pod.lines("a"), ["stdout F done"]);
    assert!(pod.cgroup_exists("a"), "whoever deletes removes it");
    let words = std::fs::read_to_string(pod.dir.path().join("shim.log")).unwrap();
    assert!(words.contains("asked to end"), "{words}");
}

#[tokio::test]
async fn a_shim_that_cannot_start_says_why() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let id = berth_model::SandboxId::new("x").unwrap();
    let mut wanted = request(dir.path(), &id, Vec::new());
    std::fs::write(dir.path().join("file"), "").unwrap();
    wanted.socket = Some(dir.path().join("file/shim.sock"));
    let error = start(&runtime(), wanted).await.unwrap_err();
    assert_eq!(error.kind(), berth_model::ErrorKind::Internal);
    let words = std::fs::read_to_string(dir.path().join("shim.log")).unwrap();
    assert!(words.contains("bind socket"), "{words}");
}

#[tokio::test]
async fn a_shim_whose_daemon_died_before_it_was_told_ends_by_itself() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("shim.sock");
    let (read, write) = nix::unistd::pipe().unwrap();
    drop(read);
    let started = std::process::Command::new(runtime().path)
        .args(["-namespace", "k8s.io", "-address", "/events", "-id", "orphan", "start"])
        .env("BERTH_SOCKET", &socket)
        .current_dir(dir.path())
        .stdin(std::process::Stdio::null())
        .stdout(write)
        .output()
        .unwrap();
    assert!(!started.status.success(), "{started:?}");
    assert!(!socket.exists());
    let orphan = |entry: &std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("-id\0orphan\0")
    };
    let deadline = std::time::Instant::now() + LONG;
    while std::fs::read_dir("/proc").unwrap().flatten().any(|entry| orphan(&entry)) {
        assert!(std::time::Instant::now() < deadline, "the shim lives");
        sleep(Duration::from_millis(5)).await;
    }
}
