//! A bundle, and what runs in it.

use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_cgroup::{CgroupPath, Hierarchy};
use berth_model::mount::Mount;
use berth_oci_runtime::{
    CreateRequest, Created, Error, ExecRequest, SharedMounts, Stdio, create, exec, start,
};
use oci_spec::runtime::{Process, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::environment::Host;

/// Longest any step may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How a process ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit code, or 128 and the signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A bundle with a private name, cgroup and root file system.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) spec: Value,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) shared: SharedMounts,
    pub(crate) cgroups: Hierarchy,
    before: Host,
}

/// A running container.
pub(crate) struct Running {
    pub(crate) created: Option<Created>,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Fixture {
    /// A container of `args` with what any container has.
    pub(crate) fn new(args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let before = Host::look();
        let directory = tempfile::tempdir().unwrap();
        make_root(&directory.path().join("rootfs"));
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("t{}-{number}", std::process::id());
        let spec = default_spec(args, &format!("{}/{id}", parent_cgroup()));
        let cgroups = Hierarchy::detect().unwrap();
        let (rootfs, shared) = (Vec::new(), SharedMounts::none());
        Self { directory, id, spec, rootfs, shared, cgroups, before }
    }

    /// A container of one shell command.
    pub(crate) fn shell(command: &str) -> Self {
        Self::new(&["sh", "-c", command])
    }

    /// A path in the root file system.
    pub(crate) fn root(&self, path: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(path.trim_start_matches('/'))
    }

    /// The spec as the library wants it.
    pub(crate) fn typed(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).unwrap()
    }

    /// Adds a mount to the spec.
    pub(crate) fn mount(
        &mut self,
        destination: &str,
        fs_type: &str,
        source: &str,
        options: &[&str],
    ) {
        self.spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": destination, "type": fs_type, "source": source, "options": options,
        }));
    }

    pub(crate) fn cgroup(&self) -> berth_cgroup::Cgroup {
        let path = self.spec["linux"]["cgroupsPath"].as_str().unwrap();
        self.cgroups.at(&CgroupPath::new(path).unwrap())
    }

    /// Makes the container with these streams.
    pub(crate) fn create(&self, stdio: Stdio) -> Result<Created, Error> {
        let spec = self.typed();
        create(CreateRequest {
            id: &self.id,
            bundle: self.directory.path(),
            spec: &spec,
            rootfs: &self.rootfs,
            stdio,
            shared: &self.shared,
            cgroups: &self.cgroups,
        })?
        .wait(PATIENCE)
    }

    /// Makes and starts it.
    pub(crate) fn start(&self) -> Result<Running, Error> {
        let (stdio, stdout, stderr) = pipes();
        let mut running = Running::new(self.create(stdio)?, stdout, stderr);
        running.start()?;
        Ok(running)
    }

    /// Runs it to its end and proves that nothing is left.
    #[track_caller]
    pub(crate) fn run(self) -> Outcome {
        let outcome = self.start().unwrap_or_else(|error| panic!("{}", chain(&error))).finish();
        self.assert_clean();
        outcome
    }

    /// Starts a further process in `running`.
    pub(crate) fn exec(&self, running: &Running, process: &Value) -> Result<Running, Error> {
        let process: Process = serde_json::from_value(process.clone()).unwrap();
        let (stdio, stdout, stderr) = pipes();
        let cgroup = self.cgroup();
        let created = exec(ExecRequest {
            id: &self.id,
            init: running.pidfd.as_fd(),
            spec: &self.typed(),
            process: &process,
            stdio,
            cgroup: Some(&cgroup),
        })?
        .wait(PATIENCE)?;
        let mut process = Running::new(created, stdout, stderr);
        process.start()?;
        Ok(process)
    }

    /// The container's own process with other arguments.
    pub(crate) fn process(&self, args: &[&str]) -> Value {
        let mut process = self.spec["process"].clone();
        process["args"] = json!(args);
        process
    }

    /// Removes the cgroup as a caller does after a container's end, then compares the host.
    #[track_caller]
    pub(crate) fn assert_clean(self) {
        self.cgroup().remove().unwrap();
        self.assert_undone();
    }

    /// Nothing may be left without any help.
    #[track_caller]
    pub(crate) fn assert_undone(self) {
        assert!(!self.cgroup().exists(), "the cgroup is left");
        let Self { directory, shared, before, .. } = self;
        drop(shared);
        directory.close().expect("nothing is mounted in the bundle");
        assert_eq!(Host::look(), before);
    }
}

