//! Pods on the real shim, network and snapshots: what the engine promises a front.

mod attach;
mod client;
mod node;
mod restart;

use std::time::Duration;

use berth_model::container::ExitReason;
use berth_model::sandbox::NamespaceMode;
use berth_model::{ContainerState, ErrorKind, SandboxState};

use node::{Node, container_spec, run};

const GRACE: Duration = Duration::from_secs(5);

#[test]
fn a_pod_comes_up_writes_its_log_and_goes_away() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("web").await;
        let status = node.engine.sandbox(&sandbox).unwrap();
        assert_eq!(status.state, SandboxState::Ready);
        let address = status.ip.expect("it has a network").to_string();

        let id = node
            .create(&sandbox, "main", "hostname; cat /etc/hosts; id; ip addr; exec sleep 1000")
            .await;
        assert_eq!(node.engine.container(&id).unwrap().state, ContainerState::Created);
        node.start_container(&id).await;
        assert!(node.engine.container(&id).unwrap().pid().is_some());

        let out =
            node.engine.exec_sync(&id, vec!["cat".into(), "/etc/hostname".into()], None).await;
        assert_eq!(out.unwrap().stdout, b"web-1\n");
        let stats = node.engine.container_stats(&id).await.unwrap();
        assert!(stats.cgroup.expect("it runs").usage.memory.expect("counted").bytes > 0);
        assert!(stats.writable_layer.is_some());
        let stats = node.engine.sandbox_stats(&sandbox).await.unwrap();
        assert!(stats.network.is_some() && stats.containers.len() == 1);

        // The last that the script prints.
        let log = node.log_with("web", "main", &format!("inet {address}")).await;
        assert!(log.contains("web-1") && log.contains("uid=0"), "{log}");
        node.engine.stop_container(&id, Duration::ZERO).await.unwrap();
        assert_eq!(node.exited(&id).await, (137, ExitReason::Error));

        node.engine.remove_container(&id).await.unwrap();
        node.engine.remove_container(&id).await.unwrap();
        node.engine.stop_sandbox(&sandbox).await.unwrap();
        node.engine.stop_sandbox(&sandbox).await.unwrap();
        let status = node.engine.sandbox(&sandbox).unwrap();
        assert_eq!((status.state, status.ip), (SandboxState::NotReady, None));
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(node.engine.sandbox(&sandbox).unwrap_err().kind(), ErrorKind::NotFound);
        node.assert_clean().await;
    });
}

#[test]
fn exits_have_their_codes_and_reasons() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("exits").await;
        for (name, script, expected) in [
            ("ok", "true", (0, ExitReason::Completed)),
            ("seven", "exit 7", (7, ExitReason::Error)),
        ] {
            let id = node.create(&sandbox, name, script).await;
            node.start_container(&id).await;
            assert_eq!(node.exited(&id).await, expected);
            let again = node.engine.start_container(&id).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::FailedPrecondition, "{again}");
        }
        let mut spec = container_spec("absent", "");
        spec.command = vec!["/bin/nonexistent".into()];
        let id = node.engine.create_container(&sandbox, spec).await.unwrap();
        let error = node.engine.start_container(&id).await.unwrap_err();
        assert!(error.to_string().contains("/bin/nonexistent"), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert_eq!(node.exited(&id).await, (128, ExitReason::StartError));

        // A buffer four times as large as the limit, and filled.
        let mut spec = container_spec("oom", "exec dd if=/dev/zero of=/dev/null bs=64M count=1");
        spec.resources.memory_limit = 16 << 20;
        let id = node.engine.create_container(&sandbox, spec).await.unwrap();
        node.start_container(&id).await;
        let (code, reason) = node.exited(&id).await;
        assert_eq!(reason, ExitReason::OomKilled, "code {code}");

        node.engine.remove_sandbox(&sandbox).await.unwrap();
        assert!(node.engine.containers().is_empty());
        node.assert_clean().await;
    });
}

