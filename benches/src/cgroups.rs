//! The cgroup hierarchies of this machine, from outside of any runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

/// The parent without another wish: all runs share it, the last one removes it.
const OURS: &str = "berth-bench";
/// How long pods that were removed may take to be gone.
const DEADLINE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// A mounted hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
}

/// The cgroup in which one run has its pods.
#[derive(Debug)]
pub(crate) struct Parent {
    /// What runtimes are told.
    path: String,
    /// Where no cgroup was before, or one that runs share: deepest first.
    made: Vec<PathBuf>,
    /// Of runs that are over.
    stale: Vec<PathBuf>,
}

impl Parent {
    /// A cgroup for the run called `run` below `parent`, where runs that are over may have
    /// left theirs. A slice is taken as it is: what is in it is a matter of systemd's.
    pub(crate) fn new(parent: &str, run: &str, is_over: impl Fn(&str) -> bool) -> Result<Self> {
        let parent = parent.trim_end_matches('/');
        if parent.ends_with(".slice") {
            return Ok(Self { path: parent.to_owned(), made: Vec::new(), stale: Vec::new() });
        }
        let path = format!("{parent}/{run}");
        let relative = Path::new(path.trim_start_matches('/'));
        let (mut made, mut stale) = (Vec::new(), Vec::new());
        for hierarchy in hierarchies()? {
            let parent = hierarchy.mount.join(parent.trim_start_matches('/'));
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                if entry.file_name().to_str().is_some_and(&is_over) {
                    stale.push(entry.path());
                }
            }
            let ancestors = relative.ancestors().map(|ancestor| hierarchy.mount.join(ancestor));
            made.extend(ancestors.filter(|dir| !dir.exists() || dir.ends_with(OURS)));
        }
        Ok(Self { path, made, stale })
    }

    /// What runtimes are told.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Removes what did not exist before, as soon as the last pod is gone, and what runs left
    /// that are over; what others use by now stays. Processes that stay in the cgroup of this
    /// run or of one that is over, because their runtime died or forgot them, are killed.
    pub(crate) async fn remove(&self) {
        // Below another parent, what is called like a run may be somebody else's.
        let (stale, foreign): (Vec<_>, Vec<_>) = self
            .stale
            .iter()
            .cloned()
            .partition(|dir| dir.parent().is_some_and(|parent| parent.ends_with(OURS)));
        foreign.iter().for_each(|dir| remove_empty(dir));
        remove_all(&stale, Instant::now()).await;
        let run = Path::new(self.path.trim_start_matches('/'));
        let (run, above): (Vec<_>, Vec<_>) =
            self.made.iter().cloned().partition(|dir| dir.ends_with(run));
        remove_all(&run, Instant::now() + DEADLINE).await;
        let own = |dir: &&PathBuf| !dir.ends_with(OURS);
        above.iter().filter(own).for_each(|dir| remove_empty(dir));
        for dir in self.made.iter().filter(|dir| !own(dir)) {
            // Absent, or in use by another run: both mean that there is nothing to do here.
            fs::remove_dir(dir).ok();
        }
    }
}

/// Removes the cgroups `dirs` with all below as soon as nothing lives in them. What still does
/// at `deadline` is killed.
async fn remove_all(dirs: &[PathBuf], deadline: Instant) {
    let mut told = false;
    while dirs.iter().any(|dir| dir.exists()) && Instant::now() < deadline + DEADLINE {
        dirs.iter().for_each(|dir| remove_empty(dir));
        if Instant::now() > deadline {
            let left: BTreeSet<i32> = dirs.iter().flat_map(|dir| processes(dir)).collect();
            if !left.is_empty() && !std::mem::replace(&mut told, true) {
                eprintln!("berth-bench: killed what was left of pods: {left:?}");
            }
            for pid in left {
                // Gone by itself meanwhile: as good.
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        sleep(LOOK).await;
    }
}

/// The processes in the cgroup `dir` and below it that this process can see.
fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // Those of another PID namespace have the number 0.
    let mut found: Vec<i32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// Removes the cgroup `dir` and those below, unless a process lives in it.
fn remove_empty(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // Absent, or busy: the caller looks again, or has nothing to do here.
    fs::remove_dir(dir).ok();
}

/// `v1`, `v2`, or `v1 + v2` (hybrid).
pub(crate) fn version() -> Result<&'static str> {
    let hierarchies = hierarchies()?;
    let any = |v2| hierarchies.iter().any(|hierarchy| hierarchy.v2 == v2);
    Ok(match (any(false), any(true)) {
        (true, true) => "v1 + v2 (hybrid)",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    })
}

/// How many cgroups there are, by hierarchy, without those that are only remembered for
/// the memory that was charged to them: a file in the page cache keeps these for long.
pub(crate) fn count() -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for hierarchy in hierarchies()?.into_iter().filter(|hierarchy| hierarchy.v2) {
        let stat = fs::read_to_string(hierarchy.mount.join("cgroup.stat")).unwrap_or_default();
        let alive = stat.lines().find_map(|line| line.strip_prefix("nr_descendants "));
        if let Some(alive) = alive.and_then(|alive| alive.trim().parse().ok()) {
            counts.insert(hierarchy.mount.display().to_string(), alive);
        }
    }
    let table = fs::read_to_string("/proc/cgroups").context("read /proc/cgroups")?;
    counts.extend(controllers(&table));
    Ok(counts)
}

/// Controllers of v1 hierarchies, by how many cgroups each has (cgroups(7), `/proc/cgroups`).
fn controllers(table: &str) -> impl Iterator<Item = (String, u64)> + '_ {
    table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, hierarchy, count, _] = fields.as_slice() else { return None };
        // Hierarchy 0 is v2's.
        let counted = *hierarchy != "0" && *name != "memory";
        counted.then(|| Some(((*name).to_owned(), count.parse().ok()?)))?
    })
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(parse(&text))
}

/// Mounts of cgroup file systems (proc(5), `mountinfo`).
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let v2 = match kind.split(' ').next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        Some(Hierarchy { mount: PathBuf::from(place.split(' ').nth(4)?), v2 })
    };
    mountinfo.lines().filter_map(hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_what_is_mounted() {
        let text = "30 25 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        let found = parse(text);
        assert_eq!(found.iter().map(|found| found.v2).collect::<Vec<_>>(), [false, true]);
        assert_eq!(found[0].mount, Path::new("/sys/fs/cgroup/pids"));
    }

    #[tokio::test]
    async fn what_stays_in_a_cgroup_below_is_killed() {
        // A cgroup to look at: it cannot be removed either as long as it has its file.
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("pod/container");
        fs::create_dir_all(&below).unwrap();
        let mut left = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(below.join("cgroup.procs"), format!("0\n{}\n", left.id())).unwrap();
        let dirs = [dir.path().to_owned()];
        let removing = remove_all(&dirs, Instant::now());
        tokio::time::timeout(Duration::from_millis(300), removing).await.unwrap_err();
        let ended = left.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    }

    #[test]
    fn cgroups_that_only_memory_remembers_do_not_count() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                     cpuset\t3\t9\t1\nmemory\t4\t112\t1\nnet_cls\t0\t9\t1\n";
        let counted: Vec<_> = controllers(table).collect();
        assert_eq!(counted, [("cpuset".to_owned(), 9)]);
    }
}
