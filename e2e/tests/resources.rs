//! Limits that change while a container exists: all of them or none, told and kept.

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, container_config, resources, script};
use tonic::{Code, Status};

/// What the kernel has for a container on a host with cgroup v1.
const SHOW: &str = "cd /sys/fs/cgroup; cat cpu/cpu.shares cpu/cpu.cfs_period_us cpu/cpu.cfs_quota_us \
                    cpuset/cpuset.cpus memory/memory.limit_in_bytes; cat /proc/[0-9]*/oom_score_adj";

async fn in_force(node: &mut Node, id: &str) -> Result<Vec<String>> {
    let shown = node.cri.exec(id, &["sh", "-c", SHOW], 10).await?;
    let lines = String::from_utf8(shown.stdout)?;
    Ok(lines.lines().map(str::to_owned).collect())
}

async fn update(
    node: &mut Node,
    id: &str,
    linux: v1::LinuxContainerResources,
) -> Result<(), Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        // Never obeyed.
        annotations: [("cpu.shares".to_owned(), "7".to_owned())].into(),
        ..Default::default()
    };
    node.cri.runtime.update_container_resources(request).await.map(drop)
}

async fn told(node: &mut Node, id: &str) -> Result<v1::LinuxContainerResources> {
    let status = node.cri.container_status(id).await?;
    status.resources.and_then(|all| all.linux).context("no resources in the status")
}

fn some_limits() -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 50_000,
        cpu_quota: 25_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 700,
        ..Default::default()
    }
}

/// As [`SHOW`] shows [`some_limits`], but for the scores.
const SOME: [&str; 5] = ["512", "50000", "25000", "0", "134217728"];

#[tokio::test(flavor = "multi_thread")]
async fn new_limits_are_in_force_told_and_kept() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "sleep 1000 & echo up; sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    resources(&mut config).oom_score_adj = 300;
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "up").await?;
    update(&mut node, &id, some_limits()).await?;
    let now = in_force(&mut node, &id).await?;
    assert_eq!(now[..5], SOME);
    assert!(now.len() >= 8 && now[5..].iter().all(|score| score == "700"), "{now:?}");
    assert_eq!(told(&mut node, &id).await?, some_limits());

    node.kill_and_restart().await?;
    assert_eq!(told(&mut node, &id).await?, some_limits());
    // Only what is set changes; -1 is without a limit.
    let unlimited = v1::LinuxContainerResources { cpu_quota: -1, ..Default::default() };
    update(&mut node, &id, unlimited).await?;
    assert_eq!(in_force(&mut node, &id).await?[..3], ["512", "50000", "-1"]);
    let expected = v1::LinuxContainerResources { cpu_quota: -1, ..some_limits() };
    assert_eq!(told(&mut node, &id).await?, expected);
    node.assert_clean().await
}

/// teeth: crates/engine/src/container/limits.rs: `cgroup.change(&limits(wanted))` → `cgroup.apply(&limits(wanted)).and_then(|()| cgroup.change(&Limits::default()))`
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_cannot_all_be_set_change_nothing() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "echo up; sleep 1000");
    *resources(&mut config) = some_limits();
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "up").await?;
    let before = in_force(&mut node, &id).await?;
    let other = || v1::LinuxContainerResources { cpu_shares: 300, ..Default::default() };
    let unified = [("cgroup.procs".to_owned(), "0".to_owned())].into();
    let absent = v1::LinuxContainerResources { cpuset_mems: "9999".into(), ..other() };
    let beyond = v1::LinuxContainerResources { cpuset_mems: "9".repeat(20), ..other() };
    let hugepages = vec![v1::HugepageLimit { page_size: "3MB".into(), limit: 1 }];
    for (what, change, code) in [
        // The last that is set: what runs has more.
        (
            "memory in use",
            v1::LinuxContainerResources { memory_limit_in_bytes: 4096, ..other() },
            Code::FailedPrecondition,
        ),
        (
            "no such processor",
            v1::LinuxContainerResources { cpuset_cpus: "9999".into(), ..other() },
            Code::InvalidArgument,
        ),
        ("no such memory", absent, Code::InvalidArgument),
        ("no number", beyond, Code::InvalidArgument),
        (
            "no such page size",
            v1::LinuxContainerResources { hugepage_limits: hugepages, ..other() },
            Code::FailedPrecondition,
        ),
        (
            "a negative limit",
            v1::LinuxContainerResources { memory_limit_in_bytes: -9, ..other() },
            Code::InvalidArgument,
        ),
        (
            "a file of the runtime",
            v1::LinuxContainerResources { unified, ..other() },
            Code::InvalidArgument,
        ),
        (
            "no such score",
            v1::LinuxContainerResources { oom_score_adj: 1001, ..other() },
            Code::InvalidArgument,
        ),
    ] {
        let refused =
            update(&mut node, &id, change).await.err().with_context(|| what.to_owned())?;
        assert_eq!(refused.code(), code, "{what}: {refused:?}");
        assert_eq!(in_force(&mut node, &id).await?[..5], before[..5], "{what}");
        assert_eq!(told(&mut node, &id).await?, some_limits(), "{what}");
    }
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        windows: Some(v1::WindowsContainerResources::default()),
        ..Default::default()
    };
    let refused = node.cri.runtime.update_container_resources(request).await.err();
    let refused = refused.context("limits of Windows")?;
    assert!(refused.message().contains("windows"), "{refused:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_before_a_start_and_after_an_end() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let config = script(&image, "echo up; sleep 1000");
    let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    update(&mut node, &id, some_limits()).await?;
    assert_eq!(told(&mut node, &id).await?, some_limits());
    let again = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    assert_eq!(again, id, "the request is what it was");
    node.cri.start_container(&id).await?;
    node.wait_for_line("pod", "main", "up").await?;
    let now = in_force(&mut node, &id).await?;
    assert_eq!(now[..5], SOME);
    assert!(now[5..].iter().all(|score| score == "700"), "{now:?}");

    node.cri.stop_container(&id, 0).await?;
    let more = v1::LinuxContainerResources { cpu_shares: 1024, ..Default::default() };
    update(&mut node, &id, more).await?;
    let expected = v1::LinuxContainerResources { cpu_shares: 1024, ..some_limits() };
    assert_eq!(told(&mut node, &id).await?, expected);
    node.cri.remove_container(&id).await?;
    let gone = update(&mut node, &id, some_limits()).await.err().context("it is gone")?;
    assert_eq!(gone.code(), Code::NotFound, "{gone:?}");
    node.assert_clean().await
}

