//! What containers, sandboxes and images use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::{Node, container_config, sandbox_security, script};

fn value(of: Option<v1::UInt64Value>) -> u64 {
    of.unwrap_or_default().value
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containers_usage_is_counted() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let use_some = "head -c 8000000 /dev/zero > /written; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                    echo used; sleep 1000";
    let mut config = script(&image, use_some);
    config.labels.insert("app".into(), "a".into());
    let id = node.run(&pod, &config).await?;
    node.wait_for_line("pod", "main", "used").await?;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.cri.runtime.container_stats(request.clone()).await?.into_inner().stats;
    let stats = stats.context("no stats")?;
    let attributes = stats.attributes.context("no attributes")?;
    assert_eq!(attributes.id, id);
    assert_eq!(attributes.labels.get("app").map(String::as_str), Some("a"));
    let cpu = stats.cpu.context("no cpu")?;
    assert!(value(cpu.usage_core_nano_seconds) > 1_000_000 && cpu.timestamp > 0, "{cpu:?}");
    let memory = stats.memory.context("no memory")?;
    assert!(value(memory.working_set_bytes) > 0 && value(memory.usage_bytes) > 0, "{memory:?}");
    let layer = stats.writable_layer.context("no writable layer")?;
    assert!(value(layer.used_bytes) >= 8_000_000 && value(layer.inodes_used) > 0, "{layer:?}");
    assert!(layer.fs_id.is_some(), "{layer:?}");

    node.cri.stop_container(&id, 0).await?;
    let ended = node.cri.runtime.container_stats(request).await?.into_inner().stats;
    let ended = ended.context("no stats of an ended container")?;
    assert!(ended.cpu.is_none() && ended.memory.is_none(), "{ended:?}");
    assert!(ended.writable_layer.is_some(), "{ended:?}");
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_usage_is_that_of_its_containers() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut other = node.sandbox_config("other");
    other.labels.insert("app".into(), "b".into());
    let other = node.pod_with(other).await?;
    for name in ["one", "two"] {
        node.run(&pod, &container_config(name, &image, &["sleep", "1000"])).await?;
    }
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = node.cri.runtime.pod_sandbox_stats(request).await?.into_inner().stats;
    let stats = stats.context("no stats")?;
    let attributes = stats.attributes.context("no attributes")?;
    assert_eq!(attributes.id, pod.id);
    assert_eq!(attributes.metadata.context("no metadata")?.name, "pod");
    let linux = stats.linux.context("no linux stats")?;
    assert!(value(linux.cpu.context("no cpu")?.usage_core_nano_seconds) > 0);
    assert!(value(linux.memory.context("no memory")?.working_set_bytes) > 0);
    assert_eq!(value(linux.process.context("no processes")?.process_count), 2);
    assert_eq!(linux.containers.len(), 2);
    let traffic = linux.network.context("no network")?.default_interface.context("no interface")?;
    assert_eq!(traffic.name, "eth0");
    for container in &linux.containers {
        let running = container.cpu.is_some() && container.memory.is_some();
        assert!(running && container.writable_layer.is_some(), "{container:?}");
    }

    let all = v1::ListPodSandboxStatsRequest::default();
    let listed = node.cri.runtime.list_pod_sandbox_stats(all).await?.into_inner().stats;
    assert_eq!(listed.len(), 2);
    for filter in [
        v1::PodSandboxStatsFilter { id: other.id.clone(), ..Default::default() },
        v1::PodSandboxStatsFilter {
            label_selector: [("app".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        },
    ] {
        let request = v1::ListPodSandboxStatsRequest { filter: Some(filter.clone()) };
        let listed = node.cri.runtime.list_pod_sandbox_stats(request).await?.into_inner().stats;
        let ids: Vec<_> =
            listed.iter().filter_map(|stats| Some(&stats.attributes.as_ref()?.id)).collect();
        assert_eq!(ids, [&other.id], "{filter:?}");
    }
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_file_system_is_named_and_filled_by_images() -> Result<()> {
    let mut node = Node::start().await?;
    let request = v1::ImageFsInfoRequest::default;
    let info = node.cri.image.image_fs_info(request()).await?.into_inner();
    let empty = info.image_filesystems.first().context("no image file system")?.clone();
    node.busybox().await?;
    let info = node.cri.image.image_fs_info(request()).await?.into_inner();
    let filled = info.image_filesystems.first().context("no image file system")?.clone();
    let mountpoint = filled.fs_id.context("no file system id")?.mountpoint;
    assert!(std::path::Path::new(&mountpoint).starts_with(node.dir()), "{mountpoint}");
    assert!(filled.timestamp > 0);
    // The program alone has more than a megabyte.
    assert!(value(filled.used_bytes) > value(empty.used_bytes) + 1_000_000);
    assert!(value(filled.inodes_used) > value(empty.inodes_used) + 10);
    node.assert_clean().await
}

/// Statistics of all sandboxes, each with its containers, from the plain list.
async fn listed(node: &mut Node) -> Result<Vec<v1::PodSandboxStats>> {
    let request = v1::ListPodSandboxStatsRequest::default();
    Ok(node.cri.runtime.list_pod_sandbox_stats(request).await?.into_inner().stats)
}

async fn linux_of(node: &mut Node, sandbox: &str) -> Result<v1::LinuxPodSandboxStats> {
    let of = |stats: &v1::PodSandboxStats| {
        stats.attributes.as_ref().is_some_and(|attributes| attributes.id == sandbox)
    };
    let all = listed(node).await?;
    all.into_iter().find(of).and_then(|stats| stats.linux).context("not listed")
}

/// Network namespaces that the daemon has open, and their counters.
fn open_networks(node: &Node) -> Result<usize> {
    let pid = node.daemon().pid().context("no daemon")?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let keeps = |link: &str| link.starts_with("net:[") || link.ends_with("/net/dev");
    Ok(links.filter(|link| keeps(&link.to_string_lossy())).count())
}

/// A namespace exists for as long as anybody has it open, and with it the pod's interface.
///
/// teeth: crates/engine/src/sandbox/driver.rs: `if ended {` → `if false {`
#[tokio::test(flavor = "multi_thread")]
async fn the_network_of_a_pod_that_is_watched_ends_when_it_is_stopped() -> Result<()> {
    let (mut node, _image, pod) = Node::with_pod().await?;
    let before = open_networks(&node)?;
    let network = linux_of(&mut node, &pod.id).await?.network.context("no network")?;
    assert_eq!(network.default_interface.context("no interface")?.name, "eth0");
    assert_eq!(open_networks(&node)?, before + 1, "it is found once");
    node.cri.stop_sandbox(&pod.id).await?;
    assert_eq!(open_networks(&node)?, before);
    assert!(linux_of(&mut node, &pod.id).await?.network.is_none());
    assert_eq!(open_networks(&node)?, before);
    node.assert_clean().await
}

/// kubelet makes a cgroup for each pod and names it as the parent: what is used in there
/// beside the containers is the pod's too. Others give several pods the same parent.
///
/// teeth: crates/engine/src/sandbox/driver.rs: `self.core.parents.remove(&self.sandbox.cgroup, &self.sandbox.id);` → ``
#[tokio::test(flavor = "multi_thread")]
async fn a_pods_usage_is_that_of_its_own_cgroup_and_never_anothers() -> Result<()> {
    let mut node = Node::start().await?;
    let image = node.busybox().await?;
    let base = node.cgroup_base().to_owned();
    let mut own = node.sandbox_config("own");
    own.linux.get_or_insert_default().cgroup_parent = format!("{base}/own");
    let own = node.pod_with(own).await?;
    let mut pods = vec![own];
    for name in ["one", "two"] {
        let mut config = node.sandbox_config(name);
        config.linux.get_or_insert_default().cgroup_parent = format!("{base}/shared");
        pods.push(node.pod_with(config).await?);
    }
    for pod in &pods {
        node.run(pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    }
    node.run(&pods[2], &container_config("more", &image, &["sleep", "1000"])).await?;
    let mut overhead = Overhead::new(&format!("{base}/own/overhead"))?;
    let mut processes = Vec::new();
    for pod in &pods {
        let linux = linux_of(&mut node, &pod.id).await?;
        processes.push(value(linux.process.context("no processes")?.process_count));
        let working_set = value(linux.memory.context("no memory")?.working_set_bytes);
        assert!(working_set > 0 && value(linux.cpu.context("no cpu")?.usage_core_nano_seconds) > 0);
    }
    assert_eq!(processes, [2, 1, 2], "own with overhead, and what each of the others has");
    overhead.end()?;
    // Once it is the only one that is left.
    node.cri.stop_sandbox(&pods[1].id).await?;
    let mut overhead = Overhead::new(&format!("{base}/shared/overhead"))?;
    let left = linux_of(&mut node, &pods[2].id).await?;
    assert_eq!(value(left.process.context("no processes")?.process_count), 3);
    overhead.end()?;
    for pod in &pods {
        node.cri.stop_sandbox(&pod.id).await?;
        node.cri.remove_sandbox(&pod.id).await?;
    }
    // Who named them removes them.
    for mount in cgroup_mounts()? {
        for parent in ["own", "shared"] {
            remove_directory(&mount.join(base.trim_start_matches('/')).join(parent))?;
        }
    }
    node.assert_clean().await
}

/// A process beside the containers, in every hierarchy that a cgroup's processes are in.
struct Overhead {
    child: std::process::Child,
    directories: Vec<PathBuf>,
}

impl Overhead {
    fn new(cgroup: &str) -> Result<Self> {
        let child = std::process::Command::new("sleep").arg("1000").spawn()?;
        let mut overhead = Self { child, directories: Vec::new() };
        for mount in cgroup_mounts()? {
            let directory = mount.join(cgroup.trim_start_matches('/'));
            let parent = directory.parent().context("no parent")?;
            if parent.is_dir() {
                std::fs::create_dir(&directory)?;
                overhead.directories.push(directory.clone());
                let cpus = parent.join("cpuset.cpus");
                if cpus.exists() && !mount.join("cgroup.subtree_control").exists() {
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        std::fs::copy(parent.join(file), directory.join(file))?;
                    }
                }
                let pid = overhead.child.id().to_string();
                std::fs::write(directory.join("cgroup.procs"), pid)?;
            }
        }
        Ok(overhead)
    }

    fn end(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.directories.drain(..).try_for_each(|directory| remove_directory(&directory))
    }
}

/// Removes a cgroup whose last process has ended, perhaps a moment ago.
fn remove_directory(directory: &Path) -> Result<()> {
    use std::io::ErrorKind::{NotFound, ResourceBusy};
    loop {
        match std::fs::remove_dir(directory) {
            Err(error) if error.kind() == ResourceBusy => std::thread::yield_now(),
            Err(error) if error.kind() != NotFound => bail!("{}: {error}", directory.display()),
            _ => return Ok(()),
        }
    }
}

impl Drop for Overhead {
    fn drop(&mut self) {
        let _ended = self.end();
    }
}

/// Where each hierarchy of cgroups is mounted.
fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let cgroup = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup").then(|| place.split(' ').nth(4).map(PathBuf::from))?
    };
    Ok(mounts.lines().filter_map(cgroup).collect())
}

/// teeth: crates/cri/src/stats.rs: `sample.and_then(io),\n    }` → `None,\n    }`
#[tokio::test(flavor = "multi_thread")]
async fn pressure_and_swap_are_told_where_the_kernel_tells_them() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let id = node.run(&pod, &script(&image, "i=0; while :; do i=$((i+1)); done")).await?;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.cri.runtime.container_stats(request).await?.into_inner().stats;
    let stats = stats.context("no stats")?;
    let base = format!("{}/{}", node.cgroup_base(), pod.id);
    let below = base.trim_start_matches('/');
    let has = |file: &str| -> Result<bool> {
        Ok(cgroup_mounts()?.iter().any(|mount| mount.join(below).join(file).exists()))
    };
    let (cpu, memory) = (stats.cpu.context("no cpu")?, stats.memory.context("no memory")?);
    let pressure = [cpu.psi.is_some(), memory.psi.is_some(), stats.io.is_some()];
    assert_eq!(pressure, [has("cpu.pressure")?, has("memory.pressure")?, has("io.pressure")?]);
    for psi in [cpu.psi, memory.psi, stats.io.and_then(|io| io.psi)].into_iter().flatten() {
        let (some, full) = (psi.some.context("no some")?, psi.full.context("no full")?);
        assert!(some.total >= full.total && some.total % 1000 == 0, "{psi:?}");
        assert!((0.0..=100.0).contains(&some.avg10), "{psi:?}");
    }
    let accounted = has("memory.memsw.usage_in_bytes")? || has("memory.swap.current")?;
    assert_eq!(stats.swap.is_some(), accounted);
    let linux = linux_of(&mut node, &pod.id).await?;
    assert_eq!(linux.io.is_some(), pressure[2]);
    node.cri.stop_container(&id, 0).await?;
    node.assert_clean().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_does_not_run_has_a_disk_only_and_is_listed() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut config = container_config("created", &image, &["true"]);
    config.labels.insert("app".into(), "a".into());
    let created = node.cri.create_container(&pod.id, &pod.config, &config).await?;
    let running = node.run(&pod, &container_config("runs", &image, &["sleep", "1000"])).await?;
    let list = async |node: &mut Node, filter| -> Result<Vec<(String, bool, bool)>> {
        let request = v1::ListContainerStatsRequest { filter };
        let stats = node.cri.runtime.list_container_stats(request).await?.into_inner().stats;
        let told = |it: v1::ContainerStats| {
            let id = it.attributes.map(|attributes| attributes.id).unwrap_or_default();
            (id, it.cpu.is_some() && it.memory.is_some(), it.writable_layer.is_some())
        };
        let mut all: Vec<_> = stats.into_iter().map(told).collect();
        all.sort();
        Ok(all)
    };
    let (first, second) = ((created.clone(), false, true), (running.clone(), true, true));
    let mut both = vec![first.clone(), second.clone()];
    both.sort();
    assert_eq!(list(&mut node, None).await?, both);
    let by = |id: &str, sandbox: &str, label: Option<&str>| {
        let label_selector = label.map(|value| ("app".to_owned(), value.to_owned()));
        Some(v1::ContainerStatsFilter {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            label_selector: label_selector.into_iter().collect(),
        })
    };
    assert_eq!(list(&mut node, by("", &pod.id, None)).await?, both);
    assert_eq!(list(&mut node, by(&running[..20], "", None)).await?, [second]);
    assert_eq!(list(&mut node, by("", "", Some("a"))).await?, [first]);
    assert_eq!(list(&mut node, by(&running, "", Some("a"))).await?, []);
    assert_eq!(list(&mut node, by("", "ffff", None)).await?, []);
    let request = v1::ContainerStatsRequest { container_id: "ffff".into() };
    let missing = node.cri.runtime.container_stats(request).await;
    assert_eq!(missing.err().context("found")?.code(), tonic::Code::NotFound);

    node.cri.stop_sandbox(&pod.id).await?;
    let linux = linux_of(&mut node, &pod.id).await?;
    assert_eq!((linux.cpu, linux.memory, linux.network, linux.process), (None, None, None, None));
    assert_eq!(linux.containers.len(), 2);
    node.assert_clean().await
}

