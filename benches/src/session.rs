//! A run: its targets with their images, and the removal of all that it made, also after a
//! failure or an interruption.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
use berth_testkit::{Cri, Machine, image, registry::Registry};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::interrupt::Interrupts;
use crate::options::Common;
use crate::plan::Plan;
use crate::report::Bench;
use crate::target::{self, Target};
use crate::{cgroups, pod, processes, quiet};

/// Longest wait for a runtime to remove what a run left on it.
const CLEANING: Duration = Duration::from_secs(120);
/// How often a sandbox is tried to be removed.
const TRIES: u32 = 2;
/// The repository of images that a run makes.
const REPOSITORY: &str = "berth-bench";
/// How names of directories of runs begin.
const DIRECTORY: &str = "berth-bench-";

/// The note of a directory of a run that has not its name, and how such a name begins.
const ELSEWHERE: &str = "elsewhere";
const NODE: &str = "berth-";

/// A runtime that is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// What tables call it; `None` is what it calls itself, with its handler.
    pub(crate) name: Option<String>,
    pub(crate) socket: PathBuf,
    pub(crate) handler: String,
}

/// Targets, and what was made for them.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) targets: Vec<Target>,
    made: Made,
    interrupts: Interrupts,
    /// Processors that were busy before anything was done.
    rest: f64,
}

/// What a run must remove.
#[derive(Debug)]
struct Made {
    run: String,
    dir: TempDir,
    cgroups: cgroups::Parent,
}

impl Wanted {
    /// What the command line asks for.
    pub(crate) fn of(common: &Common) -> Vec<Self> {
        let wanted = |socket: &Path, handler: &str| Self {
            name: None,
            socket: socket.to_owned(),
            handler: handler.to_owned(),
        };
        let versus = common.versus.as_deref();
        std::iter::once(wanted(&common.socket, &common.handler))
            .chain(versus.map(|socket| wanted(socket, &common.versus_handler)))
            .collect()
    }
}

impl Session {
    /// Connects to all that is `wanted`, and gives each the image `image`, or one that is
    /// made here. Removes pods that a run left which no longer lives.
    pub(crate) async fn open(
        wanted: &[Wanted],
        image: Option<&str>,
        cgroup_parent: &str,
    ) -> Result<Self> {
        let mut interrupts = Interrupts::listen()?;
        remove_directories();
        let rest = interrupts.unless(quiet::at_rest()).await?;
        let made = Made::new(cgroup_parent)?;
        let mut session = Self { targets: Vec::new(), made, interrupts, rest };
        let Self { targets, made, interrupts, .. } = &mut session;
        let opened = interrupts.unless(made.connect(targets, wanted, image)).await;
        if let Err(error) = opened {
            session.close().await.unwrap_or_else(|error| eprintln!("berth-bench: {error:#}"));
            return Err(error);
        }
        Ok(session)
    }

    /// Runs one benchmark; an interruption (SIGINT, SIGTERM) ends it with an error.
    pub(crate) async fn measure(
        &mut self,
        plan: &Plan,
        bench: impl AsyncFnOnce(&Plan, &mut [Target]) -> Result<Bench>,
    ) -> Result<Bench> {
        plan.rests_at(self.rest);
        let mut bench = self.interrupts.unless(bench(plan, &mut self.targets)).await?;
        bench.noise = Some(plan.noise()?);
        plan.settings(&mut bench);
        // Not the name of this run: what was measured is the same in the next one.
        bench.setting("cgroup parent", self.made.cgroups.path().replace(&self.made.run, "RUN"));
        if let Some(target) = self.targets.first() {
            let made = target.images.contains(&target.image);
            bench.setting("image", if made { "busybox of this machine" } else { &target.image });
        }
        Ok(bench)
    }

    /// Whether somebody wanted this program to end.
    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupts.came()
    }

    /// Removes the pods that a benchmark which failed has left.
    pub(crate) async fn remove_pods(&mut self) -> Result<()> {
        let Self { targets, made, interrupts, .. } = self;
        let removing = async {
            for target in targets {
                remove_pods(target, |run| run == made.run).await?;
            }
            Ok(())
        };
        interrupts.unless(removing).await
    }

    /// Removes everything that the run made; all steps are done, the first error is told.
    pub(crate) async fn close(mut self) -> Result<()> {
        let removing = timeout(CLEANING, self.made.remove_from(&mut self.targets));
        let removed = self.interrupts.unless(async {
            removing.await.unwrap_or_else(|_| bail!("runtimes take longer than {CLEANING:?}"))
        });
        let removed = removed.await;
        self.made.cgroups.remove().await;
        removed.context("remove what this run made")
    }
}

impl Made {
    fn new(cgroup_parent: &str) -> Result<Self> {
        let run = own_run()?;
        let dir = directory()?;
        let cgroups = cgroups::Parent::new(cgroup_parent, &run, is_over)?;
        Ok(Self { run, dir, cgroups })
    }

