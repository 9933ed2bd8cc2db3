//! An engine that ends, and one that is opened on what another left.

use std::time::{Duration, Instant};

use berth_model::container::ExitReason;
use berth_model::{ContainerState, ErrorKind, SandboxState};

use crate::GRACE;
use crate::node::{Node, container_spec, run};

#[test]
fn a_restarted_engine_adopts_what_runs_and_learns_what_ended() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("restart").await;
        let runs = node.create(&sandbox, "runs", "exec sleep 1000").await;
        let ends = node.create(&sandbox, "ends", "sleep 0.3; exit 9").await;
        let waits = node.create(&sandbox, "waits", "exec sleep 1000").await;
        node.start_container(&runs).await;
        node.start_container(&ends).await;
        let before = node.engine.container(&runs).unwrap().pid();
        let address = node.engine.sandbox(&sandbox).unwrap().ip;
        node.engine.shutdown().await;
        tokio::time::sleep(Duration::from_millis(600)).await;

        let node = node.restart().await;
        let ContainerState::Exited { exit, .. } =
            node.engine.container(&ends).unwrap().state.clone()
        else {
            panic!("the end of a container is known when the engine is open")
        };
        assert_eq!((exit.code, exit.reason), (9, ExitReason::Error));
        assert_eq!(node.engine.container(&runs).unwrap().pid(), before);
        let status = node.engine.sandbox(&sandbox).unwrap();
        assert_eq!((status.state, status.ip), (SandboxState::Ready, address));
        node.start_container(&waits).await;
        let out = node.engine.exec_sync(&runs, vec!["echo".into(), "back".into()], None).await;
        assert_eq!(out.unwrap().stdout, b"back\n");
        node.engine.stop_container(&runs, Duration::ZERO).await.unwrap();
        assert_eq!(node.exited(&runs).await.0, 137);
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

/// teeth: crates/engine/src/exec.rs: `() = core.shutdown.cancelled()` → `() = std::future::pending()`
#[test]
fn a_command_ends_with_the_engine_and_its_container_does_not() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("ending").await;
        let id = node.create(&sandbox, "main", "exec sleep 1000").await;
        node.start_container(&id).await;
        let seconds = (10_000_000 + std::process::id()).to_string();
        let runs = || {
            let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
            let line = format!("sleep\0{seconds}\0");
            processes
                .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
                .any(|cmdline| cmdline == line.as_bytes())
        };
        let engine = node.engine.clone();
        let (command, container) = (vec!["sleep".into(), seconds.clone()], id.clone());
        let exec = tokio::spawn(async move { engine.exec_sync(&container, command, None).await });
        let until = Instant::now() + GRACE;
        while !runs() {
            assert!(Instant::now() < until, "the command does not run");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        node.engine.shutdown().await;
        assert!(!runs(), "the command outlived the engine");
        let error = exec.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");

        let node = node.restart().await;
        assert!(matches!(
            node.engine.container(&id).unwrap().state,
            ContainerState::Running { .. }
        ));
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn after_a_reboot_nothing_is_ready_and_everything_can_be_removed() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("reboot").await;
        let id = node.create(&sandbox, "main", "exec sleep 1000").await;
        node.start_container(&id).await;
        let shim = node.engine.sandbox(&sandbox).unwrap().shim_pid;
        node.engine.shutdown().await;
        // A reboot leaves no process, and nothing in the state directory.
        let shim = nix::unistd::Pid::from_raw(i32::try_from(shim).unwrap());
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
        node.forget_copies();
        let pods = node.pods();
        let mut record = pods.sandboxes().unwrap().remove(0);
        record.boot_id = "another boot".into();
        pods.put_sandbox(&record).unwrap();
        drop(pods);

        let node = node.restart().await;
        assert_eq!(node.engine.sandbox(&sandbox).unwrap().state, SandboxState::NotReady);
        assert_eq!(node.exited(&id).await, (255, ExitReason::ShimLost));
        let spec = container_spec("late", "true");
        let error = node.engine.create_container(&sandbox, spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_sandbox_whose_making_was_interrupted_is_undone() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("interrupted").await;
        node.engine.shutdown().await;
        let pods = node.pods();
        let mut record = pods.sandboxes().unwrap().remove(0);
        record.phase = berth_metadata::SandboxPhase::Creating;
        (record.shim, record.network) = (None, None);
        // What is being made has no copy yet.
        node.forget_copies();
        pods.put_sandbox(&record).unwrap();
        drop(pods);

        let node = node.restart().await;
        assert_eq!(node.engine.sandbox(&sandbox).unwrap_err().kind(), ErrorKind::NotFound);
        let again = node.sandbox("interrupted").await;
        node.engine.remove_sandbox(&again).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn a_shim_that_neither_record_nor_directory_names_is_swept() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("forgotten").await;
        let shim = node.engine.sandbox(&sandbox).unwrap().shim_pid;
        node.engine.shutdown().await;
        node.pods().remove_sandbox(&sandbox).unwrap();
        std::fs::remove_dir_all(node.path().join("state/sandboxes").join(sandbox.as_str()))
            .unwrap();

        let node = node.restart().await;
        let proc = std::path::PathBuf::from(format!("/proc/{shim}/ns"));
        let until = Instant::now() + GRACE;
        while proc.exists() {
            assert!(Instant::now() < until, "shim {shim} runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.assert_clean().await;
    });
}

#[test]
fn a_container_whose_start_and_end_were_missed_started_before_it_ended() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("missed").await;
        let id = node.create(&sandbox, "main", "sleep 0.3; exit 9").await;
        node.start_container(&id).await;
        node.engine.shutdown().await;
        let pods = node.pods();
        let mut record = pods.containers().unwrap().remove(0);
        record.state = ContainerState::Created;
        pods.put_container(&record).unwrap();
        drop(pods);
        tokio::time::sleep(Duration::from_millis(600)).await;

        let node = node.restart().await;
        let ContainerState::Exited { started_at, exit } =
            node.engine.container(&id).unwrap().state.clone()
        else {
            panic!("the end of a container is known when the engine is open")
        };
        assert_eq!(exit.code, 9);
        assert!(started_at <= exit.at, "{started_at:?} {:?}", exit.at);
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn an_engine_that_has_ended_does_not_say_that_it_stopped_something() {
    run(|| async {
        let node = Node::start().await;
        let sandbox = node.sandbox("late").await;
        let id = node.create(&sandbox, "main", "exec sleep 1000").await;
        node.start_container(&id).await;
        node.engine.shutdown().await;
        let engine = &node.engine;
        let answers = [
            engine.stop_container(&id, Duration::ZERO).await,
            engine.remove_container(&id).await,
            engine.stop_sandbox(&sandbox).await,
            engine.remove_sandbox(&sandbox).await,
        ];
        for answer in answers {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::Cancelled);
        }

        let node = node.restart().await;
        assert!(node.engine.container(&id).unwrap().pid().is_some());
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.engine.remove_sandbox(&sandbox).await.unwrap();
        node.assert_clean().await;
    });
}

#[test]
fn what_no_record_names_is_swept_at_the_start() {
    run(|| async {
        let node = Node::start().await;
        let state = node.path().join("state");
        let orphan = "f".repeat(64);
        for dir in ["sandboxes", "containers", "exec"] {
            std::fs::create_dir(state.join(dir).join(&orphan)).unwrap();
        }
        std::fs::write(state.join("s/orphan"), "").unwrap();
        let node = node.restart().await;
        node.assert_clean().await;
    });
}
