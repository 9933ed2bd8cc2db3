//! Containers that run and end.

use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use berth_cgroup::{CgroupPath, Hierarchy};
use berth_model::mount::Mount;
use berth_model::{ErrorKind, container::Timestamp};
use berth_shim_client::{
    ApiVersion, Bootstrap, EventKind, Input, Output, Process, Shim, TaskStatus,
};
use tokio::time::{sleep, timeout};

use crate::support::{LONG, Pod, is_root};

#[tokio::test]
async fn a_container_logs_ends_with_its_code_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let mut pod = Pod::start().await;
    let script = "echo out; echo err >&2; echo -n part; exit 7";
    let container = pod.create("a", &["/bin/sh", "-c", script]).await;
    let created = pod.shim.state(&container).await.unwrap();
    assert_eq!(created.status, TaskStatus::Created);
    assert!(pod.cgroup_exists("a"));

    let pid = pod.shim.start(&container).await.unwrap();
    assert_eq!(pid, created.pid);
    let exit = pod.wait(&container).await;
    assert_eq!(exit.code, 7);
    assert!(exit.at > Timestamp(1_700_000_000_000_000_000));
    let mut lines = pod.lines("a");
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P part"]);
    assert_eq!(pod.shim.state(&container).await.unwrap().status, TaskStatus::Stopped(exit));
    assert_eq!(pod.wait(&container).await, exit);

    assert_eq!(pod.shim.delete(&container).await.unwrap(), exit);
    assert!(!pod.cgroup_exists("a"));
    let gone = pod.shim.state(&container).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);

    let mut kinds = Vec::new();
    while kinds.len() < 4 {
        let event = timeout(LONG, pod.events.recv()).await.unwrap().unwrap();
        assert_eq!((event.container.as_str(), event.namespace.as_str()), ("a", "k8s.io"));
        kinds.push(event.kind);
    }
    let at = exit.at;
    assert_eq!(
        kinds,
        [
            EventKind::Created { pid },
            EventKind::Started { pid },
            EventKind::Exited { exec: None, pid, code: 7, at },
            EventKind::Deleted,
        ]
    );
    pod.finish().await;
}

#[tokio::test]
async fn the_shim_has_one_thread_and_cannot_be_dumped_whatever_it_does() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let proc = format!("/proc/{}", pod.process.pid);
    assert_eq!(std::fs::read_dir(format!("{proc}/task")).unwrap().count(), 1);
    // Not dumpable: its files belong to root even if its user were another; limits apply.
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
    assert!(status.contains("Threads:\t1\n"));
    assert_eq!(std::fs::read_link(format!("{proc}/cwd")).unwrap().to_str(), Some("/"));
    let session: Vec<u32> = std::fs::read_to_string(format!("{proc}/stat"))
        .unwrap()
        .rsplit(')')
        .next()
        .unwrap()
        .split_ascii_whitespace()
        .skip(1)
        .take(3)
        .map(|field| field.parse().unwrap())
        .collect();
    assert_eq!(session[1..], [pod.process.pid, pod.process.pid]);
    pod.shim.kill(&container, 9, false, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn signals_reach_one_process_or_all() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let trap = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let polite = pod.run("polite", &["/bin/sh", "-c", trap]).await;
    let rude = pod.run("rude", &["/bin/sh", "-c", "sleep 100 & sleep 100 & wait"]).await;
    pod.expect("polite", &["stdout F ready"]).await;

    pod.shim.kill(&polite, 15, false, LONG).await.unwrap();
    assert_eq!(pod.wait(&polite).await.code, 3);
    pod.expect("polite", &["stdout F ready", "stdout F got"]).await;
    let again = pod.shim.kill(&polite, 15, false, LONG).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);

    while pod.shim.pids(&rude).await.unwrap().len() < 3 {
        sleep(Duration::from_millis(5)).await;
    }
    let bad = pod.shim.kill(&rude, 99, false, LONG).await.unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::InvalidArgument);
    let running = pod.shim.delete(&rude).await.unwrap_err();
    assert_eq!(running.kind(), ErrorKind::FailedPrecondition);
    pod.shim.kill(&rude, 9, true, LONG).await.unwrap();
    assert_eq!(pod.wait(&rude).await.code, 137);
    assert_eq!(pod.shim.pids(&rude).await.unwrap(), Vec::<u32>::new());

    pod.shim.delete(&polite).await.unwrap();
    pod.shim.delete(&rude).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_named_and_ends_with_128() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    for (id, program, kind) in
        [("a", "/bin/none", ErrorKind::NotFound), ("b", "/proc", ErrorKind::PermissionDenied)]
    {
        let container = pod.create(id, &[program]).await;
        let error = pod.shim.start(&container).await.unwrap_err();
        let words = error.exec_failure().unwrap_or_else(|| panic!("{error}"));
        assert!(words.starts_with(&format!("exec {program}: ")), "{words}");
        assert_eq!(error.kind(), kind, "{words}");
        assert_eq!(pod.wait(&container).await.code, 128);
        pod.shim.delete(&container).await.unwrap();
    }
    pod.finish().await;
}

