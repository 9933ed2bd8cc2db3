//! Container logs: CRI format, partial lines, rotation.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, log};

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_are_cut_into_marked_parts_and_nothing_is_lost() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    // 40,000 bytes without a line feed, then a short line, then an unfinished one.
    let script =
        "head -c 40000 /dev/zero | tr '\\0' a; echo; echo short; echo err >&2; printf unfinished";
    let config = container_config("main", &image, &["sh", "-c", script]);
    let id = node.run(&pod, &config).await?;
    node.wait_exit(&id).await?;
    let lines = node.read_log("pod", "main")?;
    let partial: Vec<_> = lines.iter().filter(|line| line.partial).collect();
    assert!(partial.len() >= 2, "{} partial lines", partial.len());
    assert!(lines.iter().all(|line| line.text.len() <= 16 << 10));
    let stdout = log::text(&lines, "stdout");
    assert_eq!(stdout.lines().next().map(str::len), Some(40_000));
    assert!(stdout.lines().any(|line| line == "short"), "{}", &stdout[40_000..]);
    assert!(stdout.trim_end().ends_with("unfinished"));
    assert_eq!(log::text(&lines, "stderr"), "err\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_log_is_made_anew_and_no_line_is_lost() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let script =
        "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; sleep 1000";
    let config = container_config("main", &image, &["sh", "-c", script]);
    let id = node.run(&pod, &config).await?;
    let dir = node.log_directory("pod");
    let (current, rotated) = (dir.join("main.log"), dir.join("main.log.1"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::rename(&current, &rotated)?;
    let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
    node.cri.runtime.reopen_container_log(request).await?;
    assert!(current.exists(), "the log was not made before the answer");
    for _ in 0..1000 {
        if log::read(&current)?.iter().any(|line| line.text == "line 299") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut all = log::text(&log::read(&rotated)?, "stdout");
    all.push_str(&log::text(&log::read(&current)?, "stdout"));
    let expected: String = (0..300).map(|number| format!("line {number}\n")).collect();
    assert_eq!(all, expected);

    let request = v1::ReopenContainerLogRequest { container_id: "f".repeat(64) };
    let refused = node.cri.runtime.reopen_container_log(request).await.err().context("reopened")?;
    assert_eq!(refused.code(), tonic::Code::NotFound);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_of_a_log_are_made() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let mut config = container_config("main", &image, &["echo", "deep"]);
    config.log_path = "main/0.log".into();
    let id = node.run(&pod, &config).await?;
    node.wait_exit(&id).await?;
    let lines = log::read(&node.log_directory("pod").join("main/0.log"))?;
    assert_eq!(log::text(&lines, "stdout"), "deep\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_a_terminal_and_has_one_stream() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let mut config = container_config("main", &image, &["sh", "-c", "tty; echo err >&2"]);
    config.tty = true;
    let id = node.run(&pod, &config).await?;
    node.wait_exit(&id).await?;
    let lines = node.read_log("pod", "main")?;
    let stdout = log::text(&lines, "stdout");
    assert!(stdout.contains("/dev/pts/0"), "{stdout:?}");
    assert!(stdout.contains("err"), "{stdout:?}");
    assert_eq!(log::text(&lines, "stderr"), "");
    node.assert_clean().await
}