    async fn connect(
        &mut self,
        targets: &mut Vec<Target>,
        wanted: &[Wanted],
        image: Option<&str>,
    ) -> Result<()> {
        for (index, wanted) in wanted.iter().enumerate() {
            let mut cri = Cri::connect(&wanted.socket).await?;
            let version = Target::version(&mut cri, &wanted.socket).await?;
            let logs = self.dir.path().join(format!("logs-{index}"));
            fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
            let mut target = Target {
                name: wanted.name.clone().unwrap_or_else(|| called(&version, &wanted.handler)),
                socket: wanted.socket.clone(),
                cri,
                handler: wanted.handler.clone(),
                version,
                daemon: target::daemon_of(&wanted.socket)?,
                cgroup_parent: self.cgroups.path().to_owned(),
                host_network: false,
                logs,
                image: String::new(),
                images: Vec::new(),
                run: self.run.clone(),
            };
            if let Err(error) = remove_leftovers(&mut target).await {
                // It is in the way of nothing but a quiet machine, which is measured.
                eprintln!("berth-bench: what an earlier run left stays: {error:#}");
            }
            targets.push(target);
            self.give_image(index, &mut targets[index], image).await?;
        }
        tell_apart(targets);
        Ok(())
    }

    /// Pulls `image`, or makes one and serves it where the daemon finds it: on the loopback
    /// of its network namespace.
    async fn give_image(
        &mut self,
        index: usize,
        target: &mut Target,
        image: Option<&str>,
    ) -> Result<()> {
        if let Some(image) = image {
            image.clone_into(&mut target.image);
            let pulled = target.cri.pull(image).await;
            return pulled.map(drop).with_context(|| format!("{}: pull {image}", target.name));
        }
        let machine = network_of(target)?;
        let registry = Registry::start(&machine, &self.dir.path().join(index.to_string()))?;
        let repository = repository(&self.run, "busybox");
        let image = registry.push(&machine, &repository, "latest", &image::busybox()?)?;
        target.images.push(image.clone());
        let pulled = target.cri.pull(&image).await;
        pulled.with_context(|| format!("{}: pull {image}", target.name))?;
        target.image = image;
        Ok(())
    }

    /// Removes pods, then images.
    async fn remove_from(&self, targets: &mut [Target]) -> Result<()> {
        let mut results = Vec::new();
        for target in &mut *targets {
            results.push(remove_pods(target, |run| run == self.run).await);
        }
        for target in targets {
            for image in &target.images {
                let removed = target.cri.remove_image(image).await;
                results.push(removed.with_context(|| format!("{}: remove {image}", target.name)));
            }
        }
        results.into_iter().collect()
    }
}

/// Where a run keeps an image that it makes: the next run knows by it whose it was.
pub(crate) fn repository(run: &str, image: &str) -> String {
    format!("{REPOSITORY}/{run}/{image}")
}

/// The run that made the image of a `tag`.
fn run_of(tag: &str) -> Option<&str> {
    let (_, path) = tag.split_once(&format!("/{REPOSITORY}/"))?;
    path.split_once('/').map(|(run, _)| run)
}

/// The network namespace of a target's daemon, or this program's if that is unknown.
pub(crate) fn network_of(target: &Target) -> Result<Machine> {
    let pid = if target.daemon == 0 { std::process::id() } else { target.daemon };
    Machine::in_network_of(pid)
}

fn called(version: &target::Version, handler: &str) -> String {
    if handler.is_empty() { version.name.clone() } else { format!("{} {handler}", version.name) }
}

/// Gives targets of one name numbers: a table must tell them apart.
fn tell_apart(targets: &mut [Target]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for target in targets {
        let times = seen.entry(target.name.clone()).or_default();
        *times += 1;
        if *times > 1 {
            target.name = format!("{} ({times})", target.name);
        }
    }
}

/// Names this run by its process: pid and start time, which no other process ever has both.
fn own_run() -> Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).context("read when this process was started")?;
    Ok(format!("{pid}-{start}"))
}

/// Whether the process that a run is named by has ended.
fn is_over(run: &str) -> bool {
    let Some((pid, start)) = run.split_once('-') else { return false };
    let Ok(pid) = pid.parse() else { return false };
    start.parse::<u64>().is_ok() && start_time(pid).as_deref() != Some(start)
}

/// When `pid` was started, in ticks since boot (proc(5), `stat`, field 22).
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19).map(str::to_owned)
}

/// A directory of this run; should the run be killed, the next one removes it.
pub(crate) fn directory() -> Result<TempDir> {
    let prefix = format!("{DIRECTORY}{}.", own_run()?);
    tempfile::Builder::new().prefix(&prefix).tempdir().context("make a directory")
}

