//! Whose processes are whose.
//!
//! ```text
//! daemon ── what it started that is nothing else          Daemon
//! shim, conmon, …: outside, and
//!   above a process inside a pod, or below a monitor,
//!   or with a pod's id in its cgroup or command line       Monitor
//! inside (deeper PID namespace), cgroup names a sandbox    Pause
//! inside, cgroup names a container; whatever it started    Workload
//! ```
//!
//! Pods are known by the ids that the runtime gave them, those that were removed too: a
//! monitor that stays behind is found. What is above the daemon or above this program (a
//! service manager, a shell) belongs to nobody, and so does everything else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::process::Process;

/// What a process is to a runtime.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// Answers the CRI, or was started by who does and is nothing of the below.
    Daemon,
    /// Watches over a pod from outside.
    Monitor,
    /// Holds a sandbox's namespaces from inside.
    Pause,
    /// Runs in a container.
    Workload,
}

/// Every pod that a run has made, also those that are gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids(HashMap<String, Kind>);

impl Ids {
    /// Remembers the id of a sandbox.
    pub(crate) fn sandbox(&mut self, id: &str) {
        self.0.insert(key(id).to_owned(), Kind::Pause);
    }

    /// Remembers the id of a container.
    pub(crate) fn container(&mut self, id: &str) {
        self.0.insert(key(id).to_owned(), Kind::Workload);
    }

    /// What the last id in `text` is an id of.
    fn last_in(&self, text: &str) -> Option<Kind> {
        words(text).filter_map(|word| self.0.get(word)).last().copied()
    }
}

/// The part of an id that every runtime leaves as it is in a cgroup's name and on a command
/// line: `cri-containerd-ID.scope`, `/pods/ID`.
fn key(id: &str) -> &str {
    words(id).max_by_key(|word| word.len()).unwrap_or(id)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty())
}

/// What each of `processes` is to the runtime whose daemon is `daemon`; those that are
/// nothing to it are left out. `own` is this program.
pub(crate) fn classify(
    processes: &BTreeMap<u32, Process>,
    daemon: u32,
    own: u32,
    ids: &Ids,
) -> BTreeMap<u32, Kind> {
    let outside = processes.get(&daemon).or(processes.get(&own)).map_or(1, |known| known.depth);
    let mut nobodys: BTreeSet<u32> = ancestors(processes, daemon).collect();
    nobodys.extend(ancestors(processes, own));
    // The kernel's own two, whose children everything is that lost its parent.
    nobodys.extend([0, 1, 2, own]);
    nobodys.remove(&daemon);

    let mut kinds: BTreeMap<u32, Kind> = BTreeMap::new();
    kinds.insert(daemon, Kind::Daemon);
    let candidates = || processes.values().filter(|process| !nobodys.contains(&process.pid));
    for process in candidates().filter(|process| process.pid != daemon) {
        let named = process.cgroups.iter().filter_map(|path| ids.last_in(path)).max();
        if let (Some(kind), true) = (named, process.depth > outside) {
            kinds.insert(process.pid, kind);
        } else if named.is_some() || ids.last_in(&process.command).is_some() {
            kinds.insert(process.pid, Kind::Monitor);
        }
    }
    for above in inside(&kinds).flat_map(|pid| ancestors(processes, pid)).collect::<Vec<_>>() {
        if !nobodys.contains(&above) {
            kinds.entry(above).or_insert(Kind::Monitor);
        }
    }
    let marked = kinds.clone();
    for process in candidates() {
        let mut line = ancestors(processes, process.pid).take_while(|pid| !nobodys.contains(pid));
        if let Some(kind) = line.find_map(|pid| marked.get(&pid)) {
            kinds.entry(process.pid).or_insert(*kind);
        }
    }
    kinds.retain(|pid, _| processes.contains_key(pid));
    kinds
}

fn inside(kinds: &BTreeMap<u32, Kind>) -> impl Iterator<Item = u32> {
    let inside = kinds.iter().filter(|(_, kind)| matches!(kind, Kind::Pause | Kind::Workload));
    inside.map(|(pid, _)| *pid)
}

