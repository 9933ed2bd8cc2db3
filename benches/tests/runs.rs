//! Whole runs against a node of our own: what is measured, and that nothing is left after
//! the end, an interruption, a failure, and a kill.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_testkit::Node;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest that anything may take that is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// A node, unless tests cannot have one here.
async fn node(test: &str) -> Result<Option<Node>> {
    if !nix::unistd::geteuid().is_root() {
        berth_testkit::skip(test, "not root");
        return Ok(None);
    }
    if std::env::var_os("BERTH_BIN_DIR").is_none() {
        berth_testkit::skip(test, "BERTH_BIN_DIR is not set: cargo xtask test sets it");
        return Ok(None);
    }
    Node::start().await.map(Some)
}

/// `berth-bench` on the daemon of `node`, which waits for no quiet machine.
fn bench(node: &Node, task: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-bench"));
    command.arg(task).arg("--socket").arg(node.daemon().socket());
    // In the node's cgroup, which is proven to be empty in the end.
    command
        .args(["--cgroup-parent", node.cgroup_base(), "--patience", "0"])
        .args(arguments)
        .env("TMPDIR", node.dir());
    command
}

fn report(file: &Path) -> Result<Value> {
    serde_json::from_slice(&std::fs::read(file)?).context("parse the report")
}

/// All samples of `metric` of the target at `index`, round by round.
fn rounds(report: &Value, metric: &str, index: usize) -> Result<Vec<Vec<f64>>> {
    let metrics = report["benches"][0]["metrics"].as_array().context("no metrics")?;
    let found = metrics.iter().find(|found| found["name"] == metric);
    let found = found.with_context(|| format!("{metric} is not in {metrics:?}"))?;
    Ok(serde_json::from_value(found["series"][index]["rounds"].clone())?)
}