/// Notes in `dir`, a directory of this run, that `other` is of this run too.
pub(crate) fn note_elsewhere(dir: &Path, other: &Path) -> Result<()> {
    let note = dir.join(ELSEWHERE);
    fs::write(&note, other.as_os_str().as_encoded_bytes())
        .with_context(|| format!("write {}", note.display()))
}

/// What `dir` notes, if it is a directory beside it that one of our nodes may have.
fn elsewhere(dir: &Path) -> Option<PathBuf> {
    let other = PathBuf::from(fs::read_to_string(dir.join(ELSEWHERE)).ok()?);
    let name = other.file_name()?.to_str()?;
    (other.parent() == dir.parent() && name.starts_with(NODE)).then_some(other)
}

/// Removes the directories of runs that are over, and ends runtimes that still serve them.
fn remove_directories() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.strip_prefix(DIRECTORY)?.split('.').next());
        if run.is_some_and(is_over) {
            let dir = entry.path();
            elsewhere(&dir).iter().chain([&dir]).for_each(|dir| end_directory(dir));
        }
    }
}

/// Removes `dir` with the processes that name it.
fn end_directory(dir: &Path) {
    for pid in processes::naming(dir) {
        eprintln!("berth-bench: killed {pid}, which a run that is over left");
        // Gone by itself meanwhile: as good.
        kill(pid, Signal::SIGKILL).ok();
    }
    // Somebody else may be at it; it is in nobody's way.
    fs::remove_dir_all(dir).ok();
}

async fn remove_leftovers(target: &mut Target) -> Result<()> {
    let mut results = vec![remove_pods(target, is_over).await];
    let request = v1::ListImagesRequest::default();
    let images = target.cri.image.list_images(request).await;
    let images = images.with_context(|| format!("{}: ListImages", target.name))?.into_inner();
    for tag in images.images.iter().flat_map(|image| &image.repo_tags) {
        if run_of(tag).is_some_and(is_over) {
            let removed = target.cri.remove_image(tag).await;
            results.push(removed.with_context(|| format!("{}: remove {tag}", target.name)));
        }
    }
    results.into_iter().collect()
}

/// Removes the pods of all runs that `which` is true of. A request that was given up on may
/// still make a pod, so what is not there when all are removed is looked for once more. One
/// that cannot be removed keeps no other: it is tried again, and told in the end.
async fn remove_pods(target: &mut Target, which: impl Fn(&str) -> bool) -> Result<()> {
    let mut none = 0;
    let mut failed: BTreeMap<String, (u32, String)> = BTreeMap::new();
    for _ in 0..20 {
        let mut found = pods(target, &which).await?;
        found.retain(|id| failed.get(id).is_none_or(|(tries, _)| *tries < TRIES));
        if found.is_empty() {
            none += 1;
            if none == 2 {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        for id in found {
            if let Err(error) = target.cri.remove_sandbox(&id).await {
                let entry = failed.entry(id).or_default();
                *entry = (entry.0 + 1, error.to_string());
            }
        }
    }
    let left = pods(target, &which).await?;
    let why = |id: &String| {
        let error = failed.get(id).map_or("it comes back", |(_, error)| error.as_str());
        format!("{id}: {error}")
    };
    let left: Vec<_> = left.iter().map(why).collect();
    ensure!(left.is_empty(), "{}: sandboxes stay: {}", target.name, left.join("; "));
    Ok(())
}

async fn pods(target: &mut Target, which: &impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let answer = target.cri.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
    let answer = answer.with_context(|| format!("{}: ListPodSandbox", target.name))?;
    let ours = |item: &v1::PodSandbox| {
        item.labels.get(pod::RUN_LABEL).is_some_and(|run| which(run.as_str()))
    };
    Ok(answer.into_inner().items.into_iter().filter(ours).map(|item| item.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_node_beside_it_is_elsewhere_of_a_run() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("berth-bench-1-2.a");
        fs::create_dir(&dir).unwrap();
        assert_eq!(elsewhere(&dir), None);
        for (other, is) in [("berth-x", true), ("home", false), ("berth-x/..", false)] {
            let other = temporary.path().join(other);
            note_elsewhere(&dir, &other).unwrap();
            assert_eq!(elsewhere(&dir), is.then_some(other));
        }
    }

    #[test]
    fn an_image_says_which_run_made_it() {
        let tag = format!("127.0.0.1:5000/{}:1", repository("12-345", "large"));
        assert_eq!(run_of(&tag), Some("12-345"));
        assert_eq!(run_of("127.0.0.1:5000/busybox:latest"), None);
    }

    #[test]
    fn a_run_is_over_when_its_process_is_gone_or_another() {
        let own = own_run().unwrap();
        assert!(!is_over(&own));
        assert!(is_over(&format!("{}-1", std::process::id())));
        assert!(is_over("4194305-1"));
        // What is not of our making is nobody's leftover.
        assert!(!is_over("other"));
        assert!(!is_over("some-dir"));
    }
}
