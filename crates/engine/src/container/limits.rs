//! Limits of a container that runs, and of one that is still to be started. Blocks.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use berth_cgroup::{Before, Cgroup, CgroupPath, CpuLimits, Limits, MemoryLimits};
use berth_spec::ChangedLimits;
use nix::errno::Errno;
use oci_spec::runtime::{LinuxPids, Spec};

use super::Container;
use crate::core::{Core, cgroup_error};
use crate::{Error, files};

/// Largest specification of a container, bytes; a request is not larger.
const MAX_SPEC: u64 = 64 << 20;

/// What was changed, and how it was before, so that it can be so again.
#[derive(Debug, Default)]
pub(super) struct Former(Vec<Part>);

#[derive(Debug)]
enum Part {
    /// The specification in the bundle.
    Spec(PathBuf, Vec<u8>),
    /// The cgroup.
    Cgroup(CgroupPath, Before),
    /// The scores of processes.
    Scores(Vec<(File, String)>),
}

impl Former {
    /// Puts everything back, newest first; the first failure. What runs no more needs nothing.
    pub(super) fn restore(self) -> Result<(), Error> {
        self.0.into_iter().rev().map(Part::restore).fold(Ok(()), Result::and)
    }
}

impl Part {
    fn restore(self) -> Result<(), Error> {
        match self {
            Self::Spec(path, json) => replace(&path, &json),
            Self::Cgroup(path, before) => {
                before.restore().map_err(cgroup_error("restore limits of", &path))
            }
            Self::Scores(scores) => {
                let scored = scores.into_iter().map(|(mut file, was)| set(&mut file, &was));
                scored.fold(Ok(()), Result::and)
            }
        }
    }
}

/// Gives a running container its new limits, all or none.
pub(super) fn change(
    core: &Core,
    container: &Container,
    wanted: &ChangedLimits,
    score_changes: bool,
) -> Result<Former, Error> {
    let path = &container.cgroup;
    let Some(cgroup) = core.cgroup(path)? else { return Ok(Former::default()) };
    let before = cgroup.change(&limits(wanted)).map_err(cgroup_error("change limits of", path))?;
    let mut former = Former(vec![Part::Cgroup(path.clone(), before)]);
    if !score_changes {
        return Ok(former);
    }
    let scored = set_scores(&cgroup, container, &wanted.oom_score_adj.to_string());
    let scored = scored.and_then(|scores| {
        former.0.push(Part::Scores(scores));
        // What is executed in it later is as its first process is, by its specification.
        former.0.extend(rewrite(&container.bundle, wanted)?.0);
        Ok(())
    });
    match scored {
        Ok(()) => Ok(former),
        Err(error) => {
            former.restore()?;
            Err(error)
        }
    }
}

/// Sets the score of every process; on failure all have the one they had.
fn set_scores(
    cgroup: &Cgroup,
    container: &Container,
    score: &str,
) -> Result<Vec<(File, String)>, Error> {
    let pids = || cgroup.pids().map_err(cgroup_error("read processes of", &container.cgroup));
    let open = |pid: u32| Some((pid, score_file(pid).ok()?));
    let opened: Vec<_> = pids()?.into_iter().filter_map(open).collect();
    // A number outlives its process: an open file does not become that of another one, and
    // what is in the cgroup now was in it when its file was opened.
    let members: BTreeSet<u32> = pids()?.into_iter().collect();
    let mut done: Vec<(File, String)> = Vec::new();
    for (_, mut file) in opened.into_iter().filter(|(pid, _)| members.contains(pid)) {
        let mut was = String::new();
        if file.read_to_string(&mut was).is_err() {
            continue;
        }
        if let Err(error) = set(&mut file, score) {
            for (mut file, was) in done {
                set(&mut file, &was)?;
            }
            return Err(error);
        }
        done.push((file, was));
    }
    Ok(done)
}

fn score_file(pid: u32) -> std::io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/{pid}/oom_score_adj"))
}

fn set(file: &mut File, score: &str) -> Result<(), Error> {
    match file.write_all(score.trim().as_bytes()) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        // Below what the process was last given by a privileged one (CAP_SYS_RESOURCE).
        Err(error) if error.raw_os_error() == Some(Errno::EACCES as i32) => {
            let problem = format!("{} is lower than this node's daemon may set it", score.trim());
            Err(Error::invalid("oom_score_adj", problem))
        }
        Err(source) => Err(Error::io("write", "oom_score_adj")(source)),
    }
}

fn limits(wanted: &ChangedLimits) -> Limits {
    let resources = &wanted.resources;
    let cpu = resources.cpu().clone().unwrap_or_default();
    let memory = resources.memory().unwrap_or_default();
    let hugepages = resources.hugepage_limits().iter().flatten();
    Limits {
        cpu: CpuLimits {
            shares: cpu.shares(),
            quota: cpu.quota(),
            period: cpu.period(),
            burst: None,
            idle: None,
        },
        cpus: cpu.cpus().clone(),
        mems: cpu.mems().clone(),
        memory: MemoryLimits { limit: memory.limit(), swap: memory.swap(), reservation: None },
        pids: resources.pids().as_ref().map(LinuxPids::limit),
        hugepages: hugepages
            .filter_map(|limit| {
                Some((limit.page_size().clone(), u64::try_from(limit.limit()).ok()?))
            })
            .collect(),
        unified: resources.unified().clone().unwrap_or_default().into_iter().collect(),
        devices: None,
    }
}

/// Writes new limits into the specification of a container that is still to be started.
pub(super) fn rewrite(bundle: &Path, wanted: &ChangedLimits) -> Result<Former, Error> {
    let path = bundle.join("config.json");
    let former = files::read_bounded(&path, MAX_SPEC)?;
    let unreadable = |source: serde_json::Error| Error::io("read", path.clone())(source.into());
    let mut spec: Spec = serde_json::from_slice(&former).map_err(unreadable)?;
    if let Some(mut linux) = spec.linux().clone() {
        let mut resources = linux.resources().clone().unwrap_or_default();
        resources
            .set_cpu(wanted.resources.cpu().clone())
            .set_memory(*wanted.resources.memory())
            .set_hugepage_limits(wanted.resources.hugepage_limits().clone())
            .set_unified(wanted.resources.unified().clone());
        // Without one of its own it keeps the node's.
        if let Some(pids) = wanted.resources.pids() {
            resources.set_pids(Some(*pids));
        }
        linux.set_resources(Some(resources));
        spec.set_linux(Some(linux));
    }
    if let Some(mut process) = spec.process().clone() {
        process.set_oom_score_adj(Some(wanted.oom_score_adj));
        spec.set_process(Some(process));
    }
    let json = serde_json::to_vec(&spec).map_err(unreadable)?;
    replace(&path, &json)?;
    Ok(Former(vec![Part::Spec(path, former)]))
}

/// The file is the old one or the new one, whenever the daemon is killed.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(Error::io("write", path))
}
