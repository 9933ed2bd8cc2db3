//! What the processes of a runtime do: CPU time and wakeups between two readings.
//!
//! CPU time is the kernel's own clock of each process (exact, threads that have ended
//! included), and the time of children that it has waited for, in ticks of 10 ms. Wakeups
//! are voluntary context switches: each ends with a wakeup. The kernel forgets those of a
//! thread that ends, so one looks at the threads from time to time ([`Reading::look`]); those
//! of children that came and went are in no count.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::footprint;
use super::process::{self, Process, Stat, Switches};
use super::tree::{Ids, Kind};

/// A clock tick of `/proc`: `USER_HZ` is 100 wherever containers run.
const TICK: Duration = Duration::from_millis(10);

/// What one process has done since it started.
#[derive(Clone, Debug, Default)]
struct Done {
    cpu: Duration,
    /// CPU time of ended children that it has waited for.
    children: Duration,
    /// By thread.
    switches: BTreeMap<u32, Switches>,
    /// What threads had done when they were last seen that have ended since, the oldest first.
    ended: Vec<(u32, Switches)>,
}

/// What each process of a runtime has done since it started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading(BTreeMap<(u32, u64), (Kind, Done)>);

/// What processes of one kind did between two readings.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Work {
    /// Processes there were at the end.
    pub(crate) processes: u32,
    pub(crate) cpu: Duration,
    /// Voluntary context switches.
    pub(crate) wakeups: u64,
    /// Involuntary ones: another process had the processor instead.
    pub(crate) preemptions: u64,
}

impl Reading {
    /// Of the runtime whose daemon is `daemon` and whose pods are among `ids`; workloads are
    /// left out.
    pub(crate) fn take(daemon: u32, ids: &Ids) -> Result<Self> {
        let mut reading = BTreeMap::new();
        for (process, kind) in footprint::members(daemon, ids)? {
            if kind == Kind::Workload {
                continue;
            }
            if let Some(done) = Done::read(&process)? {
                reading.insert((process.pid, process.started), (kind, done));
            }
        }
        Ok(Self(reading))
    }

    /// Looks at the threads of the processes there were, before they end.
    pub(crate) fn look(&mut self) -> Result<()> {
        for ((pid, _), (_, done)) in &mut self.0 {
            done.see(switches(*pid)?);
        }
        Ok(())
    }

    /// Takes over what `seen`, which was looked at meanwhile, knows of threads that have ended.
    #[must_use]
    pub(crate) fn remembering(mut self, seen: Self) -> Self {
        for (name, (_, mut seen)) in seen.0 {
            if let Some((_, done)) = self.0.get_mut(&name) {
                seen.see(std::mem::take(&mut done.switches));
                (done.switches, done.ended) = (seen.switches, seen.ended);
            }
        }
        self
    }

    /// What was done since `earlier` by processes of `kind`. What a process did that ended
    /// in between is counted with who waited for it, if that is of the same runtime.
    pub(crate) fn since(&self, earlier: &Self, kind: Kind) -> Work {
        let mut work = Work::default();
        for (name, (_, done)) in self.0.iter().filter(|(_, (of, _))| *of == kind) {
            let none = Done::default();
            let before = earlier.0.get(name).map_or(&none, |(_, before)| before);
            work.processes += 1;
            work.cpu += done.cpu.saturating_sub(before.cpu);
            work.cpu += done.children.saturating_sub(before.children);
            let mut known = before.switches.clone();
            let now = done.switches.iter().map(|(thread, switches)| (*thread, *switches));
            for (thread, switches) in done.ended.iter().copied().chain(now) {
                // Who has the number of a thread that ended is another one.
                let before = known.remove(&thread).unwrap_or_default();
                work.wakeups += switches.voluntary.saturating_sub(before.voluntary);
                work.preemptions += switches.involuntary.saturating_sub(before.involuntary);
            }
        }
        work
    }
}

impl Done {
    /// `None` if the process is gone.
    fn read(process: &Process) -> Result<Option<Self>> {
        let pid = process.pid;
        let Some(cpu) = clock(pid)? else { return Ok(None) };
        let Some(stat) = process::text(&process::file(pid, "stat"))? else { return Ok(None) };
        let stat = Stat::parse(&stat).with_context(|| format!("understand /proc/{pid}/stat"))?;
        let children = TICK * u32::try_from(stat.children).context("CPU time of children")?;
        Ok(Some(Self { cpu, children, switches: switches(pid)?, ended: Vec::new() }))
    }

