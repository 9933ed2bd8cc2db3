//! Cgroups, read at most as often as it is worth.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_cgroup::{Cgroup, CgroupPath, Error, Meter};
use berth_model::stats::{CgroupDetails, CgroupUsage};

use crate::Readings;
use crate::budget::{Budget, Permit};
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
    /// Of what was read twice: it will be read again and again.
    meters: Mutex<HashMap<CgroupPath, Arc<Mutex<Metered>>>>,
    budget: Budget,
}

/// A meter, and leave to keep it.
#[derive(Debug)]
struct Metered {
    meter: Meter,
    _permit: Permit,
}

impl Sampler {
    /// A sampler whose answers are at most `max_age` old, and which keeps no more open between
    /// them than there is in `budget`.
    pub fn new(max_age: Duration, budget: Budget) -> Self {
        Self {
            meters: Mutex::default(),
            budget,
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
        let read = || match self.metered(cgroup) {
            Some(metered) => lock(&metered).meter.usage(),
            None => cgroup.usage(),
        };
        let sample = self.sample_with(Instant::now(), cgroup.path(), read);
        if sample.is_err() {
            self.let_go(cgroup.path());
        }
        sample
    }

    /// Closes what is open of the cgroup at `path`: it will not be read for a while.
    pub fn let_go(&self, path: &CgroupPath) {
        lock(&self.meters).remove(path);
    }

    /// The meter of `cgroup`; `None` at its first reading, and when as many are kept as may be.
    fn metered(&self, cgroup: &Cgroup) -> Option<Arc<Mutex<Metered>>> {
        let mut meters = lock(&self.meters);
        if let Some(known) = meters.get(cgroup.path()) {
            return Some(Arc::clone(known));
        }
        self.samples.last(cgroup.path())?;
        let permit = self.budget.take(Meter::DESCRIPTORS)?;
        let metered = Metered { meter: Meter::new(cgroup.clone()), _permit: permit };
        let metered = Arc::new(Mutex::new(metered));
        meters.insert(cgroup.path().clone(), Arc::clone(&metered));
        Some(metered)
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
        self.let_go(path);
    }
}

/// A panic elsewhere leaves a map that is whole, and a meter that has kept nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (sampler, start) = (Sampler::new(SECOND, Budget::new(0)), Instant::now());
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
        let (sampler, start) = (Sampler::new(SECOND, Budget::new(0)), Instant::now());
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

    /// teeth: crates/stats/src/sampler.rs: `if sample.is_err() {` → `if false {`
    #[test]
    fn nothing_stays_open_of_a_cgroup_that_is_not_there() {
        let budget = Budget::new(Meter::DESCRIPTORS);
        let sampler = Sampler::new(Duration::ZERO, budget.clone());
        let path = CgroupPath::new("/berth-test-no-such-cgroup").unwrap();
        sampler.sample_with(Instant::now(), &path, || Ok(usage(1))).unwrap();
        let missing = berth_cgroup::Hierarchy::detect().unwrap().at(&path);
        assert!(matches!(sampler.sample(&missing), Err(Error::NotFound(_))));
        assert!(budget.take(Meter::DESCRIPTORS).is_some());
    }

    #[test]
    fn what_is_read_twice_stays_open_until_it_is_forgotten() {
        let budget = Budget::new(Meter::DESCRIPTORS);
        let sampler = Sampler::new(Duration::ZERO, budget.clone());
        let path = CgroupPath::new("/a").unwrap();
        let cgroup = berth_cgroup::Hierarchy::detect().unwrap().at(&path);
        assert!(sampler.metered(&cgroup).is_none(), "it was not read yet");
        sampler.sample_with(Instant::now(), &path, || Ok(usage(1))).unwrap();
        assert!(sampler.metered(&cgroup).is_some() && sampler.metered(&cgroup).is_some());
        assert!(budget.take(1).is_none());
        sampler.forget(&path);
        assert!(budget.take(Meter::DESCRIPTORS).is_some());
    }
}
