//! An engine on directories, a network namespace and a cgroup of its own, with an image
//! that holds nothing but busybox.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::future::Future;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_cgroup::{CgroupPath, Hierarchy};
use berth_content::Content;
use berth_engine::{Config, Engine, Error, RuntimeConfig};
use berth_image::Images;
use berth_metadata::{BlobRecord, ImageStore, SnapshotRecord};
use berth_model::container::{ContainerName, ExitReason, Timestamp};
use berth_model::image::ImageRecord;
use berth_model::sandbox::{NamespaceMode, NamespaceOptions, SandboxName};
use berth_model::{
    ChainId, ContainerId, ContainerSpec, ContainerState, DiffId, Digest, SandboxId, SandboxSpec,
};
use berth_network::NetworkConfig;
use berth_registry::Client;
use berth_shim_client::ProcessId;
use berth_snapshot::Snapshots;
use tempfile::TempDir;

pub(crate) const IMAGE: &str = "registry.test/busybox:latest";
const BUSYBOX: &str = "/bin/busybox";

/// Runs `test` on a runtime whose threads are all in a network namespace of their own.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    if shim().is_none() || !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs containerd-shim-berth-v1 built and busybox-static installed");
        return;
    }
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
        runtime.shutdown_timeout(Duration::from_secs(10));
    };
    std::thread::spawn(body).join().unwrap();
}

/// The shim that was built beside this test.
fn shim() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let shim = exe.parent()?.parent()?.join("containerd-shim-berth-v1");
    shim.exists().then_some(shim)
}

pub(crate) struct Node {
    dir: TempDir,
    base: String,
    pub(crate) engine: Engine,
}

