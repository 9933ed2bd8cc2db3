//! Plugins of the Node Resource Interface, and the pods they are told of.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use berth_api::nri::{
    ContainerAdjustment, ContainerUpdate, CreateContainerResponse, KeyValue,
    LinuxContainerAdjustment, LinuxContainerUpdate, LinuxMemory, LinuxPids, LinuxResources, Mount,
    OptionalInt, SynchronizeRequest, UpdateContainersRequest,
};
use berth_api::v1;
use berth_testkit::nri::{Options, Plugin, Reaction};
use berth_testkit::{Node, NodeOptions, container_config, script};
use tokio::sync::oneshot;
use tonic::Code;

fn socket(node: &Node) -> PathBuf {
    node.path("nri/nri.sock")
}

fn sleeper(image: &str) -> v1::ContainerConfig {
    container_config("main", image, &["sleep", "1000"])
}

fn memory(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt { value: limit });
    let memory = Some(LinuxMemory { limit, ..LinuxMemory::default() });
    LinuxResources { memory, ..LinuxResources::default() }
}

/// Waits once for `method`; the other end lets go.
fn holding(method: &'static str) -> (oneshot::Sender<()>, Options) {
    let (release, released) = oneshot::channel();
    let held = Mutex::new(Some(released));
    let options = Options::reacting("10", move |heard| {
        let released = (heard.method == method)
            .then(|| held.lock().ok().and_then(|mut held| held.take()))
            .flatten();
        released.map_or(Reaction::Nothing, Reaction::Wait)
    });
    (release, options)
}

