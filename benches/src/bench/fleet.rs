//! Many idle pods of one target.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::v1;

use super::failures::Failures;
use super::samples::{Samples, counted};
use crate::measure::footprint::Footprint;
use crate::measure::tree::Ids;
use crate::pod::{Pod, RUN_LABEL};
use crate::report::{Bench, Better};
use crate::target::Target;

/// Longest wait for the processes of removed pods to be gone.
const GONE: Duration = Duration::from_secs(20);
/// How often they are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Idle pods of one target, and every pod it ever had here.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// What their names begin with.
    name: String,
    /// Those that run.
    pub(crate) pods: Vec<Pod>,
    /// How many starts were tried.
    tried: usize,
    pub(crate) ids: Ids,
    pub(crate) failures: Failures,
}

impl Fleet {
    /// Without pods; those that come will be called `name` and a number.
    pub(crate) fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    /// Starts pods, one after another, until `pods` were tried; returns how long each took
    /// that came up. One that fails is counted and not tried again.
    pub(crate) async fn grow(&mut self, target: &mut Target, pods: usize) -> Result<Vec<Duration>> {
        let mut taken = Vec::new();
        while self.tried < pods {
            let name = format!("{}-{}", self.name, self.tried);
            self.tried += 1;
            match target.up(&name).await {
                Ok((pod, up)) => {
                    self.pods.push(pod);
                    taken.push(up.total());
                }
                Err(error) => self.failures.note(&error),
            }
        }
        self.learn(target).await?;
        Ok(taken)
    }

    /// Remembers the ids of what the runtime says there is: half a pod has processes too.
    pub(crate) async fn learn(&mut self, target: &mut Target) -> Result<()> {
        let sandboxes = sandboxes(target).await?;
        let listed = target.cri.runtime.list_containers(v1::ListContainersRequest::default()).await;
        for container in listed.context("list containers")?.into_inner().containers {
            if sandboxes.contains(&container.pod_sandbox_id) {
                self.ids.container(&container.id);
            }
        }
        for sandbox in sandboxes {
            self.ids.sandbox(&sandbox);
        }
        Ok(())
    }

    /// Ends every pod, one after another; returns how long each took. What is still listed
    /// after that is removed too.
    pub(crate) async fn clear(&mut self, target: &mut Target) -> Result<Vec<Duration>> {
        let mut taken = Vec::new();
        for pod in std::mem::take(&mut self.pods) {
            match target.down(&pod).await {
                Ok(down) => taken.push(down.total()),
                Err(error) => self.failures.note(&error),
            }
        }
        for sandbox in sandboxes(target).await? {
            if let Err(error) = target.cri.remove_sandbox(&sandbox).await {
                let what = format!("{}: remove what is left of a pod", target.name);
                self.failures.note(&anyhow::Error::from(error).context(what));
            }
        }
        Ok(taken)
    }

    /// Says how many verbs failed, which may be none, and which they were.
    pub(crate) fn tell(&self, samples: &mut Samples, bench: &mut Bench) {
        samples.add(("failed verbs", "", Better::Lower), counted(self.failures.count()));
        for note in self.failures.notes() {
            bench.note(note);
        }
    }

    /// Waits until no process of a pod is left; says how many are, if some stay.
    pub(crate) async fn gone(&self, target: &Target) -> Result<u64> {
        let started = Instant::now();
        loop {
            let left = Footprint::read(target.daemon, &self.ids)?;
            let count = left.beside() + left.workload.processes;
            if count == 0 || started.elapsed() > GONE {
                return Ok(count);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Notes what a reader must know if pods of one target are among those of another.
pub(crate) fn note_sharing(targets: &[Target], bench: &mut Bench) {
    for (index, target) in targets.iter().enumerate() {
        let shares = |other: &Target| other.daemon != 0 && other.daemon == target.daemon;
        if targets[..index].iter().any(shares) {
            bench.note(format!(
                "{} is served by the same daemon as another target: what is asked of one is \
                 answered for the pods of both",
                target.name
            ));
        }
    }
}

/// Ids of the sandboxes that this run made and that still are.
async fn sandboxes(target: &mut Target) -> Result<HashSet<String>> {
    let label_selector = BTreeMap::from([(RUN_LABEL.to_owned(), target.run.clone())]);
    let filter = v1::PodSandboxFilter { label_selector, ..Default::default() };
    let request = v1::ListPodSandboxRequest { filter: Some(filter) };
    let listed = target.cri.runtime.list_pod_sandbox(request).await;
    let listed = listed.context("list sandboxes")?.into_inner().items;
    Ok(listed.into_iter().map(|sandbox| sandbox.id).collect())
}
