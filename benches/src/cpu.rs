//! Processor time of the whole machine, and of this program.
//!
//! The kernel counts idle time by the clock (tick-less idle), but user and system time by
//! whom its ticks happen to meet, 4 or 10 ms apart. So the machine's time is reckoned from
//! what was *not* idle: processors × elapsed − idle − iowait − steal. What interrupts, RCU
//! callbacks and kernel threads do is in it, whoever caused it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    counted: Counted,
    /// Used by this program, its system calls included.
    own: Duration,
}

/// What `/proc/stat` says of all processors together, since boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Counted {
    processors: u32,
    /// Idle, or waiting for a disk.
    idle: Duration,
    /// Taken by the host of a virtual machine.
    steal: Duration,
}

/// What happened between two readings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Used {
    /// Elapsed.
    pub(crate) wall: Duration,
    /// Processor time of the machine, this program's included.
    pub(crate) machine: Duration,
    /// Processor time of this program.
    pub(crate) own: Duration,
    /// Processor time that the host of a virtual machine took away.
    pub(crate) steal: Duration,
    processors: u32,
}

impl Reading {
    /// Reads the counters.
    pub(crate) fn take() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let counted = parse(&text, ticks_per_second()?)?;
        let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("read own CPU time")?;
        Ok(Self { at: Instant::now(), counted, own: Duration::from(own) })
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Used {
        let wall = self.at.duration_since(earlier.at);
        let (now, then) = (self.counted, earlier.counted);
        let idle = now.idle.saturating_sub(then.idle);
        let steal = now.steal.saturating_sub(then.steal);
        let machine = (wall * now.processors).saturating_sub(idle + steal);
        let own = self.own.saturating_sub(earlier.own);
        Used { wall, machine, own, steal, processors: now.processors }
    }
}

impl Used {
    /// How many processors were busy with other things than this program. Not a share of all:
    /// what somebody works does not become less because a machine has many.
    pub(crate) fn busy(&self) -> f64 {
        let wall = self.wall.as_secs_f64();
        let others = self.machine.saturating_sub(self.own).as_secs_f64();
        if wall > 0.0 { others / wall } else { 0.0 }
    }

    /// How much the host of a virtual machine took, of all processors.
    pub(crate) fn stolen(&self) -> f64 {
        let whole = self.at(f64::from(self.processors));
        if whole > 0.0 { self.steal.as_secs_f64() / whole } else { 0.0 }
    }

    /// Processor time of others, in seconds, beyond that of `idle` busy processors.
    pub(crate) fn beyond(&self, idle: f64) -> f64 {
        self.machine.as_secs_f64() - self.own.as_secs_f64() - self.at(idle)
    }

    /// Processor time, in seconds, of so many busy processors.
    pub(crate) fn at(&self, processors: f64) -> f64 {
        processors * self.wall.as_secs_f64()
    }
}

fn ticks_per_second() -> Result<u64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).context("ask for the length of a tick")?;
    let ticks = ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0);
    ticks.context("the system names no length of a tick")
}

/// Reads the line of all processors and counts the lines of each (proc(5)).
fn parse(stat: &str, ticks: u64) -> Result<Counted> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let line = line.context("/proc/stat has no line of all processors")?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    ensure!(fields.len() >= 8, "/proc/stat counts neither idle nor steal: {line:?}");
    let time = |count: u64| Duration::from_micros(count * 1_000_000 / ticks);
    let each = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    let processors = u32::try_from(stat.lines().filter(each).count())?;
    Ok(Counted { processors, idle: time(fields[3] + fields[4]), steal: time(fields[7]) })
}

#[cfg(test)]
impl Reading {
    /// What two processors read that were idle for so long since boot, after `elapsed`.
    pub(crate) fn fake(boot: Instant, elapsed: Duration, idle: Duration) -> Self {
        let counted = Counted { processors: 2, idle, steal: Duration::ZERO };
        Self { at: boot + elapsed, counted, own: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 1000 20 0 5 7 0 0\n\
                        cpu0 50 0 25 500 10 0 3 4 0 0\n\
                        cpu1 50 0 25 500 10 0 2 3 0 0\n\
                        intr 12 0\n";

    #[test]
    fn waiting_for_a_disk_is_idle_and_stolen_time_is_apart() {
        let counted = parse(STAT, 100).unwrap();
        assert_eq!(counted.processors, 2);
        assert_eq!(counted.idle, Duration::from_millis(10_200));
        assert_eq!(counted.steal, Duration::from_millis(70));
        assert!(parse("cpu  1 2 3\n", 100).is_err());
    }

    #[test]
    fn neither_own_work_nor_the_idle_rate_is_the_runtimes() {
        let before =
            Reading { at: Instant::now(), counted: parse(STAT, 100).unwrap(), own: Duration::ZERO };
        let mut after = before;
        after.at += Duration::from_secs(1);
        after.counted.idle += Duration::from_millis(1400);
        after.counted.steal += Duration::from_millis(100);
        after.own += Duration::from_millis(50);
        let used = after.since(&before);
        assert_eq!(used.machine, Duration::from_millis(500));
        assert!((used.busy() - 0.45).abs() < 1e-9, "{used:?}");
        assert!((used.stolen() - 0.05).abs() < 1e-9, "{used:?}");
        assert!((used.beyond(0.2) - 0.25).abs() < 1e-9, "{used:?}");
    }
}
