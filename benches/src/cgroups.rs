//! The cgroup hierarchies of this machine, from outside of any runtime.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A mounted hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Hierarchy {
    mount: PathBuf,
    v2: bool,
}

/// The cgroup below which pods are made.
#[derive(Debug)]
pub(crate) struct Parent {
    /// Where it did not exist before: deepest first.
    made: Vec<PathBuf>,
}

impl Parent {
    /// Remembers where the cgroup `path` does not exist yet.
    pub(crate) fn new(path: &str) -> Result<Self> {
        let relative = Path::new(path.trim_start_matches('/'));
        let mut made = Vec::new();
        // A slice is a matter of systemd's.
        if path.ends_with(".slice") {
            return Ok(Self { made });
        }
        for hierarchy in hierarchies()? {
            let ancestors = relative.ancestors().filter(|ancestor| *ancestor != Path::new(""));
            made.extend(
                ancestors
                    .map(|ancestor| hierarchy.mount.join(ancestor))
                    .filter(|dir| !dir.exists()),
            );
        }
        Ok(Self { made })
    }

    /// Removes it where it did not exist before; what others use by now stays.
    pub(crate) fn remove(&self) {
        for dir in &self.made {
            // Absent, or busy: both mean that there is nothing to do here.
            fs::remove_dir(dir).ok();
        }
    }
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

    #[test]
    fn cgroups_that_only_memory_remembers_do_not_count() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                     cpuset\t3\t9\t1\nmemory\t4\t112\t1\nnet_cls\t0\t9\t1\n";
        let counted: Vec<_> = controllers(table).collect();
        assert_eq!(counted, [("cpuset".to_owned(), 9)]);
    }
}
