//! One cached sampler of cgroups.
//!
//! Lists and statistics of many containers are asked for again and again, by kubelet, by
//! metrics and by people. [`Sampler`] reads a cgroup's files at most once per `max_age`,
//! whoever asks, and derives the CPU rate from the two last readings.
//!
//! Invariants: callers for one cgroup wait for one reading, callers for others never wait for
//! it; nothing is kept of a cgroup after [`Sampler::forget`]. Not here: counters of network
//! interfaces, whose readings come with the metrics that show them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_cgroup::{Cgroup, CgroupPath, Error};
use berth_model::stats::CgroupUsage;

/// Usage of one cgroup, and its CPU rate against the sample before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sample {
    /// What was read.
    pub usage: CgroupUsage,
    /// CPU use between the two last readings, billionths of one core; `None` until there are two.
    pub nano_cores: Option<u64>,
}

/// The last reading of one cgroup, and when it was made.
type Slot = Arc<Mutex<Option<(Instant, Sample)>>>;

/// Reads cgroups, each at most once per `max_age`.
#[derive(Debug)]
pub struct Sampler {
    max_age: Duration,
    slots: Mutex<HashMap<CgroupPath, Slot>>,
}

impl Sampler {
    /// A sampler whose answers are at most `max_age` old.
    pub fn new(max_age: Duration) -> Self {
        Self { max_age, slots: Mutex::default() }
    }

    /// Usage of `cgroup`; read now unless the last reading is young enough. Blocks for the
    /// reading of a few kernel files (tens of microseconds).
    ///
    /// # Errors
    /// Those of [`Cgroup::usage`]; a failure is not cached.
    pub fn sample(&self, cgroup: &Cgroup) -> Result<Sample, Error> {
        self.sample_with(cgroup.path(), Instant::now(), || cgroup.usage())
    }

    fn sample_with(
        &self,
        path: &CgroupPath,
        now: Instant,
        read: impl FnOnce() -> Result<CgroupUsage, Error>,
    ) -> Result<Sample, Error> {
        let known = lock(&self.slots).get(path).cloned();
        let slot =
            known.unwrap_or_else(|| lock(&self.slots).entry(path.clone()).or_default().clone());
        let mut last = lock(&slot);
        if let Some((at, sample)) = *last
            && now.saturating_duration_since(at) < self.max_age
        {
            return Ok(sample);
        }
        let usage = match read() {
            Ok(usage) => usage,
            Err(error) => {
                // A slot that never held anything would outlive a cgroup that never was.
                if last.is_none() {
                    lock(&self.slots).remove(path);
                }
                return Err(error);
            }
        };
        let nano_cores = last.and_then(|(at, before)| {
            rate(before.usage.cpu_ns, usage.cpu_ns, now.saturating_duration_since(at))
        });
        let sample = Sample { usage, nano_cores };
        *last = Some((now, sample));
        Ok(sample)
    }

    /// The last reading of the cgroup at `path`, however old.
    pub fn last(&self, path: &CgroupPath) -> Option<Sample> {
        let slot = lock(&self.slots).get(path).cloned()?;
        let last = *lock(&slot);
        last.map(|(_, sample)| sample)
    }

    /// Drops what is kept of the cgroup at `path`; called when its owner is removed.
    pub fn forget(&self, path: &CgroupPath) {
        lock(&self.slots).remove(path);
    }
}

/// A panic elsewhere leaves a map and a copied value, both always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn path(name: &str) -> CgroupPath {
        CgroupPath::new(name).unwrap()
    }

    fn usage(cpu_ns: u64) -> CgroupUsage {
        CgroupUsage { cpu_ns, ..CgroupUsage::default() }
    }

    fn no_reading() -> Result<CgroupUsage, Error> {
        panic!("the cached sample is young enough")
    }

    #[test]
    fn a_young_reading_is_not_repeated() {
        let (sampler, start) = (Sampler::new(10 * SECOND), Instant::now());
        let first = sampler.sample_with(&path("/a"), start, || Ok(usage(5))).unwrap();
        assert_eq!(first, Sample { usage: usage(5), nano_cores: None });
        let again = sampler.sample_with(&path("/a"), start + 9 * SECOND, no_reading).unwrap();
        assert_eq!(again, first);
        assert_eq!(sampler.last(&path("/a")), Some(first));
        assert_eq!(sampler.last(&path("/b")), None);
    }

    #[test]
    fn the_rate_is_that_between_two_readings() {
        let (sampler, start) = (Sampler::new(SECOND), Instant::now());
        let at = |seconds, cpu| {
            let now = start + seconds * SECOND;
            sampler.sample_with(&path("/a"), now, || Ok(usage(cpu))).unwrap().nano_cores
        };
        assert_eq!(at(0, 1_000_000_000), None);
        assert_eq!(at(10, 6_000_000_000), Some(500_000_000));
        assert_eq!(at(11, 8_000_000_000), Some(2_000_000_000));
        // Another cgroup of that name.
        assert_eq!(at(12, 7), None);
    }

    #[test]
    fn a_failure_is_told_and_not_kept() {
        let sampler = Sampler::new(SECOND);
        let missing = || Err(Error::NotFound("/a".into()));
        assert!(sampler.sample_with(&path("/a"), Instant::now(), missing).is_err());
        assert!(lock(&sampler.slots).is_empty());
        sampler.sample_with(&path("/a"), Instant::now(), || Ok(usage(1))).unwrap();
        let later = Instant::now() + 2 * SECOND;
        assert!(sampler.sample_with(&path("/a"), later, missing).is_err());
        assert!(sampler.last(&path("/a")).is_some());
        sampler.forget(&path("/a"));
        assert!(lock(&sampler.slots).is_empty());
    }

    #[test]
    fn a_slow_reading_delays_nobody_else() {
        let sampler = Sampler::new(SECOND);
        let now = Instant::now();
        sampler
            .sample_with(&path("/slow"), now, || {
                sampler.sample_with(&path("/other"), now, || Ok(usage(1)))?;
                Ok(usage(2))
            })
            .unwrap();
        assert_eq!(sampler.last(&path("/other")).unwrap().usage.cpu_ns, 1);
    }
}