/// A client that makes the pod's cgroup limits it; the daemon takes note.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_pod_are_noted_told_and_kept() -> Result<()> {
    let mut node = Node::start().await?;
    let mut config = node.sandbox_config("pod");
    let linux = config.linux.get_or_insert_default();
    linux.overhead = Some(v1::LinuxContainerResources { cpu_shares: 11, ..Default::default() });
    linux.resources = Some(v1::LinuxContainerResources { cpu_shares: 22, ..Default::default() });
    let pod = node.pod_with(config).await?;
    let shares = |overhead: i64, resources: i64| v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: Some(v1::LinuxContainerResources { cpu_shares: overhead, ..Default::default() }),
        resources: Some(v1::LinuxContainerResources {
            cpu_shares: resources,
            ..Default::default()
        }),
    };
    assert_eq!(noted(&mut node, &pod.id).await?, (11, 22));
    node.cri.runtime.update_pod_sandbox_resources(shares(33, 44)).await?;
    assert_eq!(noted(&mut node, &pod.id).await?, (33, 44));
    node.kill_and_restart().await?;
    assert_eq!(noted(&mut node, &pod.id).await?, (33, 44));
    for (field, request) in [("overhead", shares(-1, 1)), ("resources", shares(1, -1))] {
        let refused = node.cri.runtime.update_pod_sandbox_resources(request).await.err();
        let refused = refused.with_context(|| format!("a negative {field}"))?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(field), "{refused:?}");
    }
    let absent = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "f".repeat(64),
        ..Default::default()
    };
    let refused = node.cri.runtime.update_pod_sandbox_resources(absent).await.err();
    assert_eq!(refused.context("no such sandbox")?.code(), Code::NotFound);
    // A client that lost the answer asks for the same sandbox.
    assert_eq!(node.cri.run_sandbox(&pod.config).await?, pod.id);
    node.assert_clean().await
}

/// CPU shares of overhead and resources, as `crictl inspectp` shows them.
async fn noted(node: &mut Node, id: &str) -> Result<(i64, i64)> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let info = node.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let shares = |kind: &str| info["limits"][kind]["cpu_shares"].as_i64().context("no shares");
    Ok((shares("overhead")?, shares("resources")?))
}

/// A removal does not wait for limits, and limits do not wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn many_changes_at_once_end_with_one_of_them() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let mut asked = Vec::new();
    for shares in 100..120 {
        let (mut runtime, container_id) = (node.cri.runtime.clone(), id.clone());
        asked.push(tokio::spawn(async move {
            let linux = v1::LinuxContainerResources { cpu_shares: shares, ..Default::default() };
            let linux = Some(linux);
            let request =
                v1::UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
            runtime.update_container_resources(request).await
        }));
    }
    for asked in asked {
        asked.await??;
    }
    let shares = in_force(&mut node, &id).await?[0].parse::<i64>()?;
    assert!((100..120).contains(&shares), "{shares}");
    assert_eq!(told(&mut node, &id).await?.cpu_shares, shares);
    node.cri.remove_container(&id).await?;
    node.assert_clean().await
}

