//! What the containers of a sandbox share.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use berth_model::ErrorKind;
use berth_shim_client::SandboxOptions;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{LONG, Pod, is_root, set_namespace};

#[tokio::test]
async fn containers_share_dev_shm_and_it_has_a_size() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let options = SandboxOptions { shm_size: 1 << 20, share_pid: false, user: None };
    pod.shim.sandbox_create(&pod.id, pod.dir.path(), options).await.unwrap();
    assert_eq!(pod.shim.sandbox_start(&pod.id).await.unwrap(), 0);
    let shm = |spec: &mut serde_json::Value| {
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/dev/shm", "type": "berth-shared", "source": "shm"}));
    };
    let write = "echo hello > /dev/shm/a; sleep 100";
    let writer = pod.create_with("w", &["/bin/sh", "-c", write], shm).await;
    pod.shim.start(&writer).await.unwrap();
    let read = "until cat /dev/shm/a 2>/dev/null; do sleep 0.02; done;
                busybox dd if=/dev/zero of=/dev/shm/b bs=1024 count=2048 2>/dev/null || echo full";
    let reader = pod
        .create_with("r", &["/bin/sh", "-c", read], |spec| {
            shm(spec);
            spec["linux"]["devices"] = json!([
                {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 438}
            ]);
        })
        .await;
    pod.shim.start(&reader).await.unwrap();
    assert_eq!(pod.wait(&reader).await.code, 0);
    assert_eq!(pod.lines("r"), ["stdout F hello", "stdout F full"]);

    let status = pod.shim.sandbox_status(&pod.id).await.unwrap();
    assert_eq!(status.state, "SANDBOX_READY");
    pod.shim.sandbox_ping(&pod.id, LONG).await.unwrap();
    pod.shim.sandbox_stop(&pod.id, LONG).await.unwrap();
    pod.shim.sandbox_stop(&pod.id, LONG).await.unwrap();
    assert_eq!(pod.wait(&writer).await.code, 137);
    let wanted = pod.wanted("late", pod.bundle("late", &["/bin/echo"], |_| {}));
    let late = pod.shim.create(&wanted).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::FailedPrecondition);
    let status = pod.shim.sandbox_status(&pod.id).await.unwrap();
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    pod.shim.sandbox_shutdown(&pod.id).await.unwrap();
    pod.finished().await;
}

#[tokio::test]
async fn containers_share_a_pid_namespace_whose_init_has_nothing() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let options = SandboxOptions { shm_size: 0, share_pid: true, user: None };
    pod.shim.sandbox_create(&pod.id, pod.dir.path(), options).await.unwrap();
    let init = pod.shim.sandbox_start(&pod.id).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    for line in
        ["Uid:\t65534\t65534\t65534\t65534\n", "CapPrm:\t0000000000000000\n", "NoNewPrivs:\t1\n"]
    {
        assert!(status.contains(line), "{status}");
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{init}/fd")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(format!("/proc/{init}/root")).unwrap().count(), 0);

    let share = |spec: &mut serde_json::Value| set_namespace(spec, "pid", Some("/proc/self/fd/13"));
    let first = pod.create_with("a", &["/bin/sleep", "100"], share).await;
    pod.shim.start(&first).await.unwrap();
    // An orphan of a container is reaped by the init, not by its container.
    let script = "sh -c 'sleep 0.1 &'; echo $$; ps -o pid,comm; kill -9 1; sleep 0.3; ps -o stat";
    let second = pod.create_with("b", &["/bin/sh", "-c", script], share).await;
    pod.shim.start(&second).await.unwrap();
    assert_eq!(pod.wait(&second).await.code, 0);
    let lines = pod.lines("b").join("\n");
    assert!(lines.contains("1 berth-init") && lines.contains("sleep"), "{lines}");
    assert!(!lines.contains('Z'), "a zombie: {lines}");

    let stopped = pod.shim.clone();
    let id = pod.id.clone();
    let waiting = tokio::spawn(async move { stopped.sandbox_wait(&id).await });
    pod.shim.sandbox_stop(&pod.id, LONG).await.unwrap();
    timeout(LONG, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(pod.wait(&first).await.code, 137);
    assert!(!std::path::Path::new(&format!("/proc/{init}")).exists());
    pod.shim.sandbox_shutdown(&pod.id).await.unwrap();
    pod.finished().await;
}

#[tokio::test]
async fn a_namespace_that_was_handed_over_is_used_and_dropped_at_stop() {
    if !is_root() {
        return;
    }
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS).unwrap();
        nix::unistd::sethostname("handed-over").unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/uts").unwrap())
    });
    let pod = Pod::start_with(vec![(made.join().unwrap(), 12)]).await;
    pod.shim.sandbox_create(&pod.id, pod.dir.path(), SandboxOptions::default()).await.unwrap();
    pod.shim.sandbox_start(&pod.id).await.unwrap();
    let container = pod
        .create_with("a", &["/bin/cat", "/proc/sys/kernel/hostname"], |spec| {
            set_namespace(spec, "uts", Some("/proc/self/fd/12"));
            spec.as_object_mut().unwrap().remove("hostname");
        })
        .await;
    pod.shim.start(&container).await.unwrap();
    assert_eq!(pod.wait(&container).await.code, 0);
    assert_eq!(pod.lines("a"), ["stdout F handed-over"]);
    let fd = format!("/proc/{}/fd/12", pod.process.pid);
    assert!(std::fs::read_link(&fd).unwrap().to_string_lossy().starts_with("uts:["));
    pod.shim.sandbox_stop(&pod.id, LONG).await.unwrap();
    assert!(std::fs::read_link(&fd).is_err());
    pod.shim.sandbox_shutdown(&pod.id).await.unwrap();
    pod.finished().await;
}

#[tokio::test]
async fn a_sandbox_is_known_by_its_id_only() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let error = pod.shim.sandbox_start(&pod.id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    pod.shim.sandbox_create(&pod.id, pod.dir.path(), SandboxOptions::default()).await.unwrap();
    // A sandbox in use keeps the shim, whatever the Task API says.
    pod.shim.shutdown(pod.id.as_str()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    pod.shim.sandbox_ping(&pod.id, LONG).await.unwrap();
    pod.shim.sandbox_shutdown(&pod.id).await.unwrap();
    pod.finished().await;
}
