//! Who has a name, and who waits for work under it (decision 16).
//!
//! ```text
//! (free) --claim--> making --done--> made --release--> (free)
//!                      └──failed, or its task died──────▲
//! ```
//!
//! A claim of a name in the making finds that work, and what was asked for with it: the
//! same request joins and gets its outcome. The lock covers a map look-up only.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::Error;
use crate::error::SharedError;

/// Outcome of work that several requests may wait for.
type Outcome<V> = Option<Result<V, SharedError>>;

/// Work of another request.
#[derive(Debug)]
pub(crate) struct Work<V>(watch::Receiver<Outcome<V>>);

impl<V: Clone> Work<V> {
    /// Waits for the outcome.
    pub(crate) async fn outcome(mut self) -> Result<V, Error> {
        match self.0.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(value))) => Ok(value.clone()),
            Ok(Some(Err(error))) => Err(Error::Shared(Arc::clone(error))),
            Ok(None) | Err(_) => Err(Error::TaskDied("the task that did the work")),
        }
    }
}

#[derive(Debug)]
enum Holder<Q, V> {
    Making(Arc<Q>, watch::Receiver<Outcome<V>>),
    Made(V),
}

#[derive(Debug)]
struct Table<K, Q, V> {
    holders: HashMap<K, Holder<Q, V>>,
    closed: bool,
}

/// Names `K` of one kind, given to objects `V` that requests `Q` ask for.
#[derive(Debug)]
pub(crate) struct Names<K, Q, V>(Arc<Mutex<Table<K, Q, V>>>);

impl<K, Q, V> Clone for Names<K, Q, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What a claim finds.
#[derive(Debug)]
pub(crate) enum Claim<K: Eq + Hash + Clone, Q, V: Clone> {
    /// The name is free: the caller does the work and keeps the promise. The work is
    /// what the caller waits for itself.
    New(Promise<K, Q, V>, Work<V>),
    /// Work is being done under this name, for this request.
    Making(Arc<Q>, Work<V>),
    /// The work was done.
    Made(V),
    /// No new work is taken.
    Closed,
}

