//! What the processes of a runtime hold: how many they are, their threads, their memory.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::process::{self, Process, Rollup};
use super::tree::{self, Ids, Kind};

/// Processes of one kind together; memory in KiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Group {
    pub(crate) processes: u64,
    pub(crate) threads: u64,
    pub(crate) memory: Rollup,
}

/// All processes of a runtime.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Footprint {
    pub(crate) daemon: Group,
    pub(crate) monitors: Group,
    pub(crate) pause: Group,
    pub(crate) workload: Group,
}

/// The processes of a runtime now, and what each is.
pub(crate) fn members(daemon: u32, ids: &Ids) -> Result<Vec<(Process, Kind)>> {
    let mut processes = process::all()?;
    processes.get(&daemon).with_context(|| match daemon {
        0 => "which process serves the socket is unknown: it must be in this PID namespace"
            .to_owned(),
        pid => format!("the daemon, process {pid}, has ended"),
    })?;
    let kinds = tree::classify(&processes, daemon, std::process::id(), ids);
    let member = |(pid, kind)| Some((processes.remove(&pid)?, kind));
    Ok(kinds.into_iter().filter_map(member).collect())
}

impl Footprint {
    /// Of the runtime whose daemon is `daemon` and whose pods are among `ids`.
    pub(crate) fn read(daemon: u32, ids: &Ids) -> Result<Self> {
        let mut memory = BTreeMap::new();
        let members = members(daemon, ids)?;
        for (process, _) in &members {
            // One that has gone meanwhile is counted nowhere.
            if let Some(rollup) = Rollup::read(process.pid)? {
                memory.insert(process.pid, rollup);
            }
        }
        Ok(Self::sum(&members, &memory))
    }

    fn sum(members: &[(Process, Kind)], memory: &BTreeMap<u32, Rollup>) -> Self {
        let mut sum = Self::default();
        for (process, kind) in members {
            let Some(rollup) = memory.get(&process.pid) else { continue };
            let group = match kind {
                Kind::Daemon => &mut sum.daemon,
                Kind::Monitor => &mut sum.monitors,
                Kind::Pause => &mut sum.pause,
                Kind::Workload => &mut sum.workload,
            };
            group.processes += 1;
            group.threads += process.threads;
            group.memory.rss += rollup.rss;
            group.memory.pss += rollup.pss;
            group.memory.anon += rollup.anon;
        }
        sum
    }

    /// Processes that pods have beside what runs in them.
    pub(crate) fn beside(&self) -> u64 {
        self.monitors.processes + self.pause.processes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_summed_apart_and_what_has_gone_counts_nowhere() {
        let member = |pid, kind| (Process { pid, threads: 2, ..Default::default() }, kind);
        let members = [
            member(1, Kind::Daemon),
            member(2, Kind::Monitor),
            member(3, Kind::Monitor),
            member(4, Kind::Pause),
            member(5, Kind::Workload),
            member(6, Kind::Monitor),
        ];
        let memory = (1..=5).map(|pid| (pid, Rollup { rss: 100, pss: 10, anon: 1 })).collect();
        let sum = Footprint::sum(&members, &memory);
        let memory = Rollup { rss: 200, pss: 20, anon: 2 };
        assert_eq!(sum.monitors, Group { processes: 2, threads: 4, memory });
        assert_eq!((sum.daemon.processes, sum.pause.processes, sum.beside()), (1, 1, 3));
        assert_eq!(sum.workload.memory.pss, 10);
    }
}
