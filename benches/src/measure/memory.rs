//! The machine's memory, by kind, once it has settled.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::process::kib;

/// How often a value that settles is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Looks in a row that must agree.
const LOOKS: usize = 6;
/// How far MemAvailable may vary over them, KiB.
const CALM: f64 = 512.0;

/// What of `/proc/meminfo` pods change, and what each is.
pub(crate) const KINDS: [(&str, &str); 8] = [
    ("MemAvailable", "what a new program could have without swapping"),
    ("AnonPages", "memory of programs that no file holds"),
    ("Shmem", "tmpfs and shared memory"),
    ("SUnreclaim", "kernel objects that stay"),
    ("SReclaimable", "kernel objects that give way (caches of names and inodes)"),
    ("KernelStack", "kernel stacks of threads"),
    ("PageTables", "page tables"),
    ("Percpu", "counters kept per processor (cgroups, links)"),
];

/// Those of them that the kernel holds for itself.
pub(crate) const KERNEL: [&str; 5] =
    ["SUnreclaim", "SReclaimable", "KernelStack", "PageTables", "Percpu"];

/// One reading of [`KINDS`], KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory([f64; KINDS.len()]);

/// Readings that followed each other until they agreed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    /// The median of each kind over the last readings.
    pub(crate) memory: Memory,
    /// How far MemAvailable varied over them, KiB.
    pub(crate) spread: f64,
    /// How long it took.
    pub(crate) after: Duration,
}

impl Memory {
    fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut memory = [0.0; KINDS.len()];
        for (place, (kind, _)) in memory.iter_mut().zip(KINDS) {
            let found = kib(text, kind).with_context(|| format!("/proc/meminfo has no {kind}"))?;
            *place = f64::from(u32::try_from(found).context("more than 4 TiB of memory")?);
        }
        Ok(Self(memory))
    }

    /// How much more of each kind there is than at `before`; of MemAvailable, how much less.
    pub(crate) fn growth(&self, before: &Self) -> Memory {
        let mut grown = [0.0; KINDS.len()];
        for (index, place) in grown.iter_mut().enumerate() {
            let more = self.0[index] - before.0[index];
            *place = if index == 0 { -more } else { more };
        }
        Self(grown)
    }

    /// Each kind with its amount, in the order of [`KINDS`].
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&'static str, f64)> {
        KINDS.into_iter().map(|(kind, _)| kind).zip(self.0)
    }

    /// MemAvailable, or how much it fell.
    pub(crate) fn available(&self) -> f64 {
        self.0[0]
    }
}

impl Settled {
    /// Waits at least `least` and until MemAvailable stays where it is, but no longer than
    /// `longest`: whether it did is in [`Settled::spread`].
    pub(crate) async fn wait(least: Duration, longest: Duration) -> Result<Self> {
        ensure!(longest >= least, "the longest wait is shorter than the least");
        let started = Instant::now();
        let mut looks: Vec<Memory> = Vec::new();
        loop {
            looks.push(Memory::read()?);
            let last = &looks[looks.len().saturating_sub(LOOKS)..];
            let after = started.elapsed();
            let spread = spread(last);
            let calm = last.len() == LOOKS && spread <= CALM;
            if after >= longest || (calm && after >= least) {
                return Ok(Self { memory: median(last), spread, after });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it came to rest within the time it had.
    pub(crate) fn calm(&self) -> bool {
        self.spread <= CALM
    }
}

fn spread(readings: &[Memory]) -> f64 {
    let values = || readings.iter().map(Memory::available);
    values().fold(f64::MIN, f64::max) - values().fold(f64::MAX, f64::min)
}

fn median(readings: &[Memory]) -> Memory {
    let mut middle = [0.0; KINDS.len()];
    for (index, place) in middle.iter_mut().enumerate() {
        let mut values: Vec<f64> = readings.iter().map(|reading| reading.0[index]).collect();
        values.sort_by(f64::total_cmp);
        *place = crate::stats::median(&values).unwrap_or(0.0);
    }
    Memory(middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meminfo(available: u64, slab: u64) -> String {
        format!(
            "MemTotal:       24684084 kB\nMemFree:        22887888 kB\n\
             MemAvailable:   {available} kB\nAnonPages:         57112 kB\nShmem:  8872 kB\n\
             Slab:  597680 kB\nSReclaimable:     510144 kB\nSUnreclaim:        {slab} kB\n\
             KernelStack:        2072 kB\nPageTables:         3736 kB\nPercpu:    2696 kB\n\
             HugePages_Total:       0\n"
        )
    }

    #[test]
    fn growth_is_what_was_taken_and_what_each_kind_gained() {
        let before = Memory::parse(&meminfo(24_003_436, 87_536)).unwrap();
        let after = Memory::parse(&meminfo(24_001_436, 88_036)).unwrap();
        let grown: Vec<_> =
            after.growth(&before).kinds().filter(|(_, amount)| *amount != 0.0).collect();
        assert_eq!(grown, [("MemAvailable", 2000.0), ("SUnreclaim", 500.0)]);
    }

    #[test]
    fn what_the_kernel_holds_is_among_what_is_read() {
        assert!(KERNEL.iter().all(|kind| KINDS.iter().any(|(known, _)| known == kind)));
    }

    #[test]
    fn a_kind_that_is_missing_is_not_nothing() {
        let text = meminfo(1, 1).replace("Percpu", "Perfoo");
        let error = Memory::parse(&text).unwrap_err();
        assert_eq!(error.to_string(), "/proc/meminfo has no Percpu");
    }

    #[test]
    fn readings_that_differ_are_not_calm() {
        let reading = |available| Memory::parse(&meminfo(available, 0)).unwrap();
        let readings = [reading(1000), reading(5000), reading(2000)];
        assert_eq!(spread(&readings), 4000.0);
        assert_eq!(median(&readings).available(), 2000.0);
        let settled = |spread| Settled { memory: readings[0], spread, after: LOOK };
        assert!(settled(CALM).calm() && !settled(CALM + 1.0).calm());
    }
}
