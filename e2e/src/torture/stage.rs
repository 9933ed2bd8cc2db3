//! A node over many rounds, with pods that no round may disturb.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::{Known, Node, Pod, bind, container_config};

use crate::host::{self, Process};
use crate::random::Random;
use crate::workload::{self, Numbered};

/// How long what was told to end may take to do so.
const END: Duration = Duration::from_secs(20);

/// A container that runs from the first round to the last.
#[derive(Debug)]
struct Bystander {
    sandbox: v1::PodSandboxStatus,
    container: v1::ContainerStatus,
    process: Process,
    log: Numbered,
}

/// A container that ends while no daemon runs.
#[derive(Debug)]
pub(crate) struct Brief {
    id: String,
    code: i32,
    process: Process,
    go: PathBuf,
    log: Numbered,
    /// When it was gone for sure, and no daemon ran, nanoseconds since the epoch.
    gone: i64,
}

/// How long a shim may take to note that a process has ended.
const NOTED: Duration = Duration::from_millis(30);
/// Lines that a [`Brief`] writes at its end.
const BRIEF_LINES: u64 = 50;

/// The node, and what is on it between rounds.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) node: Node,
    /// The busybox image.
    pub(crate) image: String,
    /// A sandbox for the containers of rounds.
    pub(crate) pod: Pod,
    bystanders: Vec<Bystander>,
    number: u64,
    /// What one image takes on disk.
    stored: BTreeSet<PathBuf>,
}

impl Stage {
    pub(crate) async fn new() -> Result<Self> {
        let mut node = Node::start().await?;
        let image = node.busybox().await?;
        let pod = node.pod("rounds").await?;
        fs::create_dir(node.dir().join("volume"))?;
        let mut stage =
            Self { node, image, pod, bystanders: Vec::new(), number: 0, stored: BTreeSet::new() };
        stage.stored = stage.stored_images();
        for name in ["talks", "sleeps"] {
            stage.add_bystander(name).await?;
        }
        Ok(stage)
    }

    async fn add_bystander(&mut self, name: &str) -> Result<()> {
        let pod = self.node.pod(name).await?;
        let script = match name {
            "talks" => workload::deaf("0.05"),
            _ => "echo line 0; exec sleep 1000000".to_owned(),
        };
        let config = container_config("main", &self.image, &["sh", "-c", &script]);
        let id = self.node.run(&pod, &config).await?;
        self.node.wait_for_line(name, "main", "line 0").await?;
        let process = self.process(&id).await?;
        let log = Numbered::new(self.node.log_directory(name).join("main.log"));
        let sandbox = self.node.cri.sandbox_status(&pod.id).await?;
        let container = self.node.cri.container_status(&id).await?;
        self.bystanders.push(Bystander { sandbox, container, process, log });
        Ok(())
    }

    /// A name that was not used before.
    pub(crate) fn name(&mut self, what: &str) -> String {
        self.number += 1;
        format!("{what}-{}", self.number)
    }

    /// The first process of a container that runs.
    pub(crate) async fn process(&mut self, container: &str) -> Result<Process> {
        let pid = self.node.container_pid(container).await?;
        Process::find(pid).with_context(|| format!("container {container} has no process {pid}"))
    }

    /// The log of a container of [`Stage::pod`].
    pub(crate) fn log(&self, container: &str) -> Numbered {
        Numbered::new(self.node.log_directory("rounds").join(format!("{container}.log")))
    }

    /// What exists between rounds.
    pub(crate) fn known(&self) -> Known {
        let mut known = Known::default();
        known.sandboxes.insert(self.pod.id.clone());
        for bystander in &self.bystanders {
            known.sandboxes.insert(bystander.sandbox.id.clone());
            known.containers.insert(bystander.container.id.clone());
        }
        known
    }

