//! Row "upgrade/downgrade": the daemon is replaced by that of another release while pods
//! run, and shims of another release are served.
//!
//! The release before this tree is built by `cargo xtask test`; without it each test here
//! is reported as skipped.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{
    Node, NodeOptions, Pod, bind, container_config, log, previous, sandbox_security, script,
    security,
};

/// Writes numbered lines for ever, and ends with 7 when asked to.
const COUNTING: &str = "trap 'exit 7' TERM; i=0; \
                        while true; do echo line $i; i=$((i+1)); sleep 0.01; done";

/// A pod with a container in every state, made by one release and looked after by another.
struct Cast {
    image: String,
    pod: Pod,
    counting: String,
    brief: String,
    created: String,
    ended: String,
    stopped: Pod,
    /// With one process namespace for all containers.
    shared: Pod,
    known: Vec<v1::ContainerStatus>,
    sandboxes: Vec<v1::PodSandboxStatus>,
}

impl Cast {
    async fn new(node: &mut Node) -> Result<Self> {
        let image = node.busybox().await?;
        let mut config = node.sandbox_config("pod");
        config.port_mappings =
            vec![v1::PortMapping { container_port: 8080, host_port: 12_000, ..Default::default() }];
        let pod = node.pod_with(config).await?;
        let counting = container_config("counting", &image, &["sh", "-c", COUNTING]);
        let counting = node.run(&pod, &counting).await?;
        let dir = node.dir().join("volume");
        fs::create_dir(&dir)?;
        let wait = "while [ ! -e /data/go ]; do sleep 0.02; done; echo brief; exit 42";
        let mut brief = container_config("brief", &image, &["sh", "-c", wait]);
        brief.mounts = vec![bind("/data", &dir)];
        let brief = node.run(&pod, &brief).await?;
        let created = container_config("created", &image, &["echo", "late"]);
        let created = node.cri.create_container(&pod.id, &pod.config, &created).await?;
        let ended = node.run(&pod, &script(&image, "exit 3")).await?;
        node.wait_exit(&ended).await?;
        let mut config = node.sandbox_config("shared");
        let options = sandbox_security(&mut config).namespace_options.get_or_insert_default();
        options.pid = v1::NamespaceMode::Pod.into();
        let shared = node.pod_with(config).await?;
        let sleeping = of_shared(container_config("sleeping", &image, &["sleep", "1000"]));
        let sleeping = node.run(&shared, &sleeping).await?;
        let stopped = node.pod("stopped").await?;
        node.cri.stop_sandbox(&stopped.id).await?;
        node.wait_for_line("pod", "counting", "line 10").await?;
        let mut known = Vec::new();
        for id in [&counting, &created, &ended, &sleeping] {
            known.push(node.cri.container_status(id).await?);
        }
        let mut sandboxes = Vec::new();
        for id in [&pod.id, &stopped.id, &shared.id] {
            sandboxes.push(node.cri.sandbox_status(id).await?);
        }
        Ok(Self { image, pod, counting, brief, created, ended, stopped, shared, known, sandboxes })
    }

    fn has(&self, sandbox: &str) -> bool {
        [&self.pod.id, &self.stopped.id, &self.shared.id].iter().any(|id| *id == sandbox)
    }