#[tokio::test]
async fn what_cannot_be_created_leaves_its_id_free() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let bundle = pod.bundle("a", &["/bin/sleep", "100"], |spec| {
        spec["mounts"].as_array_mut().unwrap().push(serde_json::json!({
            "destination": "/data", "type": "bind", "source": "/nonexistent/source",
            "options": ["rbind"]
        }));
    });
    let wanted = pod.wanted("a", bundle);
    let error = pod.shim.create(&wanted).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/source"), "{error}");
    assert!(!pod.cgroup_exists("a"));
    std::fs::remove_dir_all(pod.dir.path().join("a")).unwrap();

    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    let twice = pod.shim.create(&pod.wanted("a", pod.dir.path().join("a"))).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
    let restart = pod.shim.start(&container).await.unwrap_err();
    assert_eq!(restart.kind(), ErrorKind::FailedPrecondition);
    pod.shim.kill(&container, 9, true, LONG).await.unwrap();
    pod.wait(&container).await;
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_container_that_never_started_can_be_deleted() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.create("a", &["/bin/sleep", "100"]).await;
    pod.shim.delete(&container).await.unwrap();
    assert!(!pod.cgroup_exists("a"));
    pod.finish().await;
}

#[tokio::test]
async fn root_file_systems_are_mounted_inside_and_seen_by_nobody_else() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let bundle = pod.bundle("a", &["/bin/cat", "/extra"], |_| {});
    let lower = bundle.join("lower");
    std::fs::rename(bundle.join("rootfs"), &lower).unwrap();
    std::fs::write(lower.join("extra"), "from below\n").unwrap();
    for name in ["rootfs", "upper", "work"] {
        std::fs::create_dir(bundle.join(name)).unwrap();
    }
    let mut wanted = pod.wanted("a", bundle.clone());
    let option = |name: &str, dir: &str| format!("{name}={}", bundle.join(dir).display());
    wanted.rootfs = vec![Mount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            option("lowerdir", "lower"),
            option("upperdir", "upper"),
            option("workdir", "work"),
        ],
    }];
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    assert_eq!(pod.lines("a"), ["stdout F from below"]);
    assert_eq!(std::fs::read_dir(bundle.join("rootfs")).unwrap().count(), 0);
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn version_2_of_the_task_api_answers_too() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let address = pod.shim.address().to_owned();
    let old = Bootstrap { version: ApiVersion::V2, address };
    let shim = Shim::connect(&old, LONG, false).await.unwrap();
    assert_eq!(shim.shim_pid("").await.unwrap(), pod.process.pid);
    assert_eq!(shim.bootstrap(), old);
    drop(shim);
    pod.finish().await;
}

