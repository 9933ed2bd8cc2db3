//! Pods as kubelet makes them, and the time that each verb takes.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::v1;
use berth_testkit::{kubelet, sandbox_security, security};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::target::Target;

/// Longest wait for the first byte of output.
const OUTPUT_DEADLINE: Duration = Duration::from_secs(20);
/// How often the log is looked at beside what inotify tells: on some file systems the
/// writes of others are not told.
const LOOK: u16 = 2;
/// What a container does: says that it is up, and idles.
const IDLE: &[&str] = &["sh", "-c", "echo up; exec sleep 1000000"];

/// kubelet's namespace, as a label of everything that is made here.
const NAMESPACE: &str = "berth-bench";
/// The label that names the run which made a pod.
pub(crate) const RUN_LABEL: &str = "berth-bench.run";

/// A sandbox with one running container.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

/// What the verbs took that start a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Up {
    pub(crate) run: Duration,
    pub(crate) create: Duration,
    pub(crate) start: Duration,
    /// From the answer to StartContainer until the first byte was in the log; zero if it was
    /// there before.
    pub(crate) output: Duration,
}

impl Up {
    /// Until both the verbs have answered and output is in the log.
    pub(crate) fn total(&self) -> Duration {
        self.run + self.create + self.start + self.output
    }
}

/// What the verbs took that end a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Down {
    pub(crate) stop: Duration,
    pub(crate) remove: Duration,
    pub(crate) stop_sandbox: Duration,
    pub(crate) remove_sandbox: Duration,
}

impl Down {
    /// Until the last verb has answered.
    pub(crate) fn total(&self) -> Duration {
        self.stop + self.remove + self.stop_sandbox + self.remove_sandbox
    }
}

impl Target {
    /// A sandbox called `name` as kubelet asks for one, with a directory for its logs. Names
    /// are to be used once only in a run.
    pub(crate) fn sandbox_config(&self, name: &str) -> Result<v1::PodSandboxConfig> {
        let logs = self.logs.join(name);
        fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
        let uid = format!("{}-{name}", self.run);
        let mut config = kubelet::sandbox(name, NAMESPACE, &uid, &logs);
        config.labels.insert(RUN_LABEL.to_owned(), self.run.clone());
        config.linux.get_or_insert_default().cgroup_parent.clone_from(&self.cgroup_parent);
        Ok(config)
    }

    /// A container called `main` that runs `command`, with its log in `main.log`.
    pub(crate) fn container_config(&self, command: &[&str]) -> v1::ContainerConfig {
        kubelet::container("main", &self.image, command)
    }

    /// Runs a sandbox; returns its id.
    pub(crate) async fn run_sandbox(&mut self, config: &v1::PodSandboxConfig) -> Result<String> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let answer = self.cri.runtime.run_pod_sandbox(request).await;
        let answer = answer.with_context(|| format!("{}: RunPodSandbox", self.name))?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// Starts a pod called `name` with one idle container, and waits for its output.
    pub(crate) async fn up(&mut self, name: &str) -> Result<(Pod, Up)> {
        let mut config = self.sandbox_config(name)?;
        let mut container_config = self.container_config(IDLE);
        if self.host_network {
            // Such a pod has the node's name too, and kubelet gives it none.
            config.hostname.clear();
            let node = v1::NamespaceMode::Node.into();
            let namespaces = &mut sandbox_security(&mut config).namespace_options;
            namespaces.get_or_insert_default().network = node;
            let namespaces = &mut security(&mut container_config).namespace_options;
            namespaces.get_or_insert_default().network = node;
        }
        let output = Output::expect(&self.logs.join(name), &container_config.log_path)?;
        let mut clock = Clock::start();
        let sandbox = self.run_sandbox(&config).await?;
        let run = clock.lap();
        let created = self.cri.create_container(&sandbox, &config, &container_config).await;
        let container = created.with_context(|| format!("{}: CreateContainer", self.name))?;
        let create = clock.lap();
        let started = self.cri.start_container(&container).await;
        started.with_context(|| format!("{}: StartContainer", self.name))?;
        let start = clock.lap();
        let waited = output.wait().with_context(|| format!("{}: pod {name}", self.name))?;
        let output = if waited { clock.lap() } else { Duration::ZERO };
        Ok((Pod { sandbox, container }, Up { run, create, start, output }))
    }

    /// Ends a pod; its container is killed at once.
    pub(crate) async fn down(&mut self, pod: &Pod) -> Result<Down> {
        let said = |verb| format!("{}: {verb}", self.name);
        let mut clock = Clock::start();
        let stopped = self.cri.stop_container(&pod.container, 0).await;
        stopped.with_context(|| said("StopContainer"))?;
        let stop = clock.lap();
        let removed = self.cri.remove_container(&pod.container).await;
        removed.with_context(|| said("RemoveContainer"))?;
        let remove = clock.lap();
        let stopped = self.cri.stop_sandbox(&pod.sandbox).await;
        stopped.with_context(|| said("StopPodSandbox"))?;
        let stop_sandbox = clock.lap();
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        let removed = self.cri.runtime.remove_pod_sandbox(request).await;
        removed.with_context(|| said("RemovePodSandbox"))?;
        Ok(Down { stop, remove, stop_sandbox, remove_sandbox: clock.lap() })
    }
}

/// Measures from lap to lap.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now))
    }
}

/// The first byte of a log that is not there yet.
struct Output {
    log: PathBuf,
    events: Inotify,
}

impl Output {
    /// Watches `directory` for the log `name`.
    fn expect(directory: &Path, name: &str) -> Result<Self> {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .context("make an inotify instance")?;
        events
            .add_watch(directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY)
            .with_context(|| format!("watch {}", directory.display()))?;
        Ok(Self { log: directory.join(name), events })
    }

    /// Blocks until the log has a byte; says whether that had to be waited for.
    fn wait(&self) -> Result<bool> {
        let deadline = Instant::now() + OUTPUT_DEADLINE;
        let mut waited = false;
        while fs::metadata(&self.log).map_or(0, |found| found.len()) == 0 {
            ensure!(Instant::now() < deadline, "no output in {}", self.log.display());
            waited = true;
            let mut ready = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::from(LOOK)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                other => other.context("wait for output")?,
            };
            // What happened does not matter: the size of the log says all.
            self.events.read_events().map(drop).context("read what inotify tells")?;
        }
        Ok(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_came_before_is_not_waited_for_and_later_output_is() {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::expect(dir.path(), "main.log").unwrap();
        fs::write(dir.path().join("main.log"), "x").unwrap();
        assert!(!output.wait().unwrap());

        let output = Output::expect(dir.path(), "late.log").unwrap();
        let log = dir.path().join("late.log");
        fs::write(&log, "").unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            fs::write(&log, "x").unwrap();
        });
        assert!(output.wait().unwrap());
        writer.join().unwrap();
    }
}