impl Running {
    pub(crate) fn new(created: Created, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        let pidfd = created.pidfd.try_clone().unwrap();
        let pid = u32::try_from(created.pid.as_raw()).unwrap();
        Self { created: Some(created), pid, pidfd, stdout, stderr }
    }

    /// Lets the created process go. If it cannot execute, it is reaped.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        let created = self.created.take().unwrap();
        start(created.start, PATIENCE).inspect_err(|_| {
            wait(&self.pidfd);
        })
    }

    /// Sends SIGKILL.
    pub(crate) fn signal_kill(&self) {
        rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL).unwrap();
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(self) -> Outcome {
        self.signal_kill();
        self.finish()
    }

    /// Waits for its end and collects what it wrote.
    pub(crate) fn finish(self) -> Outcome {
        let (stdout, stderr) = (drain(self.stdout), drain(self.stderr));
        Outcome { code: wait(&self.pidfd), stdout, stderr }
    }

    /// Reads its output until there is a whole line.
    pub(crate) fn first_line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0u8; 1];
        while line.last() != Some(&b'\n') {
            await_readable(self.stdout.as_fd());
            assert_eq!(rustix::io::read(&self.stdout, &mut byte[..]).unwrap(), 1, "{line:?}");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }
}

/// What the cgroups of this run are below.
fn parent_cgroup() -> String {
    format!("/berth-oci-test-{}", std::process::id())
}

/// Removes it.
pub(crate) fn remove_parent_cgroup() {
    let path = CgroupPath::new(&parent_cgroup()).unwrap();
    Hierarchy::detect().unwrap().at(&path).remove().unwrap();
}

/// No input, and a pipe for each output.
pub(crate) fn pipes() -> (Stdio, OwnedFd, OwnedFd) {
    use rustix::fs::{Mode, OFlags, open};
    let stdin = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((out, stdout), (err, stderr)) = (pipe(), pipe());
    (Stdio::Fds { stdin, stdout, stderr }, out, err)
}

pub(crate) fn drain(from: OwnedFd) -> String {
    await_readable(from.as_fd());
    let mut text = Vec::new();
    std::fs::File::from(from).read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

pub(crate) fn await_readable(fd: std::os::fd::BorrowedFd<'_>) {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing came in time");
}

/// Makes a tmpfs of that size for containers to share.
pub(crate) fn shared_mounts(size: u64) -> SharedMounts {
    let making = SharedMounts::make(size, (0, 0)).unwrap();
    let made = loop {
        await_readable(making.as_fd());
        if let Some(made) = making.advance().unwrap() {
            break made;
        }
    };
    wait(&making.end().1);
    made
}

/// Reaps a child.
pub(crate) fn wait(pidfd: &OwnedFd) -> i32 {
    await_readable(pidfd.as_fd());
    let status = berth_sys::process::reap(pidfd.as_fd()).unwrap().unwrap();
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => panic!("{status:?}"),
    }
}

/// An error with its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A root file system: one static busybox and a link per applet.
fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/someone", "data"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "true", "false", "cat", "ls", "id", "env", "sleep", "echo", "pwd", "stat", "mount",
        "mknod", "readlink", "touch", "grep", "hostname", "chmod", "mkdir", "tty", "ps", "kill",
        "unshare", "dd", "stty", "test", "head", "wc", "date", "sort", "tr", "od", "printf", "ln",
        "df", "umount", "tail", "cut", "rm",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nsomeone:x:1000:1000::/home/someone:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), passwd).unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nsomeone:x:1000:\n").unwrap();
}

const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_NET_BIND_SERVICE",
];

fn default_spec(args: &[&str], cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
            "oomScoreAdj": 500,
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
                         "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/scsi",
                            "/sys/firmware", "/proc/missing"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                              "/proc/sysrq-trigger"],
        },
    })
}
