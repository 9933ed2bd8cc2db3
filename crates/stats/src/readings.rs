//! The last reading of each of many objects.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How many times what it cost a dear reading is good for, at least: so reading takes at most
/// a hundredth of the time.
const COST: u32 = 100;

/// How many times longer than it is good a reading is told while it is read anew.
const PATIENCE: u32 = 3;

/// What was read last, and when.
#[derive(Clone, Debug)]
struct Reading<V> {
    value: V,
    taken: Instant,
    cost: Duration,
}

impl<V> Reading<V> {
    fn is_fresh(&self, now: Instant, max_age: Duration, times: u32) -> bool {
        now.saturating_duration_since(self.taken) < max_age.max(self.cost * times)
    }
}

/// One object.
#[derive(Debug)]
struct Slot<V> {
    /// Held by whoever reads.
    turn: Mutex<()>,
    /// Never held while something is read.
    last: Mutex<Option<Reading<V>>>,
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self { turn: Mutex::default(), last: Mutex::default() }
    }
}

/// The last reading of each of many objects; each object is read once at a time.
#[derive(Debug)]
pub struct Readings<K, V> {
    max_age: Duration,
    /// How many times its cost a reading is good for.
    times: u32,
    slots: Mutex<HashMap<K, Arc<Slot<V>>>>,
}

impl<K: Clone + Eq + Hash, V: Clone> Readings<K, V> {
    /// Readings that are good for `max_age`.
    pub fn new(max_age: Duration) -> Self {
        Self { max_age, times: 0, slots: Mutex::default() }
    }

    /// Readings that are good for `max_age`, or a hundred times what they cost if that is
    /// longer: for what may be large. Whoever asks while one is read anew gets the last one, so
    /// that a large object holds up only one of the threads that read.
    pub fn dear(max_age: Duration) -> Self {
        Self { times: COST, ..Self::new(max_age) }
    }

    /// The value of `key`: as it was read last if that is good still, else from `read`, which
    /// may block and is given what was read before.
    ///
    /// # Errors
    /// Those of `read`; a failure is not kept.
    pub fn get<E>(
        &self,
        key: &K,
        read: impl FnOnce(Option<(Instant, &V)>) -> Result<V, E>,
    ) -> Result<V, E> {
        self.get_at(Instant::now(), key, read)
    }

    /// The last reading of `key`, if it is good still, or was not long ago; and whether it is:
    /// else the caller has it read anew, and need not wait for that.
    pub fn recent<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<(V, bool)>
    where
        K: Borrow<Q>,
    {
        self.recent_at(Instant::now(), key)
    }

    fn recent_at<Q: Eq + Hash + ?Sized>(&self, now: Instant, key: &Q) -> Option<(V, bool)>
    where
        K: Borrow<Q>,
    {
        let slot = lock(&self.slots).get(key).cloned()?;
        let last = lock(&slot.last);
        let last = last.as_ref()?;
        let told = last.is_fresh(now, self.max_age * PATIENCE, self.times * PATIENCE);
        told.then(|| (last.value.clone(), last.is_fresh(now, self.max_age, self.times)))
    }

    pub(crate) fn get_at<E>(
        &self,
        now: Instant,
        key: &K,
        read: impl FnOnce(Option<(Instant, &V)>) -> Result<V, E>,
    ) -> Result<V, E> {
        let slot = self.slot(key);
        let fresh = |last: &Reading<V>| last.is_fresh(now, self.max_age, self.times);
        let known = lock(&slot.last).clone();
        if let Some(last) = known.as_ref().filter(|last| fresh(last)) {
            return Ok(last.value.clone());
        }
        let _turn = match (slot.turn.try_lock(), known) {
            (Err(TryLockError::WouldBlock), Some(last)) if self.times > 0 => return Ok(last.value),
            (Ok(turn), _) => turn,
            _ => lock(&slot.turn),
        };
        // Somebody else may have read it meanwhile.
        let known = lock(&slot.last).clone();
        if let Some(last) = known.as_ref().filter(|last| fresh(last)) {
            return Ok(last.value.clone());
        }
        let started = Instant::now();
        let value = match read(known.as_ref().map(|last| (last.taken, &last.value))) {
            Ok(value) => value,
            Err(error) => {
                // A slot that never held anything would outlive an object that never was.
                if known.is_none() {
                    lock(&self.slots).remove(key);
                }
                return Err(error);
            }
        };
        let cost = started.elapsed();
        *lock(&slot.last) = Some(Reading { value: value.clone(), taken: now, cost });
        Ok(value)
    }

    /// Keeps what was read in another way just now: `read` makes it of what was read before.
    pub(crate) fn put(
        &self,
        now: Instant,
        key: &K,
        read: impl FnOnce(Option<(Instant, &V)>) -> V,
    ) -> V {
        let slot = self.slot(key);
        let _turn = lock(&slot.turn);
        let mut last = lock(&slot.last);
        let value = read(last.as_ref().map(|last| (last.taken, &last.value)));
        *last = Some(Reading { value: value.clone(), taken: now, cost: Duration::ZERO });
        value
    }