#[test]
fn a_stop_waits_for_the_grace_period_and_then_kills() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("stop").await;
        let polite = node
            .create(&sandbox, "polite", "trap 'exit 3' TERM; while :; do sleep 0.05; done")
            .await;
        let stubborn =
            node.create(&sandbox, "stubborn", "trap '' TERM; while :; do sleep 0.05; done").await;
        node.start_container(&polite).await;
        node.start_container(&stubborn).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.engine.stop_container(&polite, GRACE).await.unwrap();
        assert_eq!(node.exited(&polite).await, (3, ExitReason::Error));
        let began = std::time::Instant::now();
        node.engine.stop_container(&stubborn, Duration::from_millis(300)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert_eq!(node.exited(&stubborn).await, (137, ExitReason::Error));
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_command_that_outlives_its_timeout_is_killed() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("exec").await;
        let id = node.create(&sandbox, "main", "exec sleep 1000").await;
        node.start_container(&id).await;
        let command = |text: &str| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()];
        let out = node.engine.exec_sync(&id, command("echo out; echo err >&2; exit 4"), None).await;
        let out = out.unwrap();
        assert_eq!((&out.stdout[..], &out.stderr[..], out.code), (&b"out\n"[..], &b"err\n"[..], 4));
        let limit = Some(Duration::from_millis(300));
        let late = node.engine.exec_sync(&id, command("sleep 60"), limit).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
        let absent = node.engine.exec_sync(&id, vec!["/bin/nonexistent".into()], None).await;
        let absent = absent.unwrap_err();
        assert!(absent.to_string().contains("/bin/nonexistent"), "{absent}");
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_retry_joins_or_finds_the_work_of_the_first_request() {
    run(|| async {
        let node = Node::start().await;
        let spec = node.sandbox_spec("twice");
        let (one, two) = tokio::join!(
            node.engine.run_sandbox(spec.clone()),
            node.engine.run_sandbox(spec.clone())
        );
        let sandbox = one.unwrap();
        assert_eq!(two.unwrap(), sandbox);
        assert_eq!(node.engine.run_sandbox(spec).await.unwrap(), sandbox);
        let spec = container_spec("main", "exec sleep 1000");
        let (one, two) = tokio::join!(
            node.engine.create_container(&sandbox, spec.clone()),
            node.engine.create_container(&sandbox, spec.clone())
        );
        let id = one.unwrap();
        assert_eq!(two.unwrap(), id);
        node.start_container(&id).await;
        node.start_container(&id).await;
        let taken = node.engine.create_container(&sandbox, spec).await.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn bad_requests_are_refused_by_name_and_leave_nothing() {
    run(|| async {
        let node = Node::start().await;
        let mut spec = node.sandbox_spec("bad");
        spec.runtime_handler = "kata".into();
        let error = node.engine.run_sandbox(spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        let mut spec = node.sandbox_spec("bad");
        spec.sysctls.insert("kernel.core_pattern".into(), "|/x".into());
        let error = node.engine.run_sandbox(spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");

        let sandbox = node.sandbox("bad").await;
        let mut spec = container_spec("image", "true");
        spec.image = "registry.test/absent:latest".into();
        let error = node.engine.create_container(&sandbox, spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let mut spec = container_spec("mount", "true");
        spec.mounts.push(berth_model::mount::BindMount {
            container_path: "/data".into(),
            host_path: "/dev/null/volume".into(),
            ..Default::default()
        });
        let error = node.engine.create_container(&sandbox, spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("/dev/null/volume"), "{error}");
        let mut spec = container_spec("user", "true");
        spec.security.run_as =
            berth_model::container::RunAs::Name { user: "nobody-here".into(), gid: None };
        let error = node.engine.create_container(&sandbox, spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        let mut spec = container_spec("log", "true");
        spec.log_path = Some("../escape.log".into());
        let error = node.engine.create_container(&sandbox, spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(node.engine.containers().is_empty());
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_killed_shim_leaves_its_containers_exited_and_its_sandbox_not_ready() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("lost").await;
        let id = node.create(&sandbox, "main", "exec sleep 1000").await;
        node.start_container(&id).await;
        let pid = node.engine.container(&id).unwrap().pid().unwrap();
        let shim = node.engine.sandbox(&sandbox).unwrap().shim_pid;
        assert_ne!(shim, 0);
        let shim = nix::unistd::Pid::from_raw(i32::try_from(shim).unwrap());
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();

        assert_eq!(node.exited(&id).await, (255, ExitReason::ShimLost));
        for _ in 0..200 {
            if node.engine.sandbox(&sandbox).unwrap().state == SandboxState::NotReady {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(node.engine.sandbox(&sandbox).unwrap().state, SandboxState::NotReady);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "it still runs: {status}");
        node.engine.stop_sandbox(&sandbox).await.unwrap();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_shim_that_hangs_is_bypassed() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("wedged").await;
        let id = node.create(&sandbox, "main", "exec sleep 1000").await;
        node.start_container(&id).await;
        let shim = node.engine.sandbox(&sandbox).unwrap().shim_pid;
        let shim = nix::unistd::Pid::from_raw(i32::try_from(shim).unwrap());
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();

        // It holds up neither a restart nor the lists.
        let began = std::time::Instant::now();
        let node = node.restart().await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(node.engine.container(&id).unwrap().pid().is_some());
        let began = std::time::Instant::now();
        node.engine.stop_container(&id, Duration::ZERO).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(node.exited(&id).await, (137, ExitReason::Error));
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn containers_of_a_sandbox_share_what_the_request_says() {
    run(|| async {
        let node = Node::start().await;
        let mut spec = node.sandbox_spec("share");
        spec.namespaces.pid = NamespaceMode::Pod;
        let sandbox = node.engine.run_sandbox(spec).await.unwrap();
        let shared = |name: &str, script: &str| {
            let mut spec = container_spec(name, script);
            spec.security.namespaces.pid = NamespaceMode::Pod;
            spec.security.run_as =
                berth_model::container::RunAs::Name { user: "web".into(), gid: None };
            spec
        };
        let script = "echo hello > /dev/shm/word; exec sleep 987";
        let one = node.engine.create_container(&sandbox, shared("one", script)).await.unwrap();
        let two =
            node.engine.create_container(&sandbox, shared("two", "exec sleep 1000")).await.unwrap();
        node.start_container(&one).await;
        node.start_container(&two).await;
        let look = "cat /dev/shm/word; id; cat /proc/[0-9]*/cmdline";
        let command = vec!["/bin/sh".into(), "-c".into(), look.into()];
        let seen = node.engine.exec_sync(&two, command, None).await.unwrap();
        let seen = String::from_utf8_lossy(&seen.stdout).replace('\0', " ");
        assert!(seen.contains("hello") && seen.contains("sleep 987"), "{seen}");
        assert!(seen.contains("uid=1000(web) gid=1001 groups=1001,50000(extra)"), "{seen}");
        let status = node.engine.container(&two).unwrap();
        assert_eq!((status.uid, status.gid), (1000, 1001));
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_sandbox_on_the_nodes_namespaces_has_none_of_its_own() {
    run(|| async {
        let node = Node::start().await;
        let mut spec = node.sandbox_spec("host");
        spec.namespaces = berth_model::sandbox::NamespaceOptions {
            network: NamespaceMode::Node,
            pid: NamespaceMode::Node,
            ipc: NamespaceMode::Node,
            user: None,
        };
        spec.hostname = String::new();
        let sandbox = node.engine.run_sandbox(spec).await.unwrap();
        assert_eq!(node.engine.sandbox(&sandbox).unwrap().ip, None);
        let mut spec = container_spec("main", "exec sleep 1000");
        spec.security.namespaces.pid = NamespaceMode::Node;
        let id = node.engine.create_container(&sandbox, spec).await.unwrap();
        node.start_container(&id).await;
        let pid = node.engine.container(&id).unwrap().pid().unwrap();
        let namespace =
            |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        for kind in ["pid", "ipc", "uts"] {
            assert_eq!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
        }
        assert_eq!(namespace(&pid.to_string(), "net"), namespace("thread-self", "net"));
        node.engine.stop_container(&id, Duration::ZERO).await.unwrap();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("rotate").await;
        let script = "while :; do echo line; sleep 0.02; done";
        let id = node.create(&sandbox, "main", script).await;
        node.start_container(&id).await;
        let path = node.engine.container(&id).unwrap().log_path.clone().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        node.engine.reopen_log(&id).await.unwrap();
        assert!(path.exists());
        node.log_with("rotate", "main", " stdout F line\n").await;
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn ten_pods_come_up_and_go_down_at_once() {
    run(|| async {
        let node = Node::start().await;
        let cycle = async |n: u32| {
            let name = format!("many-{n}");
            let sandbox = node.sandbox(&name).await;
            let id = node.create(&sandbox, "main", "exec sleep 1000").await;
            node.start_container(&id).await;
            node.engine.stop_container(&id, Duration::ZERO).await.unwrap();
            node.engine.remove_container(&id).await.unwrap();
            node.engine.stop_sandbox(&sandbox).await.unwrap();
            node.engine.remove_sandbox(&sandbox).await.unwrap();
        };
        tokio::join!(
            cycle(0),
            cycle(1),
            cycle(2),
            cycle(3),
            cycle(4),
            cycle(5),
            cycle(6),
            cycle(7),
            cycle(8),
            cycle(9),
        );
        assert!(node.engine.sandboxes().is_empty());
        node.assert_clean().await;
    });
}