/// Nothing of a run is on `node`, and the node itself leaves nothing.
async fn nothing_is_left(mut node: Node) -> Result<()> {
    let sandboxes = node.cri.sandboxes().await?;
    ensure!(sandboxes.is_empty(), "sandboxes are left: {sandboxes:?}");
    let request = berth_api::v1::ListImagesRequest::default();
    let images = node.cri.image.list_images(request).await?.into_inner().images;
    ensure!(images.is_empty(), "images are left: {images:?}");
    let left: Vec<_> = std::fs::read_dir(node.dir())?
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with("berth-bench-"))
        .collect();
    ensure!(left.is_empty(), "directories are left: {left:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_targets_have_their_rounds_and_up_is_the_sum_of_its_parts() -> Result<()> {
    let Some(node) = node("two_targets_have_their_rounds").await? else { return Ok(()) };
    let file = node.dir().join("start.json");
    let mut command = bench(&node, "start", &["--rounds", "2", "--pods", "2", "--warm-up", "1"]);
    command.arg("--versus").arg(node.daemon().socket()).arg("--json").arg(&file);
    let done = command.output()?;
    ensure!(done.status.success(), "{done:?}");

    let report = report(&file)?;
    let names = [&report["targets"][0]["name"], &report["targets"][1]["name"]];
    assert_eq!(names, ["berth", "berth (2)"]);
    for target in 0..2 {
        let up = rounds(&report, "up", target)?;
        assert_eq!(up.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        let parts = ["RunPodSandbox", "CreateContainer", "StartContainer", "first byte"];
        let parts = parts.map(|part| rounds(&report, part, target));
        for (round, number) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let part =
                |part: &Result<Vec<Vec<f64>>>| part.as_ref().map_or(0.0, |p| p[round][number]);
            let sum: f64 = parts.iter().map(part).sum();
            assert!(sum > 0.0 && (sum - up[round][number]).abs() < 1e-6, "{up:?} {parts:?}");
        }
        assert_eq!(rounds(&report, "settled", target)?.concat().len(), 2);
    }
    assert_eq!(report["benches"][0]["noise"]["turns"], 4);
    let shown = Command::new(env!("CARGO_BIN_EXE_berth-bench")).arg("show").arg(&file).output()?;
    let (told, again) = [&done, &shown].map(|run| String::from_utf8_lossy(&run.stdout)).into();
    ensure!(shown.status.success() && told.contains("StopPodSandbox"), "{shown:?}");
    assert_eq!(told, again, "what is kept is what was shown");
    nothing_is_left(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_timed_in_a_pod_that_is_gone_afterwards() -> Result<()> {
    let Some(node) = node("commands_are_timed").await? else { return Ok(()) };
    let file = node.dir().join("exec.json");
    let mut command = bench(&node, "exec", &["--rounds", "1", "--commands", "3"]);
    let done = command.arg("--json").arg(&file).output()?;
    ensure!(done.status.success(), "{done:?}");

    let taken = rounds(&report(&file)?, "ExecSync", 0)?.concat();
    assert!(taken.len() == 3 && taken.iter().all(|taken| *taken > 0.0), "{taken:?}");
    nothing_is_left(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_interrupted_or_fails_takes_everything_along() -> Result<()> {
    let Some(mut node) = node("a_run_that_is_interrupted").await? else { return Ok(()) };
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let run = in_the_middle(&mut node).await?;
        kill(Pid::from_raw(i32::try_from(run.id())?), signal)?;
        let ended = run.wait_with_output()?;
        let told = String::from_utf8_lossy(&ended.stderr);
        ensure!(!ended.status.success() && told.contains("interrupted"), "{ended:?}");
        ensure!(node.cri.sandboxes().await?.is_empty(), "{signal} left sandboxes");
    }
    let failed = bench(&node, "start", &["--handler", "absent"]).output()?;
    let told = String::from_utf8_lossy(&failed.stderr);
    ensure!(!failed.status.success() && told.contains("RunPodSandbox"), "{failed:?}");
    nothing_is_left(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_removes_what_a_killed_one_left() -> Result<()> {
    let Some(mut node) = node("the_next_run_removes").await? else { return Ok(()) };
    let mut run = in_the_middle(&mut node).await?;
    run.kill()?;
    run.wait()?;
    let done = bench(&node, "exec", &["--rounds", "1", "--commands", "1"]).output()?;
    ensure!(done.status.success(), "{done:?}");
    nothing_is_left(node).await
}

/// The sum of all samples of `metric` of the first target.
fn sum(report: &Value, metric: &str) -> Result<f64> {
    Ok(rounds(report, metric, 0)?.concat().iter().sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_idle_pods_are_told_apart_and_none_is_left() -> Result<()> {
    let Some(node) = node("the_processes_of_idle_pods").await? else { return Ok(()) };
    let file = node.dir().join("density.json");
    let few = ["--rounds", "1", "--pods", "4", "--steps", "2", "--hold", "0"];
    let done = bench(&node, "density", &few).arg("--json").arg(&file).output()?;
    ensure!(done.status.success(), "{done:?}");

    let report = report(&file)?;
    for (metric, expected) in [
        ("processes beside the workload, per pod", 1.0),
        ("threads beside the workload, per pod", 1.0),
        ("processes of the workload, per pod", 1.0),
        ("PSS of pause, per pod", 0.0),
        ("left after all were removed: processes", 0.0),
        ("failed verbs", 0.0),
    ] {
        assert_eq!(sum(&report, metric)?, expected, "{metric}");
    }
    for metric in ["PSS of monitors, per pod", "PSS of the workload, per pod"] {
        assert!(sum(&report, metric)? > 0.0, "{metric}");
    }
    let curve = &report["benches"][0]["curves"].as_array().context("no curves")?;
    let curve = curve.iter().find(|curve| curve["name"] == "drop of MemAvailable");
    let points = &curve.context("no curve of MemAvailable")?["series"][0]["points"];
    assert_eq!((&points[0][0], &points[1][0]), (&2.0.into(), &4.0.into()), "{points}");
    nothing_is_left(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_questions_and_polls_leave_no_pod_out() -> Result<()> {
    let Some(node) = node("many_clients_questions_and_polls").await? else { return Ok(()) };
    let file = node.dir().join("many.json");
    let run = |task: &str, arguments: &[&str]| {
        let done =
            bench(&node, task, arguments).arg("--rounds=1").arg("--json").arg(&file).output()?;
        ensure!(done.status.success(), "{done:?}");
        let report = report(&file)?;
        assert_eq!(sum(&report, "failed verbs")?, 0.0, "{task}");
        Ok(report)
    };
    let churn = run("churn", &["--pods", "5", "--clients", "3", "--warm-up", "0"])?;
    for metric in ["up, under load", "down, under load"] {
        assert_eq!(rounds(&churn, metric, 0)?.concat().len(), 5, "{metric}");
    }
    assert!(sum(&churn, "pods gone")? > 0.0 && sum(&churn, "processes left")? == 0.0);

    let lists = run("lists", &["--pods", "2", "--steps", "1", "--times", "3", "--warm-up", "0"])?;
    for (metric, answers) in [
        ("ListContainers", 3),
        ("ListContainerStats: age", 1),
        ("ListPodSandboxStats, after 2 s", 5),
    ] {
        assert_eq!(rounds(&lists, metric, 0)?.concat().len(), answers, "{metric}");
    }
    let idle = run("idle", &["--pods", "2", "--seconds", "1", "--alone", "1"])?;
    assert!(sum(&idle, "polled: CPU of the daemon")? > 0.0);
    assert!(sum(&idle, "polled: wakeups of the daemon")? > 0.0);
    nothing_is_left(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_fail_are_counted_and_end_no_run_of_many() -> Result<()> {
    let Some(node) = node("pods_that_fail_are_counted").await? else { return Ok(()) };
    let file = node.dir().join("failed.json");
    let absent = ["--handler=absent", "--rounds=1", "--pods=3", "--warm-up=0"];
    let done = bench(&node, "churn", &absent).arg("--json").arg(&file).output()?;
    ensure!(done.status.success(), "{done:?}");

    let report = report(&file)?;
    assert_eq!(sum(&report, "failed verbs")?, 3.0);
    assert_eq!(sum(&report, "pods up")?, 0.0);
    let notes = report["benches"][0]["notes"].to_string();
    assert!(notes.contains("failed 3 times") && notes.contains("RunPodSandbox"), "{notes}");

    // Who fails takes nobody else's numbers along.
    for (task, number, latency) in
        [("start", "--pods=2", "up"), ("exec", "--commands=2", "ExecSync")]
    {
        let arguments = ["--versus-handler=absent", "--rounds=1", "--warm-up=0", number];
        let mut command = bench(&node, task, &arguments);
        command.arg("--versus").arg(node.daemon().socket()).arg("--json").arg(&file);
        let done = command.output()?;
        ensure!(done.status.success(), "{done:?}");
        let report = self::report(&file)?;
        assert_eq!(rounds(&report, latency, 0)?.concat().len(), 2, "{task}");
        assert!(rounds(&report, latency, 1)?.concat().is_empty(), "{task}");
        assert_eq!(rounds(&report, "failed verbs", 0)?.concat(), [0.0], "{task}");
        assert!(rounds(&report, "failed verbs", 1)?.concat() > vec![0.0], "{task}");
    }
    nothing_is_left(node).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pull_is_cold_and_an_interrupted_one_takes_its_image_along() -> Result<()> {
    let Some(mut node) = node("each_pull_is_cold").await? else { return Ok(()) };
    let file = node.dir().join("pull.json");
    let small = ["--smaller", "50", "--present"];
    let mut command = bench(&node, "pull", &small);
    command.args(["2", "--rounds", "2", "--json"]).arg(&file);
    let done = command.output()?;
    ensure!(done.status.success(), "{done:?}");
    let pulls = report(&file)?;
    assert!(sum(&pulls, "disk used")? > 1.0, "the second pull of a layer that stayed takes none");
    assert_eq!(rounds(&pulls, "PullImage, cold", 0)?.concat().len(), 2);
    assert_eq!(rounds(&pulls, "PullImage, present", 0)?.concat().len(), 4);

    let mut command = bench(&node, "pull", &small);
    let run = command.arg("1000000").stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let request = berth_api::v1::ListImagesRequest::default();
        let images = node.cri.image.list_images(request).await?.into_inner().images;
        if images.iter().flat_map(|image| &image.repo_tags).any(|tag| tag.contains("/large:")) {
            break;
        }
        ensure!(Instant::now() < deadline, "no large image after {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    kill(Pid::from_raw(i32::try_from(run.id())?), Signal::SIGINT)?;
    let ended = run.wait_with_output()?;
    ensure!(String::from_utf8_lossy(&ended.stderr).contains("interrupted"), "{ended:?}");
    nothing_is_left(node).await
}

/// A run that has a container just now, and would go on for long.
async fn in_the_middle(node: &mut Node) -> Result<Child> {
    let mut command = bench(node, "exec", &["--rounds", "100000"]);
    let run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + DEADLINE;
    while node.cri.containers().await?.is_empty() {
        ensure!(Instant::now() < deadline, "no container after {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(run)
}
