//! Cgroups, read at most as often as it is worth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_cgroup::{Cgroup, CgroupPath, Error};
use berth_model::stats::{CgroupDetails, CgroupUsage};

use crate::Readings;
use crate::processes::{self, Processes};

/// Usage of one cgroup, and its CPU rate against the sample before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// What was read.
    pub usage: CgroupUsage,
    /// CPU use between the two last readings, billionths of one core; `None` until there are two.
    pub nano_cores: Option<u64>,
}

/// All that metrics tell of one cgroup.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// What its files say.
    pub cgroup: CgroupDetails,
    /// What its processes have; `None` unless asked for.
    pub processes: Option<Processes>,
}

/// Reads cgroups, each at most once per `max_age`.
#[derive(Debug)]
pub struct Sampler {
    samples: Readings<CgroupPath, Sample>,
    details: Readings<CgroupPath, Arc<Details>>,
    processes: Readings<CgroupPath, Processes>,
}

impl Sampler {
    /// A sampler whose answers are at most `max_age` old.
    pub fn new(max_age: Duration) -> Self {
        Self {
            samples: Readings::new(max_age),
            details: Readings::new(max_age),
            processes: Readings::dear(max_age),
        }
    }

    /// Usage of `cgroup`; read now unless the last reading is young enough. Blocks for the
    /// reading of a few kernel files (tens of microseconds).
    ///
    /// # Errors
    /// Those of [`Cgroup::usage`]; a failure is not cached.
    pub fn sample(&self, cgroup: &Cgroup) -> Result<Sample, Error> {
        self.sample_with(Instant::now(), cgroup.path(), || cgroup.usage())
    }

    /// All of `cgroup`; with its processes, of which `init` is the first, where that is given.
    /// Blocks for the reading of some thirty kernel files and, for processes with many
    /// descriptors, for longer.
    ///
    /// # Errors
    /// Those of [`Cgroup::details`] and [`Cgroup::pids`].
    pub fn details(&self, cgroup: &Cgroup, init: Option<u32>) -> Result<Arc<Details>, Error> {
        let now = Instant::now();
        self.details_with(now, cgroup.path(), || {
            let details = cgroup.details()?;
            let processes = match init {
                Some(init) => Some(
                    self.processes
                        .get(cgroup.path(), |_| Ok(processes::read(&cgroup.pids()?, init)))?,
                ),
                None => None,
            };
            Ok(Details { cgroup: details, processes })
        })
    }

    fn sample_with(
        &self,
        now: Instant,
        path: &CgroupPath,
        read: impl FnOnce() -> Result<CgroupUsage, Error>,
    ) -> Result<Sample, Error> {
        self.samples.get_at(now, path, |before| Ok(sampled(now, before, read()?)))
    }

    fn details_with(
        &self,
        now: Instant,
        path: &CgroupPath,
        read: impl FnOnce() -> Result<Details, Error>,
    ) -> Result<Arc<Details>, Error> {
        self.details.get_at(now, path, |_| {
            let details = read()?;
            // Who needs less has it too.
            self.samples.put(now, path, |before| sampled(now, before, details.cgroup.usage));
            Ok(Arc::new(details))
        })
    }

    /// The last sample of the cgroup at `path`, however old.
    pub fn last(&self, path: &CgroupPath) -> Option<Sample> {
        self.samples.last(path)
    }

    /// Drops what is kept of the cgroup at `path`; called when its owner is removed.
    pub fn forget(&self, path: &CgroupPath) {
        self.samples.forget(path);
        self.details.forget(path);
        self.processes.forget(path);
    }
}

fn sampled(now: Instant, before: Option<(Instant, &Sample)>, usage: CgroupUsage) -> Sample {
    let nano_cores = before.and_then(|(taken, before)| {
        let (before, cpu) = (before.usage.cpu?, usage.cpu?);
        rate(before.total_ns, cpu.total_ns, now.saturating_duration_since(taken))
    });
    Sample { usage, nano_cores }
}

/// Billionths of a core; `None` for no time, and for a counter that went back (another cgroup
/// under the same name).
fn rate(before: u64, now: u64, elapsed: Duration) -> Option<u64> {
    let used = u128::from(now.checked_sub(before)?);
    let rate = (used * 1_000_000_000).checked_div(elapsed.as_nanos())?;
    u64::try_from(rate).ok()
}

#[cfg(test)]
mod tests {
    use berth_model::stats::CpuUsage;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn path() -> CgroupPath {
        CgroupPath::new("/a").unwrap()
    }

    fn usage(total_ns: u64) -> CgroupUsage {
        let cpu = CpuUsage { total_ns, ..CpuUsage::default() };
        CgroupUsage { cpu: Some(cpu), ..CgroupUsage::default() }
    }

    #[test]
    fn the_rate_is_that_between_two_readings() {
        let (sampler, start) = (Sampler::new(SECOND), Instant::now());
        let at = |seconds, cpu| {
            let now = start + seconds * SECOND;
            sampler.sample_with(now, &path(), || Ok(usage(cpu))).unwrap().nano_cores
        };
        assert_eq!(at(0, 1_000_000_000), None);
        assert_eq!(at(10, 6_000_000_000), Some(500_000_000));
        assert_eq!(at(11, 8_000_000_000), Some(2_000_000_000));
        // Another cgroup of that name.
        assert_eq!(at(12, 7), None);
    }

    #[test]
    fn a_reading_of_all_serves_who_needs_less() {
        let (sampler, start) = (Sampler::new(SECOND), Instant::now());
        let details = |cpu| {
            let cgroup = CgroupDetails { usage: usage(cpu), ..CgroupDetails::default() };
            Ok(Details { cgroup, processes: None })
        };
        let read = |at, cpu| sampler.details_with(start + at * SECOND, &path(), || details(cpu));
        read(0, 1_000_000_000).unwrap();
        let later = start + 2 * SECOND;
        read(2, 2_000_000_000).unwrap();
        let sample =
            sampler.sample_with(later, &path(), || panic!("it was read with all else")).unwrap();
        assert_eq!((sample.usage, sample.nano_cores), (usage(2_000_000_000), Some(500_000_000)));
        let missing = || Err(Error::NotFound("/a".into()));
        assert!(sampler.details_with(start + 4 * SECOND, &path(), missing).is_err());
        assert_eq!(sampler.last(&path()), Some(sample));
        sampler.forget(&path());
        assert_eq!(sampler.last(&path()), None);
        assert_eq!(sampler.details.last(&path()), None);
    }
}