    /// Starts a container that ends when it is told to.
    pub(crate) async fn brief(&mut self, random: &mut Random) -> Result<Brief> {
        let (name, code) = (self.name("brief"), random.code());
        let script = workload::waiting(&format!("/data/{name}"), BRIEF_LINES, code);
        let mut config = container_config(&name, &self.image, &["sh", "-c", &script]);
        let volume = self.node.dir().join("volume");
        config.mounts = vec![bind("/data", &volume)];
        let pod = self.pod.clone();
        let id = self.node.run(&pod, &config).await?;
        let (process, log) = (self.process(&id).await?, self.log(&name));
        Ok(Brief { id, code, process, go: volume.join(name), log, gone: 0 })
    }

    /// Every pod that was there before is as it was, and the brief one ended as it did.
    pub(crate) async fn check_bystanders(&mut self, brief: Option<Brief>) -> Result<()> {
        for bystander in &mut self.bystanders {
            let container = self.node.cri.container_status(&bystander.container.id).await?;
            ensure!(container == bystander.container, "{container:?} was {bystander:?}");
            let sandbox = self.node.cri.sandbox_status(&bystander.sandbox.id).await?;
            ensure!(sandbox == bystander.sandbox, "{sandbox:?} was {bystander:?}");
            let pid = self.node.container_pid(&bystander.container.id).await?;
            ensure!(bystander.process.pid == pid, "process {pid} was {bystander:?}");
            ensure!(bystander.process.runs(), "disturbed: {bystander:?}");
            bystander.log.advance()?;
        }
        match brief {
            Some(brief) => self.check_brief(brief).await,
            None => Ok(()),
        }
    }

    async fn check_brief(&mut self, mut brief: Brief) -> Result<()> {
        let status = self.node.cri.container_status(&brief.id).await?;
        ensure!(
            status.state() == v1::ContainerState::ContainerExited,
            "ended while no daemon ran, and is {status:?}"
        );
        ensure!(status.exit_code == brief.code, "ended with {}: {status:?}", brief.code);
        ensure!(
            status.started_at < status.finished_at && status.finished_at <= brief.gone,
            "was gone at {}: {status:?}",
            brief.gone
        );
        let lines = brief.log.finish()?;
        ensure!(
            lines == BRIEF_LINES,
            "{lines} lines of {BRIEF_LINES}: {}",
            brief.log.path().display()
        );
        self.node.cri.remove_container(&brief.id).await?;
        fs::remove_file(brief.log.path())?;
        fs::remove_file(brief.go)?;
        Ok(())
    }

    /// What the daemon lists is `known` and nothing else.
    pub(crate) async fn check_lists(&mut self, known: &Known) -> Result<()> {
        let listed = self.node.cri.sandboxes().await?;
        check_list("sandboxes", listed, &known.sandboxes)?;
        let listed = self.node.cri.containers().await?;
        check_list("containers", listed, &known.containers)
    }

