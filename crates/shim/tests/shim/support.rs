//! A shim with a private directory, socket, event server and cgroup.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use berth_cgroup::{CgroupPath, Hierarchy};
use berth_model::mount::Mount;
use berth_model::{ContainerId, SandboxId};
use berth_shim_client::{
    CreateRequest, Event, EventServer, Exited, Input, Output, ProcessId, Runtime, Shim,
    StartRequest, Started, start,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};

pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Says why a test does nothing, if it cannot do anything here.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root() && Path::new("/bin/busybox").exists();
    if !root {
        eprintln!("skipped: needs root and /bin/busybox");
    }
    root
}

/// One running shim.
pub(crate) struct Pod {
    pub(crate) dir: TempDir,
    pub(crate) id: SandboxId,
    pub(crate) shim: Shim,
    pub(crate) started: Started,
    pub(crate) process: ProcessId,
    pub(crate) events: Receiver<Event>,
    pub(crate) cgroup: String,
    /// Whether the shim's own log may have words in it.
    pub(crate) complains: bool,
    _server: EventServer,
}

impl Pod {
    pub(crate) async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    /// Starts a shim that inherits `fds`.
    pub(crate) async fn start_with(fds: Vec<(OwnedFd, i32)>) -> Self {
        Self::start_as(|request| request.fds = fds).await
    }

    /// Starts a shim by a request that `change` may alter.
    pub(crate) async fn start_as(change: impl FnOnce(&mut StartRequest)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("berth-shim-").tempdir().unwrap();
        let (server, events) = EventServer::listen(&dir.path().join("events"), 64).await.unwrap();
        let runtime = runtime();
        let id = SandboxId::new(format!("pod-{name}")).unwrap();
        let mut wanted = request(dir.path(), &id, Vec::new());
        change(&mut wanted);
        let started = start(&runtime, wanted).await.unwrap();
        let shim = started.shim.clone();
        let process = shim.peer().expect("the shim listens itself");
        assert_eq!(shim.shim_pid("").await.unwrap(), process.pid);
        let cgroup = format!("/berth-test-shim-{name}");
        Self { dir, id, shim, started, process, events, cgroup, complains: false, _server: server }
    }