#[tokio::test]
async fn held_input_ends_when_it_is_closed() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let mut wanted = pod.wanted("a", pod.bundle("a", &["/bin/cat"], |_| {}));
    wanted.stdin = Input::Hold;
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    let early = timeout(Duration::from_millis(200), pod.shim.wait(&wanted.id)).await;
    assert!(early.is_err(), "cat ended although its input is open");
    pod.shim.close_stdin(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn input_through_a_fifo_outlives_its_writers_and_ends_when_it_is_closed() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let fifo = pod.dir.path().join("in");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut wanted = pod.wanted("a", pod.bundle("a", &["/bin/cat"], |_| {}));
    wanted.stdin = Input::Fifo(fifo.clone());
    pod.shim.create(&wanted).await.unwrap();
    // Nobody reads yet: a client's write waits until the start.
    let mut writing = std::fs::OpenOptions::new();
    writing.write(true).custom_flags(nix::libc::O_NONBLOCK);
    let early = writing.open(&fifo).unwrap_err();
    assert_eq!(early.raw_os_error(), Some(nix::libc::ENXIO));
    pod.shim.start(&wanted.id).await.unwrap();
    std::fs::write(&fifo, "first\n").unwrap();
    pod.expect("a", &["stdout F first"]).await;
    std::fs::write(&fifo, "second\n").unwrap();
    pod.expect("a", &["stdout F first", "stdout F second"]).await;
    let early = timeout(Duration::from_millis(100), pod.shim.wait(&wanted.id)).await;
    assert!(early.is_err(), "cat ended with a writer that may come back");
    let _writer = writing.open(&fifo).unwrap();
    pod.shim.close_stdin(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn what_was_written_before_the_input_was_closed_is_read() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let fifo = pod.dir.path().join("in");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = "sleep 0.3; cat | while read line; do last=$line; echo $last; done";
    let mut wanted = pod.wanted("a", pod.bundle("a", &["/bin/sh", "-c", script], |_| {}));
    wanted.stdin = Input::Fifo(fifo.clone());
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    // More than one pipe holds: some is still in the FIFO when it is closed.
    let text: String = (0..20_000).map(|n| format!("{n:05}\n")).collect();
    let path = fifo.clone();
    let text_written = text.clone();
    tokio::task::spawn_blocking(move || std::fs::write(path, text_written).unwrap()).await.unwrap();
    pod.shim.close_stdin(&wanted.id).await.unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    let expected: Vec<_> = text.lines().map(|line| format!("stdout F {line}")).collect();
    assert!(pod.lines("a") == expected);
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_terminal_is_one_stream_and_has_a_size() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let script = "echo out; echo err >&2; read line; stty size";
    let bundle = pod.bundle("a", &["/bin/sh", "-c", script], |spec| {
        spec["process"]["terminal"] = true.into();
    });
    let fifo = pod.dir.path().join("in");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut wanted = pod.wanted("a", bundle);
    wanted.terminal = true;
    wanted.stderr = Output::Null;
    wanted.stdin = Input::Fifo(fifo.clone());
    pod.shim.create(&wanted).await.unwrap();
    pod.shim.resize(&wanted.id, 132, 43).await.unwrap();
    pod.shim.start(&wanted.id).await.unwrap();
    // No carriage returns: as runc does, the runtime turns off ONLCR (termios(3)).
    pod.expect("a", &["stdout F out", "stdout F err"]).await;
    std::fs::write(&fifo, "go\n").unwrap();
    assert_eq!(pod.wait(&wanted.id).await.code, 0);
    let expected = ["stdout F out", "stdout F err", "stdout F go", "stdout F 43 132"];
    assert_eq!(pod.lines("a"), expected);
    pod.shim.delete(&wanted.id).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_paused_container_stands_still() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sh", "-c", "while :; do echo x; sleep 0.02; done"]).await;
    while pod.lines("a").len() < 2 {
        sleep(Duration::from_millis(5)).await;
    }
    pod.shim.pause(&container).await.unwrap();
    assert_eq!(pod.shim.state(&container).await.unwrap().status, TaskStatus::Paused);
    sleep(Duration::from_millis(50)).await;
    let before = pod.lines("a").len();
    sleep(Duration::from_millis(150)).await;
    assert_eq!(pod.lines("a").len(), before);
    pod.shim.resume(&container).await.unwrap();
    while pod.lines("a").len() == before {
        sleep(Duration::from_millis(5)).await;
    }
    let (kind, metrics) = pod.shim.stats(&container).await.unwrap();
    assert_eq!(kind, "io.containerd.cgroups.v2.Metrics");
    assert!(!metrics.is_empty());
    pod.shim.pause(&container).await.unwrap();
    pod.shim.kill(Process::from(&container), 9, false, LONG).await.unwrap();
    assert_eq!(pod.wait(&container).await.code, 137);
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn limits_change_while_a_container_runs() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let container = pod.run("a", &["/bin/sleep", "100"]).await;
    pod.shim.update(&container, br#"{"memory":{"limit":67108864}}"#).await.unwrap();
    pod.shim.update(&container, br#"{"pids":{"limit":5}}"#).await.unwrap();
    let path = CgroupPath::new(&format!("{}/a", pod.cgroup)).unwrap();
    let usage = Hierarchy::detect().unwrap().open(&path).unwrap().usage().unwrap();
    assert_eq!(usage.memory.unwrap().limit_bytes, Some(64 << 20));
    for bad in [br#"{"memory":{"limit":"#.as_slice(), br#"{"memory":{"swappiness":3}}"#] {
        pod.shim.update(&container, bad).await.unwrap_err();
    }
    pod.shim.kill(&container, 9, false, LONG).await.unwrap();
    pod.wait(&container).await;
    let late = pod.shim.update(&container, b"{}").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::FailedPrecondition);
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}