/// The parent of `pid`, its parent, and so on, as far as they are known.
fn ancestors(processes: &BTreeMap<u32, Process>, pid: u32) -> impl Iterator<Item = u32> {
    let parent = |pid: &u32| processes.get(pid).map(|process| process.parent);
    // A pid may have been given anew while the list was read: no line is longer than it.
    std::iter::successors(parent(&pid), move |pid| parent(pid)).take(processes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: &str = "ee82d9c802b77d68c191db730e13bb235321a35fce0a93c55580f5b3b9d1d476";
    const CONTAINER: &str = "85db826015e868ee55151d88433f10b716b192d30834bcf3ec3af9c126224bcd";
    const DAEMON: u32 = 100;
    const OWN: u32 = 50;

    /// pid, parent, depth, cgroup, command.
    type Row<'a> = (u32, u32, usize, &'a str, &'a str);

    #[track_caller]
    fn check(rows: &[Row<'_>], expected: &[(u32, Kind)]) {
        let common: [Row<'_>; 5] = [
            (1, 0, 1, "/", "init"),
            (40, 1, 1, "/", "bash"),
            (OWN, 40, 1, "/", "berth-bench density"),
            (DAEMON, 40, 1, "/", "the daemon"),
            (60, OWN, 1, "/", "docker-registry"),
        ];
        let processes = common.iter().chain(rows).map(|&(pid, parent, depth, cgroup, command)| {
            let cgroups = BTreeSet::from(["/".to_owned(), cgroup.to_owned()]);
            let command = command.to_owned();
            (pid, Process { pid, parent, depth, cgroups, command, ..Default::default() })
        });
        let mut ids = Ids::default();
        ids.sandbox(SANDBOX);
        ids.container(CONTAINER);
        let found = classify(&processes.collect(), DAEMON, OWN, &ids);
        let mut expected: BTreeMap<u32, Kind> = expected.iter().copied().collect();
        expected.insert(DAEMON, Kind::Daemon);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_shim_with_its_workload_and_no_pause() {
        let container = format!("/bench/{SANDBOX}/{CONTAINER}");
        check(
            &[
                (200, 1, 1, "/", &format!("containerd-shim-berth-v1 -id {SANDBOX} start")),
                (201, 200, 2, &container, "sleep 1000"),
                (202, 201, 2, &container, "a child of it"),
                (203, 200, 1, "/", "a worker of the shim"),
            ],
            &[
                (200, Kind::Monitor),
                (201, Kind::Workload),
                (202, Kind::Workload),
                (203, Kind::Monitor),
            ],
        );
    }

    #[test]
    fn a_shim_with_a_pause_and_flat_cgroups() {
        check(
            &[
                (
                    200,
                    1,
                    1,
                    "/",
                    &format!("containerd-shim-runc-v2 -namespace k8s.io -id {SANDBOX}"),
                ),
                (201, 200, 2, &format!("/bench/{SANDBOX}"), "/pause"),
                (202, 200, 2, &format!("/bench/{CONTAINER}"), "sleep 1000"),
                (300, 1, 1, "/", "containerd-shim-runc-v2 -namespace k8s.io -id another"),
                (301, 300, 2, "/kubepods/another", "/pause"),
            ],
            &[(200, Kind::Monitor), (201, Kind::Pause), (202, Kind::Workload)],
        );
    }

    #[test]
    fn a_monitor_in_the_pods_own_cgroup_and_scopes() {
        let slice = "/bench.slice";
        check(
            &[
                (200, 1, 1, &format!("{slice}/crio-conmon-{CONTAINER}.scope"), "conmon"),
                (201, 200, 2, &format!("{slice}/crio-{CONTAINER}.scope/below"), "sleep 1000"),
            ],
            &[(200, Kind::Monitor), (201, Kind::Workload)],
        );
    }

    #[test]
    fn a_monitor_that_is_left_alone_and_one_that_names_no_pod() {
        check(
            &[
                (200, 1, 1, "/", &format!("shim --id={SANDBOX}")),
                (210, 1, 1, "/", "one shim for all pods"),
                (211, 210, 2, &format!("/bench/{CONTAINER}"), "sleep 1000"),
            ],
            &[(200, Kind::Monitor), (210, Kind::Monitor), (211, Kind::Workload)],
        );
    }

    #[test]
    fn what_the_daemon_started_is_the_daemons_and_nobody_above_it_is_a_monitor() {
        check(
            &[
                (101, DAEMON, 1, "/", "a helper"),
                (102, 101, 1, "/", "the helper's"),
                (103, DAEMON, 1, "/", "a monitor below the daemon"),
                (104, 103, 2, &format!("/bench/{CONTAINER}"), "sleep 1000"),
                (105, DAEMON, 2, &format!("/bench/{CONTAINER}"), "without a monitor"),
                (400, 40, 1, "/", "another child of the shell"),
            ],
            &[
                (101, Kind::Daemon),
                (102, Kind::Daemon),
                (103, Kind::Monitor),
                (104, Kind::Workload),
                (105, Kind::Workload),
            ],
        );
    }

    #[test]
    fn parents_that_go_round_in_a_circle_end_the_search() {
        check(&[(500, 501, 1, "/", "x"), (501, 500, 1, "/", "y")], &[]);
    }
}