    /// The last reading of `key`, however old.
    pub fn last<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let slot = lock(&self.slots).get(key).cloned()?;
        let last = lock(&slot.last);
        last.as_ref().map(|last| last.value.clone())
    }

    /// Drops what is kept of `key`; called when the object is removed.
    pub fn forget<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        lock(&self.slots).remove(key);
    }

    fn slot(&self, key: &K) -> Arc<Slot<V>> {
        let mut slots = lock(&self.slots);
        if let Some(known) = slots.get(key) {
            return Arc::clone(known);
        }
        Arc::clone(slots.entry(key.clone()).or_default())
    }
}

/// A panic elsewhere leaves a map and a copied value, both always whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn no_reading(_: Option<(Instant, &u32)>) -> Result<u32, Infallible> {
        panic!("the last reading is good still")
    }

    #[test]
    fn a_young_reading_is_not_repeated() {
        let (readings, start) = (Readings::new(10 * SECOND), Instant::now());
        let read = |value| move |_: Option<(Instant, &u32)>| Ok::<_, Infallible>(value);
        let Ok(first) = readings.get_at(start, &"a", read(1));
        let Ok(again) = readings.get_at(start + 9 * SECOND, &"a", no_reading);
        assert_eq!((first, again), (1, 1));
        let Ok(later) = readings.get_at(start + 10 * SECOND, &"a", read(2));
        assert_eq!((later, readings.last("a"), readings.last("b")), (2, Some(2), None));
        readings.forget("a");
        assert_eq!(readings.last("a"), None);
    }

    /// teeth: crates/stats/src/readings.rs: `self.max_age * PATIENCE` → `Duration::MAX`
    #[test]
    fn what_was_good_not_long_ago_is_told_as_such() {
        let (readings, start) = (Readings::new(10 * SECOND), Instant::now());
        let recent = |seconds| readings.recent_at(start + seconds * SECOND, "a");
        assert_eq!(recent(0), None);
        let Ok(_) = readings.get_at(start, &"a", |_| Ok::<_, Infallible>(1));
        assert_eq!((recent(9), recent(10)), (Some((1, true)), Some((1, false))));
        assert_eq!((recent(29), recent(30)), (Some((1, false)), None));
    }

    #[test]
    fn a_dear_reading_is_good_for_longer() {
        let taken = Instant::now();
        let fresh = |cost, age, times| {
            let now = taken + age * SECOND;
            Reading { value: (), taken, cost }.is_fresh(now, 10 * SECOND, times)
        };
        assert!(fresh(Duration::ZERO, 9, COST) && !fresh(Duration::ZERO, 60, COST));
        assert!(fresh(SECOND, 60, COST) && !fresh(SECOND, 60, 0));
    }

    /// Without it the second one would wait for the first, and this test for ever.
    #[test]
    fn a_dear_reading_that_takes_long_holds_up_nobody_who_has_the_last() {
        let (readings, start) = (Readings::<&str, u32>::dear(SECOND), Instant::now());
        let Ok(first) = readings.get_at(start, &"a", |_| Ok::<_, Infallible>(1));
        let later = start + 600 * SECOND;
        let Ok(second) = readings.get_at(later, &"a", |_| {
            let Ok(meanwhile) = readings.get_at(later, &"a", no_reading);
            assert_eq!((meanwhile, readings.last("a")), (1, Some(1)));
            Ok::<_, Infallible>(2)
        });
        assert_eq!((first, second, readings.last("a")), (1, 2, Some(2)));
    }

    #[test]
    fn a_failure_is_told_and_not_kept() {
        let readings = Readings::<&str, u32>::new(SECOND);
        let start = Instant::now();
        assert_eq!(readings.get_at(start, &"a", |_| Err("gone")), Err("gone"));
        assert!(lock(&readings.slots).is_empty());
        assert_eq!(readings.get_at(start, &"a", |_| Ok::<_, &str>(1)), Ok(1));
        let later = start + 2 * SECOND;
        assert_eq!(readings.get_at(later, &"a", |_| Err("gone")), Err("gone"));
        assert_eq!(readings.last("a"), Some(1));
    }

    #[test]
    fn a_slow_reading_delays_nobody_else() {
        let readings = Readings::<&str, u32>::new(SECOND);
        let now = Instant::now();
        let read = readings.get_at(now, &"slow", |_| {
            readings.get_at(now, &"other", |_| Ok::<_, Infallible>(1))?;
            Ok::<_, Infallible>(2)
        });
        assert_eq!((read, readings.last("other")), (Ok(2), Some(1)));
    }

    #[test]
    fn callers_for_one_object_share_a_reading() {
        let readings = Readings::<u32, u32>::new(Duration::from_secs(60));
        let count = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let read = readings.get(&1, |_| {
                        std::thread::yield_now();
                        Ok::<_, Infallible>(
                            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                        )
                    });
                    assert_eq!(read, Ok(0));
                });
            }
        });
        assert_eq!(count.into_inner(), 1);
    }
}