    /// There is one image, and of others nothing is left on disk.
    pub(crate) async fn check_images(&mut self) -> Result<()> {
        let images = self.node.cri.image.list_images(v1::ListImagesRequest::default()).await?;
        let images = images.into_inner().images;
        ensure!(images.len() == 1, "images: {images:?}");
        let deadline = Instant::now() + END;
        loop {
            let stored = self.stored_images();
            if stored == self.stored {
                return Ok(());
            }
            let strange: Vec<_> = stored.symmetric_difference(&self.stored).collect();
            ensure!(Instant::now() < deadline, "more, or less, than the one image: {strange:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stored_images(&self) -> BTreeSet<PathBuf> {
        let dirs = ["root/content/blobs/sha256", "root/snapshots/committed", "root/snapshots/l"];
        let entries = dirs.into_iter().flat_map(|dir| fs::read_dir(self.node.dir().join(dir)));
        entries.flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Nothing is on the node, on disk or below this process, beside `known`.
    pub(crate) fn check_leaks(&self, known: &Known) -> Result<()> {
        self.node.settle(known)?;
        let deadline = Instant::now() + END;
        loop {
            let strange = self.strange_processes(known)?;
            if strange.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes that belong to nothing: {strange:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Descendants of this process that are neither daemon nor registry, nor the shim of a
    /// sandbox that is known or its `init`, nor in its containers; and every zombie that
    /// somebody could have reaped.
    fn strange_processes(&self, known: &Known) -> Result<Vec<Process>> {
        let own = [self.node.daemon().pid(), Some(self.node.registry.pid())];
        let (mut shims, mut strange) = (BTreeMap::new(), Vec::new());
        for process in host::descendants()? {
            if own.contains(&Some(process.pid)) {
                continue;
            }
            let command = process.command();
            let of = known.sandboxes.iter().find(|id| command.contains(id.as_str()));
            let shim =
                of.is_some_and(|of| shims.entry(of.clone()).or_insert(process.clone()) == &process);
            let parent = shims.values().find(|shim| shim.pid == process.parent);
            let contained = || {
                let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid));
                let cgroups = cgroups.unwrap_or_default();
                known.containers.iter().any(|id| cgroups.contains(id.as_str()))
            };
            if !belongs(&process, parent, || shim || contained()) {
                strange.push(process);
            }
        }
        Ok(strange)
    }

    /// Ends everything and proves that nothing at all is left.
    pub(crate) async fn end(self) -> Result<()> {
        self.node.assert_clean().await?;
        let left = host::descendants()?;
        ensure!(left.iter().all(|process| process.state == 'Z'), "left running: {left:#?}");
        Ok(())
    }
}

impl Brief {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Tells it to end, and waits until its shim has reaped it and waits for more.
    pub(crate) fn end(&mut self) -> Result<()> {
        fs::write(&self.go, "")?;
        let deadline = Instant::now() + END;
        let idle = || Process::find(self.process.parent).is_some_and(|shim| shim.state == 'S');
        while Process::find(self.process.pid).is_some() || !idle() {
            if Instant::now() > deadline {
                bail!("{:?} does not end", self.process);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // No daemon runs before it, so what it would say is later.
        std::thread::sleep(NOTED);
        self.gone = nanos();
        Ok(())
    }
}

/// Now, nanoseconds since the epoch.
pub(crate) fn nanos() -> i64 {
    let since = berth_failpoint::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Whether a process, or what is left of it, may be there. `parent` is the shim that it is a
/// child of.
fn belongs(process: &Process, parent: Option<&Process>, known: impl FnOnce() -> bool) -> bool {
    match process.state {
        'Z' => parent.is_some_and(Process::is_stopped),
        _ => (parent.is_some() && process.name == "berth-init") || known(),
    }
}

fn check_list(what: &str, listed: Vec<String>, known: &BTreeSet<String>) -> Result<()> {
    let count = listed.len();
    let listed: BTreeSet<String> = listed.into_iter().collect();
    ensure!(listed.len() == count, "{what} are listed twice");
    let lost: Vec<_> = known.difference(&listed).collect();
    let strange: Vec<_> = listed.difference(known).collect();
    ensure!(lost.is_empty() && strange.is_empty(), "{what}: lost {lost:?}, unknown {strange:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, state: char) -> Process {
        Process { pid: 7, parent: 1, name: name.to_owned(), state, started: 1 }
    }

    #[test]
    fn only_the_zombie_of_a_stopped_shim_may_be_there() {
        let zombie = |parent: Option<&Process>| belongs(&process("sh", 'Z'), parent, || true);
        assert!(zombie(Some(&process("shim", 'T'))));
        for state in ['S', 'R', 'D', 'Z'] {
            assert!(!zombie(Some(&process("shim", state))), "{state}");
        }
        assert!(!zombie(None));
    }

    #[test]
    fn what_runs_is_a_shims_init_or_of_something_known() {
        let shim = process("shim", 'T');
        assert!(belongs(&process("berth-init", 'S'), Some(&shim), || false));
        assert!(!belongs(&process("berth-init", 'S'), None, || false));
        assert!(!belongs(&process("sh", 'S'), Some(&shim), || false));
        assert!(belongs(&process("sh", 'S'), None, || true));
    }
}
