//! The CRI log of a container.

use berth_model::ErrorKind;

use crate::support::{LONG, Pod, is_root};

#[tokio::test]
async fn a_renamed_log_is_opened_anew_and_no_line_is_lost() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let script = "n=0; while [ $n -lt 3000 ]; do echo line $n; n=$((n+1)); done";
    let container = pod.run("a", &["/bin/sh", "-c", script]).await;
    let mut old = Vec::new();
    for round in 0..5 {
        let path = pod.log("a").with_extension(round.to_string());
        std::fs::rename(pod.log("a"), &path).unwrap();
        match pod.shim.reopen_log(&container).await {
            Ok(()) => assert!(pod.log("a").exists(), "the log is not there at once"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
                assert!(!pod.log("a").exists(), "a failed reopen made a file");
                std::fs::rename(&path, pod.log("a")).unwrap();
                break;
            }
        }
        old.push(path);
    }
    assert_eq!(pod.wait(&container).await.code, 0);
    let mut text = String::new();
    for path in old.iter().chain([&pod.log("a")]) {
        text += &std::fs::read_to_string(path).unwrap_or_default();
    }
    let expected: Vec<String> = (0..3000).map(|n| format!("stdout F line {n}")).collect();
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert!(lines == expected, "{} lines", lines.len());

    let path = pod.log("a").with_extension("gone");
    std::fs::rename(pod.log("a"), path).unwrap();
    let error = pod.shim.reopen_log(&container).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(!pod.log("a").exists());
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_flood_on_both_streams_arrives_whole_and_in_order() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    let script = "seq 1 200000 & seq 1 200000 >&2; wait";
    let container = pod.run("a", &["/bin/sh", "-c", script]).await;
    assert_eq!(pod.wait(&container).await.code, 0);
    let lines = pod.lines("a");
    for stream in ["stdout", "stderr"] {
        let head = format!("{stream} F ");
        let texts = lines.iter().filter_map(|line| line.strip_prefix(&head));
        let in_order = texts.zip(1..).filter(|(text, n)| **text == n.to_string()).count();
        assert_eq!(in_order, 200_000, "{stream}");
    }
    assert_eq!(lines.len(), 400_000);
    pod.shim.delete(&container).await.unwrap();
    pod.finish().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_fails_the_creation() {
    if !is_root() {
        return;
    }
    let pod = Pod::start().await;
    std::fs::create_dir_all(pod.log("a").parent().unwrap().parent().unwrap()).unwrap();
    std::fs::write(pod.log("a").parent().unwrap(), "a file").unwrap();
    let wanted = pod.wanted("a", pod.bundle("a", &["/bin/echo"], |_| {}));
    let error = pod.shim.create(&wanted).await.unwrap_err();
    assert!(error.to_string().contains("0.log"), "{error}");
    assert!(!pod.cgroup_exists("a"));
    let _ = LONG;
    pod.finish().await;
}
