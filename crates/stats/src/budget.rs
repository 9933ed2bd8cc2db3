//! How many descriptors may stay open only to make readings cheaper.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is left of a number of descriptors; clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicUsize>);

/// Descriptors that are given back when this is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Budget,
    number: usize,
}

impl Budget {
    /// `number` descriptors.
    pub fn new(number: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(number)))
    }

    /// Takes `number`, if there are as many.
    pub fn take(&self, number: usize) -> Option<Permit> {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(number));
        taken.ok().map(|_| Permit { budget: self.clone(), number })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.number, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is_and_it_comes_back() {
        let budget = Budget::new(5);
        let first = budget.take(4).unwrap();
        assert!(budget.take(4).is_none());
        let second = budget.take(1).unwrap();
        assert!(budget.clone().take(1).is_none());
        drop(first);
        assert!(budget.take(4).is_some());
        drop(second);
        assert!(budget.take(5).is_some());
    }
}