impl Node {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-eng-").tempdir_in("/var/tmp").unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let base = format!("/{name}");
        fs::create_dir(dir.path().join("root")).unwrap();
        install_image(&dir.path().join("root"));
        let engine = open(dir.path(), &base).await.unwrap();
        Self { dir, base, engine }
    }

    /// As a daemon that was killed and started again.
    pub(crate) async fn restart(mut self) -> Self {
        self.engine.shutdown().await;
        self.engine = open(self.dir.path(), &self.base).await.unwrap();
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn pods(&self) -> berth_metadata::PodStore {
        berth_metadata::PodStore::open(&self.dir.path().join("root/pods.db")).unwrap()
    }

    /// Leaves `pods.db` alone to say what there was.
    pub(crate) fn forget_copies(&self) {
        for kind in ["sandboxes", "containers"] {
            for entry in std::fs::read_dir(self.path().join("state").join(kind)).unwrap() {
                std::fs::remove_file(entry.unwrap().path().join("record.json")).unwrap();
            }
        }
    }

    pub(crate) fn sandbox_spec(&self, name: &str) -> SandboxSpec {
        SandboxSpec {
            name: SandboxName {
                name: name.into(),
                namespace: "test".into(),
                uid: format!("uid-{name}"),
                attempt: 0,
            },
            hostname: "web-1".into(),
            log_directory: Some(self.dir.path().join("logs").join(name)),
            namespaces: NamespaceOptions {
                pid: NamespaceMode::Container,
                ..NamespaceOptions::default()
            },
            ..SandboxSpec::default()
        }
    }

    pub(crate) async fn sandbox(&self, name: &str) -> SandboxId {
        self.engine.run_sandbox(self.sandbox_spec(name)).await.unwrap_or_else(|error| fail(&error))
    }

    pub(crate) async fn create(
        &self,
        sandbox: &SandboxId,
        name: &str,
        script: &str,
    ) -> ContainerId {
        let spec = container_spec(name, script);
        self.engine.create_container(sandbox, spec).await.unwrap_or_else(|error| fail(&error))
    }

    pub(crate) async fn start_container(&self, id: &ContainerId) {
        self.engine.start_container(id).await.unwrap_or_else(|error| fail(&error));
    }

    pub(crate) async fn exited(&self, id: &ContainerId) -> (i32, ExitReason) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let state = self.engine.container(id).unwrap().state.clone();
            if let ContainerState::Exited { exit, .. } = state {
                return (exit.code, exit.reason);
            }
            assert!(Instant::now() < until, "container {id} is still {}", state.name());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The log of a container, once it holds `text`.
    pub(crate) async fn log_with(&self, pod: &str, container: &str, text: &str) -> String {
        let path = self.dir.path().join("logs").join(pod).join(format!("{container}.log"));
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let log = fs::read_to_string(&path).unwrap_or_default();
            if log.contains(text) {
                return log;
            }
            assert!(Instant::now() < until, "{text:?} is not in the log: {log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing of any pod is left: no directory, snapshot, cgroup, socket, link, lease.
    pub(crate) async fn assert_clean(self) {
        let until = Instant::now() + Duration::from_secs(10);
        while let Some(left) = self.leftover() {
            assert!(Instant::now() < until, "left: {left}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.engine.shutdown().await;
        remove_cgroups(&self.base);
    }

    fn leftover(&self) -> Option<String> {
        let root = self.dir.path();
        for dir in [
            "state/sandboxes",
            "state/containers",
            "state/exec",
            "state/s",
            "root/snapshots/active",
        ] {
            let path = root.join(dir);
            if let Some(entry) = fs::read_dir(&path).ok()?.next() {
                return Some(entry.unwrap().path().display().to_string());
            }
        }
        let pods = self.pods();
        let leases = pods.leases().unwrap();
        if !leases.is_empty() {
            return Some(format!("{leases:?}"));
        }
        if !pods.sandboxes().unwrap().is_empty() || !pods.containers().unwrap().is_empty() {
            return Some("records".into());
        }
        for directory in cgroup_directories(&self.base) {
            let children = fs::read_dir(&directory).unwrap().filter_map(Result::ok);
            if let Some(child) = children.map(|child| child.path()).find(|child| child.is_dir()) {
                return Some(child.display().to_string());
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = root.to_str().unwrap();
        mounts.lines().find(|line| line.contains(root)).map(str::to_owned)
    }
}

/// A test that failed leaves no process behind.
impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let store = berth_metadata::PodStore::open(&self.dir.path().join("root/pods.db"));
        let sandboxes = store.and_then(|pods| pods.sandboxes()).unwrap_or_default();
        for shim in sandboxes.into_iter().filter_map(|sandbox| sandbox.shim) {
            let process = ProcessId { pid: shim.pid, started: shim.started_ticks };
            drop(process.kill(nix::sys::signal::Signal::SIGKILL));
        }
        let path = CgroupPath::new(&self.base);
        let cgroup = Hierarchy::detect().and_then(|hierarchy| hierarchy.open(&path?));
        for _ in 0..100 {
            let Ok(cgroup) = &cgroup else { break };
            if cgroup.kill_all().is_ok() && cgroup.remove().is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) fn container_spec(name: &str, script: &str) -> ContainerSpec {
    let mut spec = ContainerSpec {
        name: ContainerName { name: name.into(), attempt: 0 },
        image: IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: Some(format!("{name}.log").into()),
        ..ContainerSpec::default()
    };
    spec.security.namespaces.pid = NamespaceMode::Container;
    spec
}

pub(crate) fn fail(error: &Error) -> ! {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    panic!("{text}")
}

async fn open(dir: &Path, base: &str) -> Result<Engine, Error> {
    let root = dir.join("root");
    let images = Images::new(
        ImageStore::open(&root.join("images.db")).unwrap(),
        Content::open(root.join("content")).unwrap(),
        Snapshots::open(&root.join("snapshots")).unwrap(),
        Client::new(berth_registry::Config::default()).unwrap(),
        berth_image::Config::default(),
    );
    let runtime = RuntimeConfig { shim: shim().unwrap(), in_tree: true };
    let config = Config {
        root,
        state: dir.join("state"),
        runtimes: [("berth".to_owned(), runtime)].into(),
        default_runtime: "berth".into(),
        network: NetworkConfig::default(),
        cgroup_base: base.to_owned(),
        shim_cgroup: None,
        shm_bytes: 64 << 20,
        pids_limit: None,
        events_address: String::new(),
        cdi_dirs: vec![dir.join("cdi")],
        seccomp_profiles: dir.join("seccomp"),
        stats_age: Duration::from_secs(1),
        nri: None,
    };
    Engine::open(config, images).await
}

/// One layer with busybox and an account, recorded as a pull would.
fn install_image(root: &Path) {
    let store = ImageStore::open(&root.join("images.db")).unwrap();
    let content = Content::open(root.join("content")).unwrap();
    let snapshots = Snapshots::open(&root.join("snapshots")).unwrap();
    let layer = snapshots.begin_layer().unwrap();
    let dir = PathBuf::from(format!("/proc/self/fd/{}", layer.root().as_raw_fd()));
    for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, dir.join("bin/busybox")).unwrap();
    fs::set_permissions(dir.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in ["sh", "sleep", "true", "cat", "echo", "id", "hostname", "ip", "dd", "yes"] {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)).unwrap();
    }
    let accounts = "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/tmp:/bin/sh\n";
    fs::write(dir.join("etc/passwd"), accounts).unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nextra:x:50000:web\n").unwrap();
    drop(dir);

    let diff = DiffId(Digest::of(b"busybox layer"));
    let chain = ChainId::chain(&[diff])[0];
    let committed = snapshots.commit_layer(layer, chain).unwrap();
    let record = SnapshotRecord { chain, parent: None, bytes: 4096, inodes: 1, dir: committed.dir };
    store.put_snapshot(&record).unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
    );
    let id = content.put(config.as_bytes()).unwrap();
    let size = u64::try_from(config.len()).unwrap();
    store.put_blobs(&[BlobRecord { digest: id, size }]).unwrap();
    let image = ImageRecord {
        id,
        tags: vec![IMAGE.into()],
        digests: Vec::new(),
        manifest: id,
        blobs: vec![id],
        chain: vec![chain],
        size,
        user: String::new(),
        pulled_at: Timestamp(1),
    };
    store.put_image(&image).unwrap();
}

fn cgroup_directories(base: &str) -> Vec<PathBuf> {
    let mounts = fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(Result::ok);
    let mut roots: Vec<_> = mounts.map(|mount| mount.path()).collect();
    roots.push("/sys/fs/cgroup".into());
    roots.into_iter().map(|root| root.join(&base[1..])).filter(|path| path.is_dir()).collect()
}

fn remove_cgroups(base: &str) {
    for directory in cgroup_directories(base) {
        // Several names lead to one hierarchy (cpu, cpuacct).
        drop(fs::remove_dir(directory));
    }
}
