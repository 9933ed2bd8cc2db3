//! What must not be collected although no record names it: yet, or at this moment.
//!
//! Invariant: whoever needs a blob or layer pins it first and looks for it afterwards;
//! the collector keeps the gate closed while it decides and takes names away. So pinning
//! may wait and belongs on blocking threads; giving back never does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_model::{ChainId, Digest};

/// Counts of what is pinned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    blobs: HashMap<Digest, usize>,
    chains: HashMap<ChainId, usize>,
}

impl Table {
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    pub(crate) fn has_chain(&self, chain: &ChainId) -> bool {
        self.chains.contains_key(chain)
    }
}

/// The table and its gate; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    gate: Mutex<()>,
    table: Mutex<Table>,
}

/// While it lives nothing can be pinned.
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    /// What was pinned when the gate was closed.
    pub(crate) pinned: Table,
    _closed: MutexGuard<'a, ()>,
}

impl Pins {
    /// Closes the gate.
    pub(crate) fn close(&self) -> Gate<'_> {
        let closed = lock(&self.0.gate);
        Gate { pinned: lock(&self.0.table).clone(), _closed: closed }
    }

    /// Pins nothing yet.
    pub(crate) fn pin(&self) -> Pin {
        Pin { pins: self.clone(), held: Mutex::default() }
    }
}

/// What one user has pinned; given back when dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Pins,
    held: Mutex<(Vec<Digest>, Vec<ChainId>)>,
}

impl Pin {
    /// Whether nothing is pinned.
    pub(crate) fn is_empty(&self) -> bool {
        let held = lock(&self.held);
        held.0.is_empty() && held.1.is_empty()
    }

    /// Pins blobs. Blocks while the gate is closed.
    pub(crate) fn blobs(&self, blobs: impl IntoIterator<Item = Digest>) {
        let _open = lock(&self.pins.0.gate);
        let (mut table, mut held) = (lock(&self.pins.0.table), lock(&self.held));
        for digest in blobs {
            *table.blobs.entry(digest).or_default() += 1;
            held.0.push(digest);
        }
    }

    /// Pins layers. Blocks while the gate is closed.
    pub(crate) fn chains(&self, chains: &[ChainId]) {
        let _open = lock(&self.pins.0.gate);
        let (mut table, mut held) = (lock(&self.pins.0.table), lock(&self.held));
        for chain in chains {
            *table.chains.entry(*chain).or_default() += 1;
            held.1.push(*chain);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let (mut table, held) = (lock(&self.pins.0.table), lock(&self.held));
        held.0.iter().for_each(|digest| release(table.blobs.entry(*digest)));
        held.1.iter().for_each(|chain| release(table.chains.entry(*chain)));
    }
}

/// A panic elsewhere leaves counts too high at worst: something is kept.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn release<K>(entry: Entry<'_, K, usize>) {
    if let Entry::Occupied(mut count) = entry {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_have_pinned_stays_until_both_are_gone() {
        let pins = Pins::default();
        let (blob, chain) = (Digest::of(b"a"), ChainId(Digest::of(b"b")));
        let (first, second) = (pins.pin(), pins.pin());
        for pin in [&first, &second] {
            pin.blobs([blob]);
            pin.chains(&[chain]);
        }
        drop(first);
        assert!(pins.close().pinned.has_blob(&blob) && pins.close().pinned.has_chain(&chain));
        drop(second);
        assert!(!pins.close().pinned.has_blob(&blob) && !pins.close().pinned.has_chain(&chain));
    }
}
