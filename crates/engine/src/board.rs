//! Where drivers publish and readers look: no reader ever waits for a driver.
//!
//! Locks here cover a map look-up or the exchange of one pointer, never an await.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

/// Enough that clients of different objects rarely meet.
const SHARDS: usize = 16;

/// The last published value of something.
#[derive(Debug)]
pub(crate) struct Published<T>(RwLock<T>);

impl<T: Clone> Published<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(value))
    }

    pub(crate) fn get(&self) -> T {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, value: T) -> T {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), value)
    }
}

/// Objects by id, in shards.
#[derive(Debug)]
pub(crate) struct Board<K, V> {
    shards: [RwLock<HashMap<K, Arc<V>>>; SHARDS],
    hasher: RandomState,
}

/// A share of a board: the one of that number, from 0, of so many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl<K: Eq + Hash, V> Board<K, V> {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()), hasher: RandomState::new() }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(crate) fn insert(&self, key: K, value: Arc<V>) {
        self.shard(&key).write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        shard.remove(key);
        // A node that once held a thousand pods does not keep the room for them.
        if shard.capacity() > 64 && shard.len() < shard.capacity() / 4 {
            shard.shrink_to_fit();
        }
    }

    /// Everything there is; each shard is seen at one moment, all of them at about one.
    pub(crate) fn all(&self) -> Vec<Arc<V>> {
        self.part(Part { number: 0, of: 1 })
    }

    /// One of about equal parts of everything.
    pub(crate) fn part(&self, part: Part) -> Vec<Arc<V>> {
        let mut all = Vec::new();
        for shard in self.shards.iter().skip(part.number).step_by(part.of) {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.values().cloned());
        }
        all
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &RwLock<HashMap<K, Arc<V>>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % 16).expect("less than 16");
        &self.shards[hash % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_found_listed_and_removed() {
        let board = Board::new();
        for n in 0..200u32 {
            board.insert(n.to_string(), Arc::new(n));
        }
        assert_eq!(board.get("7").as_deref(), Some(&7));
        let mut all: Vec<u32> = board.all().iter().map(|n| **n).collect();
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
        for of in [1, 2, 3, SHARDS, 2 * SHARDS] {
            let parts = (0..of).flat_map(|number| board.part(Part { number, of }));
            let mut of_parts: Vec<u32> = parts.map(|n| *n).collect();
            of_parts.sort_unstable();
            assert_eq!((of_parts, board.len()), (all.clone(), 200));
        }
        for n in 0..200u32 {
            board.remove(n.to_string().as_str());
        }
        assert!(board.all().is_empty() && board.get("7").is_none());
    }

    #[test]
    fn a_reader_keeps_the_snapshot_it_took() {
        let status = Published::new(Arc::new(1));
        let taken = status.get();
        assert_eq!(*status.set(Arc::new(2)), 1);
        assert_eq!((*taken, *status.get()), (1, 2));
    }
}