    /// Threads have done so much by `now`.
    fn see(&mut self, now: BTreeMap<u32, Switches>) {
        for (thread, before) in std::mem::replace(&mut self.switches, now) {
            // A count that has become less is of another thread with the same number.
            let lives = self.switches.get(&thread).is_some_and(|now| {
                now.voluntary >= before.voluntary && now.involuntary >= before.involuntary
            });
            if !lives {
                self.ended.push((thread, before));
            }
        }
    }
}

/// The CPU time of process `pid`; `None` if it is gone.
fn clock(pid: u32) -> Result<Option<Duration>> {
    let process = Pid::from_raw(i32::try_from(pid)?);
    match ClockId::pid_cpu_clock_id(process).and_then(clock_gettime) {
        Ok(time) => Ok(Some(Duration::from(time))),
        // The clock of a process that has ended is said to be invalid.
        Err(Errno::ESRCH | Errno::EINVAL) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read the CPU clock of process {pid}")),
    }
}

fn switches(pid: u32) -> Result<BTreeMap<u32, Switches>> {
    let mut found = BTreeMap::new();
    // No entries: it has ended meanwhile.
    for entry in std::fs::read_dir(process::file(pid, "task")).into_iter().flatten().flatten() {
        let Ok(thread) = entry.file_name().to_string_lossy().parse() else { continue };
        let Some(text) = process::text(&entry.path().join("status"))? else { continue };
        if let Some(switches) = Switches::parse(&text) {
            found.insert(thread, switches);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(cpu: u64, children: u64, switches: &[(u32, u64, u64)]) -> Done {
        let switches = switches
            .iter()
            .map(|&(thread, voluntary, involuntary)| (thread, Switches { voluntary, involuntary }));
        let (cpu, children) = (Duration::from_millis(cpu), Duration::from_millis(children));
        Done { cpu, children, switches: switches.collect(), ended: Vec::new() }
    }

    #[test]
    fn threads_that_ended_count_as_far_as_they_were_seen() {
        let reading = |switches: &[(u32, u64, u64)]| {
            Reading(BTreeMap::from([((1, 7), (Kind::Daemon, done(0, 0, switches)))]))
        };
        let began = reading(&[(1, 5, 0), (2, 40, 1)]);
        let mut seen = began.clone();
        let mut see = |switches: &[(u32, u64, u64)]| {
            let (_, done) = seen.0.get_mut(&(1, 7)).unwrap();
            done.see(reading(switches).0.remove(&(1, 7)).unwrap().1.switches);
        };
        // Thread 3 comes and goes; the number 2 is given to another thread.
        see(&[(1, 6, 0), (2, 50, 1), (3, 7, 0)]);
        see(&[(1, 8, 0), (2, 4, 0)]);
        let now = reading(&[(1, 9, 0), (2, 6, 0), (4, 1, 0)]).remembering(seen);
        assert_eq!(now.since(&began, Kind::Daemon).wakeups, 4 + 10 + 7 + 6 + 1);
        // Who was not seen again is not forgotten either, and one who lives counts once.
        let now = reading(&[(1, 9, 0)]).remembering(began.clone());
        assert_eq!(now.since(&began, Kind::Daemon).wakeups, 4);
    }

    #[test]
    fn work_is_what_was_added_by_the_same_processes_and_all_of_new_ones() {
        let earlier = Reading(BTreeMap::from([
            ((1, 7), (Kind::Daemon, done(100, 10, &[(1, 5, 1), (2, 5, 0)]))),
            ((9, 7), (Kind::Monitor, done(50, 0, &[(9, 100, 0)]))),
        ]));
        let later = Reading(BTreeMap::from([
            // Thread 2 has ended, thread 3 is new.
            ((1, 7), (Kind::Daemon, done(130, 30, &[(1, 6, 3), (3, 4, 0)]))),
            // The pid was given anew.
            ((9, 8), (Kind::Monitor, done(20, 0, &[(9, 2, 0)]))),
        ]));
        let daemon = later.since(&earlier, Kind::Daemon);
        let cpu = Duration::from_millis;
        assert_eq!(daemon, Work { processes: 1, cpu: cpu(50), wakeups: 5, preemptions: 2 });
        let monitors = later.since(&earlier, Kind::Monitor);
        assert_eq!(monitors, Work { processes: 1, cpu: cpu(20), wakeups: 2, preemptions: 0 });
        assert_eq!(later.since(&earlier, Kind::Pause), Work::default());
    }

    #[test]
    fn this_process_has_done_something() {
        let own = std::process::id();
        let reading = Reading::take(own, &Ids::default()).unwrap();
        let work = reading.since(&Reading::default(), Kind::Daemon);
        assert!(work.processes >= 1 && work.cpu > Duration::ZERO);
        // One above the highest that any kernel gives.
        assert_eq!(clock((1 << 22) + 1).unwrap(), None);
    }
}