/// A daemon that is killed amid a change leaves the kernel with some of it; the next one
/// puts all of it in force.
///
/// teeth: crates/engine/src/container/driver.rs: `record.changing.clone().map(Change::cut_off)` → `None::<Change>`
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_a_daemon_was_killed_amid_are_in_force_after_it() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    for point in ["update.begun", "update.in_force", "update.stored"] {
        let config = script(&image, "echo up; exec sleep 1000");
        let id = node.cri.create_container(&pod.id, &pod.config, &config).await?;
        let created = v1::LinuxContainerResources { cpu_shares: 300, ..Default::default() };
        cut_off(&mut node, &id, point, created.clone()).await?;
        assert_eq!(settled(&mut node, &id).await?.cpu_shares, 300, "{point}");
        node.cri.start_container(&id).await?;
        assert_eq!(in_force(&mut node, &id).await?[0], "300", "{point}");

        cut_off(&mut node, &id, point, some_limits()).await?;
        assert_eq!(settled(&mut node, &id).await?, some_limits(), "{point}");
        let now = in_force(&mut node, &id).await?;
        assert_eq!(now[..5], SOME, "{point}");
        assert!(now[5..].iter().any(|score| score == "700"), "{point}: {now:?}");
        node.cri.remove_container(&id).await?;
    }
    node.assert_clean().await
}

/// What is refused when it is begun anew leaves the former limits, all of them.
///
/// teeth: crates/engine/src/container/update.rs: `if cut_off { Some(limits(now)?) } else { None }` → `None::<ChangedLimits>.filter(|_| cut_off)`
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_refused_after_a_kill_are_not_half_in_force() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = script(&image, "echo up; exec sleep 1000");
    *resources(&mut config) = some_limits();
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "up").await?;
    node.daemon().arm("update.in_force kill\n")?;
    let more = v1::LinuxContainerResources { cpu_shares: 900, ..Default::default() };
    update(&mut node, &id, more).await.err().context("the daemon did not die")?;
    node.daemon().arm("update.begun error EIO times=1\n")?;
    node.kill_and_restart().await?;
    assert_eq!(settled(&mut node, &id).await?, some_limits());
    assert_eq!(in_force(&mut node, &id).await?[..5], SOME);
    // Nor is it begun again.
    node.daemon().arm("")?;
    node.kill_and_restart().await?;
    assert_eq!(settled(&mut node, &id).await?, some_limits());
    assert_eq!(in_force(&mut node, &id).await?[..5], SOME);
    node.assert_clean().await
}

/// Has the daemon die at `point` of a change of limits, and starts it again.
async fn cut_off(
    node: &mut Node,
    id: &str,
    point: &str,
    change: v1::LinuxContainerResources,
) -> Result<()> {
    node.daemon().arm(&format!("{point} kill\n"))?;
    let died = update(node, id, change).await.err();
    died.with_context(|| format!("the daemon did not die at {point}"))?;
    node.daemon().arm("")?;
    node.kill_and_restart().await
}

/// The limits that are told once every change before now is made: changes wait for each other.
async fn settled(node: &mut Node, id: &str) -> Result<v1::LinuxContainerResources> {
    update(node, id, v1::LinuxContainerResources::default()).await?;
    told(node, id).await
}

/// A kernel may take long to make room for less memory; nothing else waits for that, and what
/// waits for its turn behind it is not begun once its client has given up.
///
/// teeth: crates/engine/src/container/update.rs: `&self.core.reclaim` → `&self.core.disk`
/// teeth: crates/engine/src/container/update.rs: `reply.as_ref().is_some_and(Reply::is_closed)` → `false`
#[tokio::test(flavor = "multi_thread")]
async fn slow_reclaim_holds_up_nothing_but_reclaim() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut ids = Vec::new();
    for number in 0..5 {
        let config = container_config(&format!("main-{number}"), &image, &["sleep", "1000"]);
        ids.push(node.run(&pod, &config).await?);
    }
    let less =
        v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let request = |id: &String| v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(less.clone()),
        ..Default::default()
    };
    let late = ids.pop().context("five")?;
    node.daemon().arm("update.begun hold\n")?;
    let mut asked = Vec::new();
    for id in &ids {
        let (mut runtime, request) = (node.cri.runtime.clone(), request(id));
        asked.push(tokio::spawn(async move { runtime.update_container_resources(request).await }));
    }
    while node.daemon().passes("update.begun")? < ids.len() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let mut impatient = tonic::Request::new(request(&late));
    impatient.set_timeout(std::time::Duration::from_millis(50));
    let refused = node.cri.runtime.update_container_resources(impatient).await.err();
    let refused = refused.context("there is no place for it")?;
    assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Cancelled), "{refused:?}");

    // All of this needs the disk pool.
    assert_eq!(node.shell(&pod, &image, "echo up").await?, "up\n");
    node.daemon().arm("")?;
    for asked in asked {
        asked.await??;
    }
    for id in &ids {
        assert_eq!(told(&mut node, id).await?.memory_limit_in_bytes, 64 << 20);
    }
    assert_eq!(settled(&mut node, &late).await?.memory_limit_in_bytes, 0);
    assert_ne!(in_force(&mut node, &late).await?[4], (64 << 20).to_string());
    node.assert_clean().await
}