    /// Has `brief` end; call it while no daemon runs.
    fn end_brief(&self, node: &Node) -> Result<()> {
        fs::write(node.dir().join("volume/go"), "")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while log::text(&node.read_log("pod", "brief").unwrap_or_default(), "stdout") != "brief\n" {
            ensure!(Instant::now() < deadline, "brief never ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Everything is as it was, and each verb works on it.
    async fn is_looked_after(&self, node: &mut Node) -> Result<()> {
        self.is_known(node).await?;
        let answer = node.cri.exec(&self.counting, &["sh", "-c", "echo in; exit 5"], 10).await?;
        assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"in\n"[..], 5));
        let request = v1::ContainerStatsRequest { container_id: self.counting.clone() };
        let stats = node.cri.runtime.container_stats(request).await?.into_inner().stats;
        let cpu = stats.context("no stats")?.cpu.context("no cpu")?;
        assert!(cpu.usage_core_nano_seconds.is_some_and(|used| used.value > 0), "{cpu:?}");

        self.logs_are_rotated(node).await?;
        self.is_reached(node).await?;
        let see = ["sh", "-c", "ps | grep '[s]leep 1000'"];
        let find = of_shared(container_config("finding", &self.image, &see));
        let found = node.finish(&self.shared, &find).await?;
        assert!(found.status.exit_code == 0 && !found.stdout.is_empty(), "{found:?}");
        node.cri.start_container(&self.created).await?;
        assert_eq!(node.wait_exit(&self.created).await?.exit_code, 0);
        assert_eq!(log::text(&node.read_log("pod", "created")?, "stdout"), "late\n");
        assert_eq!(node.shell(&self.pod, &self.image, "echo beside").await?, "beside\n");
        let second = node.pod("second").await?;
        assert_eq!(node.shell(&second, &self.image, "hostname").await?, "second\n");

        node.cri.stop_container(&self.counting, 20).await?;
        assert_eq!(node.wait_exit(&self.counting).await?.exit_code, 7);
        for id in [&self.counting, &self.brief, &self.created, &self.ended] {
            node.cri.remove_container(id).await?;
        }
        for pod in [&self.pod, &self.stopped, &self.shared, &second] {
            node.cri.remove_sandbox(&pod.id).await?;
        }
        Ok(())
    }

    async fn is_known(&self, node: &mut Node) -> Result<()> {
        for known in &self.known {
            assert_eq!(node.cri.container_status(&known.id).await?, *known);
        }
        for known in &self.sandboxes {
            assert_eq!(node.cri.sandbox_status(&known.id).await?, *known);
        }
        let brief = node.wait_exit(&self.brief).await?;
        assert_eq!((brief.exit_code, brief.reason.as_str()), (42, "Error"));
        assert!(brief.started_at < brief.finished_at, "{brief:?}");
        let mut listed = node.cri.containers().await?;
        let mut expected: Vec<_> = self.known.iter().map(|known| known.id.clone()).collect();
        expected.push(self.brief.clone());
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        let images = node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
        assert_eq!(images.into_inner().images.len(), 1);
        Ok(())
    }

    /// By its own address and by the node's port.
    async fn is_reached(&self, node: &mut Node) -> Result<()> {
        let serve = "while true; do echo mapped | nc -l -p 8080; done";
        let serve = container_config("serve", &self.image, &["sh", "-c", serve]);
        let serve = node.run(&self.pod, &serve).await?;
        let direct = format!("{}:8080", node.address(&self.pod).await?);
        for address in [direct, "127.0.0.1:12000".to_owned()] {
            let heard = node.machine.run(move || {
                let deadline = Instant::now() + Duration::from_secs(20);
                let mut heard = String::new();
                while heard != "mapped\n" && Instant::now() < deadline {
                    heard.clear();
                    if let Ok(mut stream) = std::net::TcpStream::connect(&address) {
                        stream.read_to_string(&mut heard).ok();
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(heard)
            })?;
            assert_eq!(heard, "mapped\n");
        }
        node.cri.stop_container(&serve, 0).await?;
        Ok(node.cri.remove_container(&serve).await?)
    }

    /// No line is lost or doubled over the rotation.
    async fn logs_are_rotated(&self, node: &mut Node) -> Result<()> {
        let current = node.log_directory("pod").join("counting.log");
        let rotated = current.with_extension("log.1");
        fs::rename(&current, &rotated)?;
        let request = v1::ReopenContainerLogRequest { container_id: self.counting.clone() };
        node.cri.runtime.reopen_container_log(request).await?;
        let old = log::text(&log::read(&rotated)?, "stdout");
        let next = old.lines().count();
        node.wait_for_line("pod", "counting", &format!("line {}", next + 5)).await?;
        let text = old + &log::text(&node.read_log("pod", "counting")?, "stdout");
        let numbers: Vec<usize> =
            text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(0..numbers.len()), "{text}");
        Ok(())
    }
}

/// A container for the pod with the shared process namespace.
fn of_shared(mut config: v1::ContainerConfig) -> v1::ContainerConfig {
    let options = security(&mut config).namespace_options.get_or_insert_default();
    options.pid = v1::NamespaceMode::Pod.into();
    config
}

async fn node_of(binaries: Option<&Path>) -> Result<Node> {
    let binaries = binaries.map(Path::to_owned);
    Node::start_with(NodeOptions { binaries, ..Default::default() }).await
}

/// What the shim of a sandbox is, by the daemon's word.
async fn shim_protocol(node: &mut Node, pod: &Pod) -> Result<serde_json::Value> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
    let verbose: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    Ok(verbose["shimProtocol"].clone())
}

/// Schema of a store at rest: `user_version` in the header of an SQLite file.
fn schema(node: &Node, store: &str) -> Result<u32> {
    let header = fs::read(node.dir().join("root").join(store))?;
    Ok(u32::from_be_bytes(header.get(60..64).context("no header")?.try_into()?))
}

fn schemas(node: &Node) -> Result<[u32; 2]> {
    Ok([schema(node, "pods.db")?, schema(node, "images.db")?])
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_the_previous_release_are_looked_after_by_this_one() -> Result<()> {
    let test = "pods_of_the_previous_release_are_looked_after_by_this_one";
    let Some(previous) = previous(test) else { return Ok(()) };
    let mut node = node_of(Some(&previous)).await?;
    let cast = Cast::new(&mut node).await?;
    node.install(None)?;
    node.terminate_daemon()?;
    cast.end_brief(&node)?;
    node.restart().await?;
    assert_eq!(shim_protocol(&mut node, &cast.pod).await?, 1);
    cast.is_looked_after(&mut node).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_of_the_previous_release_is_followed_by_this_one() -> Result<()> {
    let test = "a_killed_daemon_of_the_previous_release_is_followed_by_this_one";
    let Some(previous) = previous(test) else { return Ok(()) };
    let mut node = node_of(Some(&previous)).await?;
    let cast = Cast::new(&mut node).await?;
    node.install(None)?;
    node.kill_daemon()?;
    cast.end_brief(&node)?;
    node.kill_and_restart().await?;
    // What it wrote anew of the old one's records, it reads again.
    node.kill_and_restart().await?;
    cast.is_looked_after(&mut node).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_release_looks_after_pods_of_this_one_or_leaves_them_alone() -> Result<()> {
    let test = "the_previous_release_looks_after_pods_of_this_one_or_leaves_them_alone";
    let Some(previous) = previous(test) else { return Ok(()) };
    let mut node = node_of(Some(&previous)).await?;
    node.terminate_daemon()?;
    let old = schemas(&node)?;
    node.install(None)?;
    node.restart().await?;
    let cast = Cast::new(&mut node).await?;
    node.install(Some(&previous))?;
    node.terminate_daemon()?;
    cast.end_brief(&node)?;
    if schemas(&node)? == old {
        node.restart().await?;
        cast.is_looked_after(&mut node).await?;
        return node.assert_clean().await;
    }
    let stores = |node: &Node| -> Result<[Vec<u8>; 2]> {
        let read = |name: &str| fs::read(node.dir().join("root").join(name));
        Ok([read("pods.db")?, read("images.db")?])
    };
    let before = stores(&node)?;
    let refused = node.restart().await.err().context("a newer schema was taken")?;
    assert!(format!("{refused:#}").contains("schema"), "{refused:#}");
    assert!(stores(&node)? == before, "a newer store was changed");
    node.install(None)?;
    node.restart().await?;
    cast.is_looked_after(&mut node).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn to_the_previous_release_and_back_nothing_is_lost() -> Result<()> {
    let test = "to_the_previous_release_and_back_nothing_is_lost";
    let Some(previous) = previous(test) else { return Ok(()) };
    let mut node = node_of(Some(&previous)).await?;
    node.terminate_daemon()?;
    let old = schemas(&node)?;
    node.install(None)?;
    node.restart().await?;
    let cast = Cast::new(&mut node).await?;
    let container = container_config("gone", &cast.image, &["sleep", "1000"]);
    let gone = (node.run(&cast.pod, &container).await?, node.pod("gone").await?);
    node.terminate_daemon()?;
    cast.end_brief(&node)?;
    if schemas(&node)? == old {
        node.install(Some(&previous))?;
        node.restart().await?;
        // What it removes does not come back with this one.
        node.cri.stop_container(&gone.0, 0).await?;
        node.cri.remove_container(&gone.0).await?;
        node.cri.remove_sandbox(&gone.1.id).await?;
        cast.is_known(&mut node).await?;
        // It writes rows of every kind, in its own form.
        let image = node.busybox().await?;
        let third = node.pod("third").await?;
        assert_eq!(node.shell(&third, &image, "echo old").await?, "old\n");
        node.install(None)?;
    } else {
        node.restart().await?;
        node.cri.stop_container(&gone.0, 0).await?;
        node.cri.remove_container(&gone.0).await?;
    }
    node.restart().await?;
    let others: Vec<_> =
        node.cri.sandboxes().await?.into_iter().filter(|id| !cast.has(id)).collect();
    assert_eq!(others.len(), 1, "{others:?}");
    node.cri.remove_sandbox(&others[0]).await?;
    assert_eq!(shim_protocol(&mut node, &cast.pod).await?, 3);
    cast.is_looked_after(&mut node).await?;
    node.assert_clean().await
}

/// Rows that the previous release wrote have no copy and no checksum until this one sees
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn pods_of_the_previous_release_outlive_the_store_they_were_taken_over_in() -> Result<()> {
    let test = "pods_of_the_previous_release_outlive_the_store_they_were_taken_over_in";
    let Some(previous) = previous(test) else { return Ok(()) };
    let mut node = node_of(Some(&previous)).await?;
    let cast = Cast::new(&mut node).await?;
    node.install(None)?;
    node.restart().await?;
    // It answers once it has taken everything over.
    node.cri.sandboxes().await?;
    node.kill_daemon()?;
    for name in ["pods.db", "pods.db-wal", "pods.db-shm"] {
        fs::write(node.dir().join("root").join(name), "not a store")?;
    }
    cast.end_brief(&node)?;
    node.restart().await?;
    cast.is_looked_after(&mut node).await?;
    assert!(node.dir().join("root/pods.db.damaged-1").exists(), "no damage was seen");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_of_the_previous_release_serves_a_new_pod() -> Result<()> {
    let test = "a_shim_of_the_previous_release_serves_a_new_pod";
    let Some(previous) = previous(test) else { return Ok(()) };
    let shim = previous.join("containerd-shim-berth-v1");
    let config = format!("[runtime.handlers.old]\nshim = '{}'\n", shim.display());
    let mut node = Node::start_with(NodeOptions { config, ..Default::default() }).await?;
    let image = node.busybox().await?;
    let pods = [run_on(&mut node, "old").await?, run_on(&mut node, "berth").await?];
    for restarted in [false, true] {
        if restarted {
            node.kill_and_restart().await?;
        }
        for (pod, protocol) in pods.iter().zip([1, 3]) {
            assert_eq!(shim_protocol(&mut node, pod).await?, protocol);
            let name = &pod.config.metadata.as_ref().context("no metadata")?.name.clone();
            let counting = container_config("counting", &image, &["sh", "-c", COUNTING]);
            let id = node.run(pod, &counting).await?;
            assert_eq!(node.cri.exec(&id, &["echo", "in"], 10).await?.stdout, b"in\n");
            let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
            node.cri.runtime.reopen_container_log(request).await?;
            node.wait_for_line(name, "counting", "line 5").await?;
            node.cri.stop_container(&id, 20).await?;
            assert_eq!(node.wait_exit(&id).await?.exit_code, 7);
            node.cri.remove_container(&id).await?;
            fs::remove_file(node.log_directory(name).join("counting.log"))?;
        }
    }
    node.assert_clean().await
}

/// A pod on a runtime handler, called after it.
async fn run_on(node: &mut Node, handler: &str) -> Result<Pod> {
    let config = node.sandbox_config(handler);
    let request = v1::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: handler.to_owned(),
    };
    let id = node.cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    Ok(Pod { id, config })
}
