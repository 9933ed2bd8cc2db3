//! Containers: what runs, as whom, and within which limits.

use std::fs;

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, image, resources, script, security};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn command_and_arguments_follow_image_and_request() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox_builder()?
        .config("Entrypoint", json!(["echo", "entry"]))
        .config("Cmd", json!(["command"]))
        .build()?;
    let image = node.push("entry", "latest", &made)?;
    node.cri.pull(&image).await?;
    let pod = node.pod("pod").await?;
    for (command, args, expected) in [
        (vec![], vec![], "entry command\n"),
        (vec![], vec!["args"], "entry args\n"),
        (vec!["echo", "own"], vec![], "own\n"),
        (vec!["echo"], vec!["both"], "both\n"),
    ] {
        let mut config = container_config("main", &image, &command);
        config.args = args.into_iter().map(str::to_owned).collect();
        assert_eq!(node.finish(&pod, &config).await?.stdout, expected);
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_bytes() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "printf %s \"$RAW\" | od -An -tx1; echo \"$PLAIN\" $PATH");
    config.envs = vec![
        v1::KeyValue { key: "RAW".into(), value: vec![0xff, 0x80, b'x'] },
        v1::KeyValue { key: "PLAIN".into(), value: b"plain text".to_vec() },
    ];
    let seen = node.finish(&pod, &config).await?.stdout;
    assert!(seen.contains("ff 80 78"), "{seen:?}");
    assert!(seen.contains("plain text /bin"), "{seen:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_is_the_requests_then_the_images() -> Result<()> {
    let (mut node, plain, pod) = Node::with_pod().await?;
    let made = image::busybox_builder()?.config("WorkingDir", json!("/home/user")).build()?;
    let placed = node.push("placed", "latest", &made)?;
    node.cri.pull(&placed).await?;
    for (image, asked, expected) in [
        (&plain, "", "/\n"),
        (&placed, "", "/home/user\n"),
        (&placed, "/etc", "/etc\n"),
        (&plain, "/tmp/made/on/demand", "/tmp/made/on/demand\n"),
    ] {
        let mut config = script(image, "pwd");
        config.working_dir = asked.into();
        assert_eq!(node.finish(&pod, &config).await?.stdout, expected);
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_found_by_id_and_by_name() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let who = "id -u; id -g; id -G";
    let mut config = script(&image, who);
    assert_eq!(node.finish(&pod, &config).await?.stdout, "0\n0\n0\n");

    security(&mut config).run_as_username = "user".into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "1000\n1000\n1000 2000\n");

    security(&mut config).supplemental_groups = vec![3000];
    security(&mut config).supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
    assert_eq!(node.finish(&pod, &config).await?.stdout, "1000\n1000\n1000 3000\n");

    let mut config = script(&image, who);
    security(&mut config).run_as_user = Some(v1::Int64Value { value: 4242 });
    security(&mut config).run_as_group = Some(v1::Int64Value { value: 17 });
    assert_eq!(node.finish(&pod, &config).await?.stdout, "4242\n17\n17\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_written_to_the_cgroup() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let files = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us \
                 cpu/cpu.cfs_period_us cpuset/cpuset.cpus /proc/self/oom_score_adj";
    let mut config = script(&image, files);
    let limits = resources(&mut config);
    limits.memory_limit_in_bytes = 64 << 20;
    limits.cpu_shares = 512;
    limits.cpu_quota = 50_000;
    limits.cpu_period = 100_000;
    limits.cpuset_cpus = "0".into();
    limits.oom_score_adj = 500;
    let expected = format!("{}\n512\n50000\n100000\n0\n500\n", 64 << 20);
    assert_eq!(node.finish(&pod, &config).await?.stdout, expected);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_user_is_the_containers_unless_the_request_names_one() -> Result<()> {
    let mut node = Node::start().await?;
    let made = image::busybox_builder()?.config("User", json!("user")).build()?;
    let image = node.push("user", "latest", &made)?;
    node.cri.pull(&image).await?;
    let pod = node.pod("pod").await?;
    let mut config = script(&image, "id -u; id -G; echo $HOME");
    assert_eq!(node.finish(&pod, &config).await?.stdout, "1000\n1000 2000\n/home/user\n");
    security(&mut config).run_as_user = Some(v1::Int64Value { value: 0 });
    assert_eq!(node.finish(&pod, &config).await?.stdout, "0\n0\n/root\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_have_the_daemons_limits_and_select_safe_descriptors() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let daemon = node.daemon().pid().context("no daemon")?;
    let limits = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let mut expected = limits(&fs::read_to_string(format!("/proc/{daemon}/limits"))?);
    for line in &mut expected {
        // 1,024 open files, which a process may raise to what systemd allows, or the node.
        if let Some(rest) = line.strip_prefix("Max open files ") {
            let hard: u64 = rest.split(' ').nth(1).context("no hard limit")?.parse()?;
            *line = format!("Max open files 1024 {} files", hard.min(524_288));
        }
    }
    let seen = node.shell(&pod, &image, "cat /proc/self/limits").await?;
    assert_eq!(limits(&seen), expected);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oom_score_is_the_requests_for_every_process() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "cat /proc/self/oom_score_adj; sleep 1000");
    resources(&mut config).oom_score_adj = 777;
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "777").await?;
    let pid = node.container_pid(&id).await?;
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?, "777\n");
    let answer = node.cri.exec(&id, &["cat", "/proc/self/oom_score_adj"], 10).await?;
    assert_eq!(String::from_utf8(answer.stdout)?, "777\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_stays_open_only_when_asked() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    // The code of `timeout` is 0 when `cat` saw the end, 143 when it had to be killed.
    let mut config = script(&image, "timeout 1 cat; echo $?");
    assert_eq!(node.finish(&pod, &config).await?.stdout, "0\n");
    config.stdin = true;
    assert_eq!(node.finish(&pod, &config).await?.stdout, "143\n");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_processes_is_kept() -> Result<()> {
    let options =
        berth_testkit::NodeOptions { container: "pids_limit = 20".into(), ..Default::default() };
    let mut node = Node::start_with(options).await?;
    let image = node.busybox().await?;
    let pod = node.pod("pod").await?;
    let many = "cat /sys/fs/cgroup/pids/pids.max; for i in $(seq 30); do sleep 100 & done";
    let finished = node.finish(&pod, &script(&image, many)).await?;
    assert_eq!(finished.stdout, "20\n");
    assert!(finished.stderr.contains("fork"), "{}", finished.stderr);
    node.assert_clean().await
}