/// Refuses once what has `method`.
fn refusing_once(method: &'static str) -> Options {
    let refused = AtomicBool::new(false);
    Options::reacting("10", move |heard| {
        if heard.method == method && !refused.swap(true, Ordering::SeqCst) {
            return Reaction::Refuse("not now".into());
        }
        Reaction::Nothing
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_hears_the_whole_life_of_a_pod_in_order() -> Result<()> {
    let (mut node, image, known) = Node::with_pod().await?;
    let plugin = Plugin::connect(&socket(&node), Options::observer("10", "all")).await?;
    let told = plugin.heard().into_iter().find(|heard| heard.method == "Synchronize");
    let told: SynchronizeRequest = told.context("not synchronized")?.read()?;
    assert_eq!(told.pods.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&known.id]);

    let pod = node.pod("told").await?;
    let stopped = node.run(&pod, &sleeper(&image)).await?;
    node.cri.stop_container(&stopped, 0).await?;
    node.cri.remove_container(&stopped).await?;
    // One that ends by itself is told without anybody's asking.
    let ended = node.run(&pod, &script(&image, "exit 3")).await?;
    let is_end = |heard: &berth_testkit::nri::Heard| {
        heard.method == "StopContainer" && heard.container().id == ended
    };
    let end = plugin.wait_for("the end", is_end).await?.container();
    assert_eq!((end.exit_code, end.status_reason.as_str()), (3, "Error"));
    node.cri.stop_sandbox(&pod.id).await?;
    node.cri.stop_sandbox(&pod.id).await?;
    node.cri.remove_sandbox(&pod.id).await?;

    let life = [
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
    ];
    let of = |id: &str| -> Vec<String> {
        let names = |heard: &&berth_testkit::nri::Heard| heard.container().id == id;
        plugin.heard().iter().filter(names).map(|heard| heard.method.clone()).collect()
    };
    assert_eq!(of(&stopped), life);
    assert_eq!(of(&ended), life);
    let pods: Vec<_> =
        plugin.methods(&pod.id).into_iter().filter(|method| method.ends_with("Sandbox")).collect();
    assert_eq!(pods, ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);

    let heard = plugin.heard();
    let run = heard.iter().find(|heard| heard.method == "RunPodSandbox").context("not run")?.pod();
    assert_eq!((run.name.as_str(), run.ips.len()), ("told", 1));
    let create = heard.iter().find(|heard| heard.method == "CreateContainer");
    let create = create.context("not created")?.container();
    assert_eq!(
        (create.name.as_str(), &create.args[..]),
        ("main", &["sleep".into(), "1000".into()][..])
    );
    assert!(create.mounts.iter().any(|mount| mount.destination == "/proc"));
    node.assert_clean().await
}

/// teeth: crates/engine/src/sandbox/run.rs: `hooks::run_sandbox(core, &plan.record, &undo).await?;` → `core.tasks.spawn({ let core = Arc::clone(core); let record = plan.record.clone(); async move { let undo = Undo::new(&core.pending, Object::new("sandbox", "x")); hooks::run_sandbox(&core, &record, &undo).await.ok(); undo.disarm(); } });`
#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_made_is_seen_by_nobody_but_the_plugin() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let (release, options) = holding("RunPodSandbox");
    let plugin = Plugin::connect(&socket(&node), options).await?;
    let config = node.sandbox_config("hidden");
    let running = tokio::spawn({
        let (mut cri, config) = (node.cri.clone(), config.clone());
        async move { cri.run_sandbox(&config).await }
    });
    let run = plugin.wait_for("the pod", |heard| heard.method == "RunPodSandbox").await?;
    let id = run.pod().id;
    assert!(node.cri.sandboxes().await?.is_empty());
    assert_eq!(node.cri.sandbox_status(&id).await.err().map(|s| s.code()), Some(Code::NotFound));
    let early = node.cri.create_container(&id, &config, &sleeper(&image)).await;
    assert_eq!(early.err().map(|s| s.code()), Some(Code::NotFound));
    release.send(()).ok().context("it does not wait")?;
    assert_eq!(running.await??, id);
    assert_eq!(node.cri.sandboxes().await?, std::slice::from_ref(&id));
    drop(plugin);

    let (release, options) = holding("CreateContainer");
    let plugin = Plugin::connect(&socket(&node), options).await?;
    let creating = tokio::spawn({
        let (mut cri, config, id) = (node.cri.clone(), config.clone(), id.clone());
        let container = sleeper(&image);
        async move { cri.create_container(&id, &config, &container).await }
    });
    plugin.wait_for("the container", |heard| heard.method == "CreateContainer").await?;
    assert!(node.cri.containers().await?.is_empty());
    release.send(()).ok().context("it does not wait")?;
    creating.await??;
    assert_eq!(node.cri.containers().await?.len(), 1);
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_refuses_is_undone_and_may_be_asked_again() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let config = node.sandbox_config("asked");
    let plugin = Plugin::connect(&socket(&node), refusing_once("RunPodSandbox")).await?;
    let refused = node.cri.run_sandbox(&config).await.err().context("it was not refused")?;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("not now"), "{refused}");
    assert!(node.cri.sandboxes().await?.is_empty());
    let failed = plugin.wait_for("it", |heard| heard.method == "RunPodSandbox").await?.pod().id;
    assert_eq!(plugin.methods(&failed), ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    let id = node.cri.run_sandbox(&config).await?;
    drop(plugin);

    let plugin = Plugin::connect(&socket(&node), refusing_once("CreateContainer")).await?;
    let refused = node.cri.create_container(&id, &config, &sleeper(&image)).await;
    assert_eq!(refused.err().map(|s| s.code()), Some(Code::FailedPrecondition));
    assert!(node.cri.containers().await?.is_empty());
    node.cri.create_container(&id, &config, &sleeper(&image)).await?;
    drop(plugin);

    let _plugin = Plugin::connect(&socket(&node), refusing_once("StartContainer")).await?;
    let container = node.cri.containers().await?.pop().context("no container")?;
    let refused = node.cri.start_container(&container).await;
    assert_eq!(refused.err().map(|s| s.code()), Some(Code::FailedPrecondition));
    assert_eq!(node.cri.container_status(&container).await?.reason, "StartError");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_what_plugins_adjust() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let dir = node.dir().join("shared");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("file"), "of the plugin\n")?;
    let adjust = ContainerAdjustment {
        env: vec![KeyValue { key: "GIVEN".into(), value: "by a plugin".into() }],
        mounts: vec![Mount {
            destination: "/given".into(),
            r#type: "bind".into(),
            source: dir.to_string_lossy().into_owned(),
            options: vec!["rbind".into(), "ro".into()],
        }],
        linux: Some(LinuxContainerAdjustment {
            resources: Some(memory(48 << 20)),
            oom_score_adj: Some(OptionalInt { value: 321 }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    };
    let answer = CreateContainerResponse { adjust: Some(adjust), ..Default::default() };
    let plugin = Plugin::connect(
        &socket(&node),
        Options::reacting("10", move |heard| match heard.method.as_str() {
            "CreateContainer" => Reaction::answer(&answer),
            _ => Reaction::Nothing,
        }),
    )
    .await?;
    let shown = "echo $GIVEN; cat /given/file; touch /given/x 2>/dev/null && echo writable; \
                 cat /proc/self/oom_score_adj; sleep 1000";
    let id = node.run(&pod, &script(&image, shown)).await?;
    node.wait_for_line("pod", "main", "321").await?;
    let lines: Vec<_> = node.read_log("pod", "main")?.into_iter().map(|line| line.text).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let limit = |status: v1::ContainerStatus| {
        let linux = status.resources.and_then(|resources| resources.linux);
        linux.map(|linux| linux.memory_limit_in_bytes)
    };
    assert_eq!(limit(node.cri.container_status(&id).await?), Some(48 << 20));

    let update = |id: &str| ContainerUpdate {
        container_id: id.into(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(LinuxResources {
                pids: Some(LinuxPids { limit: 77 }),
                ..memory(64 << 20)
            }),
        }),
        ignore_failure: false,
    };
    let request =
        UpdateContainersRequest { update: vec![update(&id), update("none")], evict: vec![] };
    assert_eq!(plugin.update(&request).await?, ["none"]);
    assert_eq!(limit(node.cri.container_status(&id).await?), Some(64 << 20));
    // The files of cgroup v1 and of v2.
    let show = "cd /sys/fs/cgroup; cat pids/pids.max pids.max 2>/dev/null";
    let shown = node.cri.exec(&id, &["sh", "-c", show], 10).await?;
    assert_eq!(String::from_utf8(shown.stdout)?.trim(), "77");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_or_dies_holds_up_no_pod() -> Result<()> {
    let options = NodeOptions { nri: "request_timeout_ms = 300".into(), ..Default::default() };
    let mut node = Node::start_with(options).await?;
    let silent = Options::reacting("10", |heard| match heard.method.as_str() {
        "Synchronize" => Reaction::Nothing,
        _ => Reaction::Silence,
    });
    // The socket of the CRI is there first; what answers a request has both.
    node.cri.sandboxes().await?;
    let silent = Plugin::connect(&socket(&node), silent).await?;
    let pod = node.pod("goes-on").await?;
    silent.wait_closed().await?;

    // A restart tells a plugin that comes back what runs still.
    node.kill_and_restart().await?;
    node.cri.sandboxes().await?;
    let back = Plugin::connect(&socket(&node), Options::observer("10", "back")).await?;
    let told = back.heard().into_iter().find(|heard| heard.method == "Synchronize");
    let told: SynchronizeRequest = told.context("not synchronized")?.read()?;
    assert_eq!(told.pods.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&pod.id]);
    node.cri.remove_sandbox(&pod.id).await?;
    assert_eq!(back.methods(&pod.id), ["StopPodSandbox", "RemovePodSandbox"]);
    node.assert_clean().await
}