    /// A bundle with busybox in its root file system; `change` may alter its spec.
    pub(crate) fn bundle(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> PathBuf {
        let bundle = self.dir.path().join(id);
        let bin = bundle.join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for name in ["dev", "proc", "tmp", "sys"] {
            std::fs::create_dir_all(bundle.join("rootfs").join(name)).unwrap();
        }
        // By another process: one that this one forks meanwhile would hold the file open for
        // writing, and nobody could execute it (ETXTBSY).
        let copy = std::process::Command::new("/bin/busybox")
            .args([OsStr::new("cp"), OsStr::new("/bin/busybox"), bin.as_os_str()])
            .status();
        assert!(copy.unwrap().success());
        for name in ["sh", "cat", "echo", "sleep", "ls", "readlink", "kill", "stty", "seq", "ps"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let mut spec = spec(args, &format!("{}/{id}", self.cgroup));
        change(&mut spec);
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    /// What to create, with both streams in the log of its id.
    pub(crate) fn wanted(&self, id: &str, bundle: PathBuf) -> CreateRequest {
        let log = Output::CriLog(self.log(id));
        CreateRequest {
            id: ContainerId::new(id).unwrap(),
            bundle,
            rootfs: Vec::<Mount>::new(),
            terminal: false,
            stdin: Input::Null,
            stdout: log.clone(),
            stderr: log,
        }
    }

    pub(crate) async fn create(&self, id: &str, args: &[&str]) -> ContainerId {
        self.create_with(id, args, |_| {}).await
    }

    pub(crate) async fn create_with(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> ContainerId {
        let wanted = self.wanted(id, self.bundle(id, args, change));
        let pid = self.shim.create(&wanted).await.unwrap();
        assert!(pid > 0);
        wanted.id
    }

    /// Creates and starts a container.
    pub(crate) async fn run(&self, id: &str, args: &[&str]) -> ContainerId {
        let container = self.create(id, args).await;
        self.shim.start(&container).await.unwrap();
        container
    }

    pub(crate) async fn wait(&self, container: &ContainerId) -> Exited {
        timeout(LONG, self.shim.wait(container)).await.unwrap().unwrap()
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(id).join("0.log")
    }

    /// What the log holds: stream, tag and text of each line.
    pub(crate) fn lines(&self, id: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.log(id)).unwrap_or_default();
        assert!(log.is_empty() || log.ends_with('\n'), "a torn line: {log:?}");
        log.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// Waits until the log has these lines.
    pub(crate) async fn expect(&self, id: &str, expected: &[&str]) {
        let until = tokio::time::Instant::now() + LONG;
        while self.lines(id) != expected {
            assert!(tokio::time::Instant::now() < until, "{:?}", self.lines(id));
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn cgroup_exists(&self, id: &str) -> bool {
        let path = CgroupPath::new(&format!("{}/{id}", self.cgroup)).unwrap();
        Hierarchy::detect().unwrap().open(&path).is_ok()
    }

    /// Ends the shim as berthd does, and proves that nothing is left.
    pub(crate) async fn finish(self) {
        self.shim.shutdown(self.id.as_str()).await.unwrap();
        self.finished().await;
    }

    /// Proves that the shim has ended, and that nothing is left of it.
    pub(crate) async fn finished(self) {
        timeout(LONG, self.shim.closed()).await.expect("the shim goes on");
        let until = tokio::time::Instant::now() + LONG;
        // Its zombie is the machine's business, which may be busy.
        while is_alive(self.process) {
            assert!(tokio::time::Instant::now() < until, "the shim's process goes on");
            sleep(Duration::from_millis(5)).await;
        }
        assert!(!self.dir.path().join("shim.sock").exists(), "the socket is left");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "a mount is left");
        let words = std::fs::read_to_string(self.dir.path().join("shim.log")).unwrap();
        assert!(self.complains || words.is_empty(), "the shim complained: {words}");
        let parent = CgroupPath::new(&self.cgroup).unwrap();
        if let Ok(parent) = Hierarchy::detect().unwrap().open(&parent) {
            for path in parent.paths().iter().filter(|path| path.exists()) {
                let below = std::fs::read_dir(path).unwrap();
                let below = below.filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir());
                assert_eq!(below.count(), 0, "a cgroup is left in {}", path.display());
            }
        }
    }
}

impl Drop for Pod {
    /// Whatever happened: no process and no cgroup outlives the test.
    fn drop(&mut self) {
        self.process.kill(Signal::SIGKILL).unwrap();
        let path = CgroupPath::new(&self.cgroup).unwrap();
        if let Ok(cgroup) = Hierarchy::detect().unwrap().open(&path) {
            cgroup.kill_all().unwrap();
            for _ in 0..1000 {
                if cgroup.remove().is_ok() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            cgroup.remove().unwrap();
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-berth-v1"));
    Runtime { path, namespace: "k8s.io".into(), params: false }
}

pub(crate) fn request(dir: &Path, id: &SandboxId, fds: Vec<(OwnedFd, i32)>) -> StartRequest {
    let bundle = dir.join("bundle");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&bundle).unwrap();
    StartRequest {
        id: id.to_string(),
        bundle,
        events: dir.join("events"),
        socket: Some(dir.join("shim.sock")),
        fds,
        cgroup: Vec::new(),
        env: Vec::new(),
        log: Some(dir.join("shim.log")),
        debug: false,
        deadline: LONG,
    }
}

/// A small container: own pid, mount, IPC and UTS namespaces, the node's network.
fn spec(args: &[&str], cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]
            },
            "noNewPrivileges": true,
            "oomScoreAdj": 500
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}
            ]
        }
    })
}

/// How often a test does something: less than its row of the failures table asks for, unless
/// the environment says so.
pub(crate) fn count(variable: &str, default: usize) -> usize {
    let told = std::env::var(variable).ok();
    told.map_or(default, |told| told.parse().unwrap_or_else(|_| panic!("{variable}={told}")))
}

/// Waits until it is so.
pub(crate) async fn wait_for(what: &str, done: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + LONG;
    while !done() {
        assert!(tokio::time::Instant::now() < until, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process lives. A zombie whose parent is gone is the machine's business.
pub(crate) fn is_alive(process: ProcessId) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    process.exists() && !stat.contains(") Z ")
}

/// Replaces the namespace of a kind in a spec; no path and no `new` means the shim's own.
pub(crate) fn set_namespace(spec: &mut Value, kind: &str, path: Option<&str>) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != kind);
    if let Some(path) = path {
        namespaces.push(json!({"type": kind, "path": path}));
    }
}
