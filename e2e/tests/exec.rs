//! ExecSync: output, exit codes, deadlines.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_testkit::{Node, container_config};
use tonic::Code;

async fn ready() -> Result<(Node, String)> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let container = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    Ok((node, container))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_output_code_and_the_containers_world() -> Result<()> {
    let (mut node, container) = ready().await?;
    let answer =
        node.cri.exec(&container, &["sh", "-c", "cat; readlink /proc/1/exe; exit 9"], 10).await?;
    assert_eq!(String::from_utf8(answer.stdout)?, "/bin/busybox\n");
    assert_eq!(answer.exit_code, 9);
    let answer = node.cri.exec(&container, &["sh", "-c", "kill -9 $$"], 10).await?;
    assert_eq!(answer.exit_code, 137);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_is_killed_at_its_deadline() -> Result<()> {
    let (mut node, container) = ready().await?;
    let started = Instant::now();
    let refused =
        node.cri.exec(&container, &["sleep", "777"], 1).await.err().context("it ended")?;
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let seen = node.cri.exec(&container, &["ps"], 10).await?;
    let seen = String::from_utf8(seen.stdout)?;
    assert!(!seen.contains("sleep 777"), "{seen}");
    node.assert_clean().await
}

/// teeth: crates/cri/src/exec.rs: `fitted(output.stdout, output.stderr)` → `(output.stdout, output.stderr)`
/// teeth: crates/cri/src/exec.rs: `exit_code: output.code` → `exit_code: 0`
#[tokio::test(flavor = "multi_thread")]
async fn large_output_is_cut_to_one_message_and_keeps_its_code() -> Result<()> {
    /// What kubelet receives at most, less the answer's own fields.
    const ROOM: usize = (16 << 20) - 64;
    let (mut node, container) = ready().await?;
    for (script, stdout, stderr, code) in [
        ("head -c 5000000 /dev/zero", 5_000_000, 0, 0),
        ("head -c 20000000 /dev/zero; exit 3", ROOM, 0, 3),
        ("head -c 20000000 /dev/zero >&2; exit 4", 0, ROOM, 4),
        (
            "head -c 1000000 /dev/zero >&2; head -c 20000000 /dev/zero",
            ROOM - 1_000_000,
            1_000_000,
            0,
        ),
        // Neither stream takes the other's room.
        (
            "head -c 20000000 /dev/zero & head -c 20000000 /dev/zero >&2; wait; exit 3",
            ROOM / 2,
            ROOM / 2,
            3,
        ),
    ] {
        let answer = node.cri.exec(&container, &["sh", "-c", script], 60).await?;
        let found = (answer.stdout.len(), answer.stderr.len(), answer.exit_code);
        assert_eq!(found, (stdout, stderr, code), "{script}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_is_named() -> Result<()> {
    let (mut node, container) = ready().await?;
    let refused = node.cri.exec(&container, &["no-such-program"], 10).await;
    match refused {
        // As a shell would: the code says that the program was not found.
        Ok(answer) => assert!(matches!(answer.exit_code, 126 | 127), "{answer:?}"),
        Err(status) => assert!(status.message().contains("no-such-program"), "{status:?}"),
    }
    let refused = node.cri.exec(&container, &[], 10).await.err().context("nothing was run")?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let refused = node.cri.exec(&"f".repeat(64), &["true"], 10).await.err().context("it ran")?;
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_all_answer() -> Result<()> {
    let (node, container) = ready().await?;
    let commands: Vec<_> = (0..50)
        .map(|number| {
            let (mut cri, container) = (node.cri.clone(), container.clone());
            tokio::spawn(async move {
                let script = format!("echo {number}; exit {number}");
                (number, cri.exec(&container, &["sh", "-c", &script], 60).await)
            })
        })
        .collect();
    for command in commands {
        let (number, answer) = command.await?;
        let answer = answer?;
        assert_eq!(answer.exit_code, number);
        assert_eq!(String::from_utf8(answer.stdout)?, format!("{number}\n"));
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_does_not_run_takes_no_command() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = container_config("main", &image, &["true"]);
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    for state in ["created", "exited"] {
        let refused = node.cri.exec(&id, &["true"], 10).await.err();
        let refused = refused.with_context(|| format!("a command ran while {state}"))?;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains(state), "{refused:?}");
        if state == "created" {
            node.cri.start_container(&id).await?;
            node.wait_exit(&id).await?;
        }
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_container() -> Result<()> {
    let (mut node, container) = ready().await?;
    let mut other = node.cri.clone();
    let id = container.clone();
    let command = tokio::spawn(async move { other.exec(&id, &["sleep", "777"], 100).await });
    loop {
        let seen = node.cri.exec(&container, &["ps"], 10).await?;
        if String::from_utf8(seen.stdout)?.contains("sleep 777") {
            break;
        }
    }
    node.cri.stop_container(&container, 0).await?;
    assert_eq!(command.await??.exit_code, 137);
    node.assert_clean().await
}