/// A shim that hangs delays no list: nothing is asked of it.
#[tokio::test(flavor = "multi_thread")]
async fn statistics_ask_no_shim() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    node.run(&pod, &container_config("main", &image, &["sleep", "1000"])).await?;
    let shim = i32::try_from(node.shim_pid(&pod.id).await?)?;
    let shim = nix::unistd::Pid::from_raw(shim);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP)?;
    let asked = async {
        let linux = linux_of(&mut node, &pod.id).await?;
        let request = v1::ListPodSandboxMetricsRequest::default();
        let metrics = node.cri.runtime.list_pod_sandbox_metrics(request).await?.into_inner();
        Ok::<_, anyhow::Error>((linux, metrics.pod_metrics.len()))
    };
    let answered = tokio::time::timeout(Duration::from_secs(30), asked).await;
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGCONT)?;
    let (linux, pods) = answered.context("a stopped shim delays statistics")??;
    assert!(linux.cpu.is_some() && linux.network.is_some() && pods == 1);
    assert_eq!(linux.containers.len(), 1);
    node.assert_clean().await
}

/// What kubelet asks for with `CRIListStreaming` is what the lists say.
#[tokio::test(flavor = "multi_thread")]
async fn streams_say_what_lists_say() -> Result<()> {
    let (mut node, image, pod) = Node::with_pod().await?;
    let mut host = node.sandbox_config("host");
    let options = sandbox_security(&mut host).namespace_options.get_or_insert_default();
    options.network = v1::NamespaceMode::Node.into();
    let host = node.pod_with(host).await?;
    let mut ids = Vec::new();
    for (pod, name) in [(&pod, "one"), (&pod, "two"), (&host, "three")] {
        ids.push(node.run(pod, &container_config(name, &image, &["sleep", "1000"])).await?);
    }
    let runtime = &mut node.cri.runtime;
    let request = v1::StreamContainerStatsRequest::default();
    let mut parts = runtime.stream_container_stats(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(part) = parts.message().await? {
        let stats = part.container_stats;
        ensure!(!stats.is_empty(), "an empty part");
        found.extend(stats.into_iter().filter_map(|it| Some(it.attributes?.id)));
    }
    ids.sort();
    found.sort();
    assert_eq!(found, ids);

    let filter = v1::PodSandboxStatsFilter { id: host.id.clone(), ..Default::default() };
    let request = v1::StreamPodSandboxStatsRequest { filter: Some(filter) };
    let mut parts = runtime.stream_pod_sandbox_stats(request).await?.into_inner();
    let [stats] = <[_; 1]>::try_from(parts.message().await?.context("nothing")?.pod_sandbox_stats)
        .map_err(|stats| anyhow::anyhow!("not one: {stats:?}"))?;
    ensure!(parts.message().await?.is_none(), "a second part");
    assert_eq!(stats.attributes.context("no attributes")?.id, host.id);
    let linux = stats.linux.context("no linux")?;
    assert!(linux.network.is_none(), "the network of a node is no pod's: {linux:?}");
    assert_eq!(linux.containers.len(), 1);

    let nothing = v1::ContainerStatsFilter { id: "ffff".into(), ..Default::default() };
    let request = v1::StreamContainerStatsRequest { filter: Some(nothing) };
    let mut parts = runtime.stream_container_stats(request).await?.into_inner();
    assert!(parts.message().await?.is_none());
    node.assert_clean().await
}