impl<K: Eq + Hash + Clone, Q, V: Clone> Names<K, Q, V> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Table { holders: HashMap::new(), closed: false })))
    }

    /// Takes the name for `request`, or finds who has it.
    pub(crate) fn claim(&self, key: &K, request: impl FnOnce() -> Q) -> Claim<K, Q, V> {
        let mut table = self.lock();
        match table.holders.get(key) {
            Some(Holder::Making(request, work)) => {
                return Claim::Making(Arc::clone(request), Work(work.clone()));
            }
            Some(Holder::Made(value)) => return Claim::Made(value.clone()),
            None if table.closed => return Claim::Closed,
            None => {}
        }
        let (sender, receiver) = watch::channel(None);
        let making = Holder::Making(Arc::new(request()), receiver.clone());
        table.holders.insert(key.clone(), making);
        let promise = Promise { names: self.clone(), key: key.clone(), sender, kept: false };
        Claim::New(promise, Work(receiver))
    }

    /// Enters a name found in the store.
    pub(crate) fn restore(&self, key: K, value: V) {
        self.lock().holders.insert(key, Holder::Made(value));
    }

    /// Frees a name whose object was removed.
    pub(crate) fn release(&self, key: &K) {
        self.lock().holders.remove(key);
    }

    /// Ends the work behind `promised` under a name: with an object, which keeps the name,
    /// or without. An object that was published and removed meanwhile has released it.
    fn settle(&self, key: &K, promised: &watch::Receiver<Outcome<V>>, made: Option<V>) {
        let mut table = self.lock();
        match table.holders.get(key) {
            Some(Holder::Making(_, work)) if work.same_channel(promised) => {}
            _ => return,
        }
        match made {
            Some(value) => table.holders.insert(key.clone(), Holder::Made(value)),
            None => table.holders.remove(key),
        };
    }

    /// Takes no new work from now on, and waits for what is being done.
    pub(crate) async fn close(&self) {
        let working: Vec<_> = {
            let mut table = self.lock();
            table.closed = true;
            let making = table.holders.values().filter_map(|holder| match holder {
                Holder::Making(_, work) => Some(work.clone()),
                Holder::Made(_) => None,
            });
            making.collect()
        };
        for mut work in working {
            // An error means that the task died, which ends the work as well.
            let _ended = work.wait_for(Option::is_some).await;
        }
    }

    /// The objects that were made.
    pub(crate) fn made(&self) -> Vec<V> {
        let table = self.lock();
        let made = table.holders.values().filter_map(|holder| match holder {
            Holder::Making(..) => None,
            Holder::Made(value) => Some(value.clone()),
        });
        made.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table<K, Q, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to finish work under a name. Dropped unkept (its task died), it frees the
/// name, and who waits is told.
#[derive(Debug)]
pub(crate) struct Promise<K: Eq + Hash + Clone, Q, V: Clone> {
    names: Names<K, Q, V>,
    key: K,
    sender: watch::Sender<Outcome<V>>,
    kept: bool,
}

impl<K: Eq + Hash + Clone, Q, V: Clone> Promise<K, Q, V> {
    /// Ends the work: a made object keeps the name, a failure frees it.
    pub(crate) fn keep(mut self, outcome: Result<V, Error>) {
        self.kept = true;
        self.names.settle(&self.key, &self.sender.subscribe(), outcome.as_ref().ok().cloned());
        self.sender.send_replace(Some(outcome.map_err(Arc::new)));
    }
}

impl<K: Eq + Hash + Clone, Q, V: Clone> Drop for Promise<K, Q, V> {
    fn drop(&mut self) {
        if !self.kept {
            self.names.settle(&self.key, &self.sender.subscribe(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pods = Names<&'static str, char, u32>;

    fn claim(names: &Pods, name: &'static str) -> Claim<&'static str, char, u32> {
        names.claim(&name, || 'a')
    }

    fn new(claim: Claim<&'static str, char, u32>) -> (Promise<&'static str, char, u32>, Work<u32>) {
        match claim {
            Claim::New(promise, work) => (promise, work),
            other => panic!("{other:?}"),
        }
    }

    fn joined(claim: Claim<&'static str, char, u32>) -> Work<u32> {
        match claim {
            Claim::Making(request, work) if *request == 'a' => work,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_retry_gets_the_outcome_of_the_first_request() {
        let names = Pods::new();
        let (promise, first) = new(claim(&names, "pod"));
        let second = joined(claim(&names, "pod"));
        promise.keep(Ok(7));
        assert_eq!(first.outcome().await.unwrap(), 7);
        assert_eq!(second.outcome().await.unwrap(), 7);
        assert!(matches!(claim(&names, "pod"), Claim::Made(7)));
        names.release(&"pod");
        new(claim(&names, "pod"));
    }

    #[tokio::test]
    async fn a_failure_frees_the_name_and_is_shared() {
        let names = Pods::new();
        let (promise, first) = new(claim(&names, "pod"));
        let second = joined(claim(&names, "pod"));
        promise.keep(Err(Error::UnknownRuntime("kata".into())));
        for work in [first, second] {
            let error = work.outcome().await.unwrap_err();
            assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument);
            assert!(error.to_string().contains("kata"), "{error}");
        }
        new(claim(&names, "pod"));
    }

    #[tokio::test]
    async fn a_dead_task_frees_the_name_and_who_waits_is_told() {
        let names = Pods::new();
        let (promise, work) = new(claim(&names, "pod"));
        drop(promise);
        assert!(matches!(work.outcome().await, Err(Error::TaskDied(_))));
        new(claim(&names, "pod"));
    }

    #[tokio::test]
    async fn an_object_removed_before_its_maker_is_done_leaves_no_name() {
        let names = Pods::new();
        let (promise, work) = new(claim(&names, "pod"));
        names.release(&"pod");
        let (second, _) = new(claim(&names, "pod"));
        promise.keep(Ok(7));
        assert_eq!(work.outcome().await.unwrap(), 7);
        joined(claim(&names, "pod"));
        drop(second);
        new(claim(&names, "pod"));
    }

    #[tokio::test]
    async fn closing_waits_for_work_and_takes_no_more() {
        let names = Pods::new();
        names.restore("old", 1);
        let (promise, _work) = new(claim(&names, "pod"));
        let closing = tokio::spawn({
            let names = names.clone();
            async move { names.close().await }
        });
        tokio::task::yield_now().await;
        assert!(!closing.is_finished(), "work is still being done");
        assert!(matches!(claim(&names, "other"), Claim::Closed));
        assert!(matches!(claim(&names, "old"), Claim::Made(1)));
        promise.keep(Ok(2));
        closing.await.unwrap();
        let mut made = names.made();
        made.sort_unstable();
        assert_eq!(made, [1, 2]);
    }
}
