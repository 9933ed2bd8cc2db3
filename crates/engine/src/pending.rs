//! What could not be taken back, or finished, yet, and is tried again: by itself, or by the
//! driver of the object, which then says so here ([`Pending::show`]).
//!
//! ```text
//! failed --1 s, 2 s, 4 s … 60 s--> tried again --> done
//!                                     └── failed ──▲
//! ```
//!
//! The first failure of a step is a warning, its success in the end a message; what is
//! between the two is what [`Pending::status`] tells. Ends with the daemon: a restart sweeps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_model::SandboxId;
use berth_model::sandbox::SandboxName;
use futures_util::future::join_all;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::undo::{Failure, Remaining, Step};
use crate::{Error, UndoStatus, UnfinishedUndo};

/// Pause before the first further try.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause between two tries.
const LAST: Duration = Duration::from_secs(60);
/// How long the next try of a pod waits for the undo of the one before.
const HASTE: Duration = Duration::from_secs(2);

/// What a step belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// For people: `sandbox 0123…`.
    pub(crate) name: String,
    /// The pod whose next try may meet what is left of it.
    pub(crate) pod: Option<String>,
}

impl Object {
    pub(crate) fn new(kind: &str, id: impl std::fmt::Display) -> Self {
        Self { name: format!("{kind} {id}"), pod: None }
    }

    /// A sandbox of the pod that `name` says, whatever attempt at it this was.
    pub(crate) fn of_pod(id: &SandboxId, name: &SandboxName) -> Self {
        let pod = format!("{}/{}", name.namespace, name.name);
        Self { pod: Some(pod), ..Self::new("sandbox", id) }
    }
}

/// Steps of one object that failed.
#[derive(Debug)]
struct Chain {
    object: Object,
    since: Instant,
    tries: u32,
    failures: Vec<(&'static str, String)>,
    /// Lets the next try begin at once.
    hurry: Arc<Notify>,
    /// Changes with each try; closed when all is done.
    tried: watch::Receiver<u32>,
}

/// What a driver tries again.
#[derive(Debug)]
struct Shown {
    step: &'static str,
    since: Instant,
    tries: u32,
    error: String,
}

/// The steps that are tried again.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    chains: Mutex<BTreeMap<u64, Chain>>,
    /// By the object's name.
    shown: Mutex<BTreeMap<String, Shown>>,
    next: AtomicU64,
    /// Tries that failed.
    failures: AtomicU64,
    /// Objects of which something failed at first, and nothing is left.
    recovered: AtomicU64,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Pending {
    /// Its work is among `tasks` and ends with `shutdown`.
    pub(crate) fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tasks, shutdown, ..Self::default() }
    }

    /// Takes over what remains of the undo of `object` after `failures`; nothing if nothing
    /// failed. Must be called on a tokio runtime.
    pub(crate) fn take(
        self: &Arc<Self>,
        object: Object,
        remaining: Remaining,
        failures: Vec<Failure>,
    ) {
        let ending = self.shutdown.is_cancelled();
        for (what, error) in &failures {
            tracing::warn!(
                object = object.name,
                error = error as &dyn std::error::Error,
                "{what}; {}",
                if ending { "it is left to the next start" } else { "it is tried again" }
            );
        }
        if failures.is_empty() || ending {
            return;
        }
        let hurry = Arc::new(Notify::new());
        let (tries, tried) = watch::channel(1);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let span = tracing::debug_span!(parent: None, "undo", object = object.name);
        let failures = told(failures);
        self.failures.fetch_add(count(&failures), Ordering::Relaxed);
        let since = Instant::now();
        let chain = Chain { object, since, tries: 1, failures, hurry: Arc::clone(&hurry), tried };
        self.lock().insert(number, chain);
        let pending = Arc::clone(self);
        let work = async move { pending.repeat(number, remaining, &hurry, &tries).await };
        self.tasks.spawn(work.instrument(span));
    }

    /// As [`Pending::take`], for one step that failed with `error`.
    pub(crate) fn take_step(self: &Arc<Self>, object: Object, step: Step, error: Error) {
        let failure = (step.what(), error);
        self.take(object, step.into(), vec![failure]);
    }

    /// Tries until nothing remains or the daemon ends.
    async fn repeat(
        &self,
        number: u64,
        mut remaining: Remaining,
        hurry: &Notify,
        tries: &watch::Sender<u32>,
    ) {
        let mut pause = FIRST;
        loop {
            let next = async {
                tokio::select! {
                    () = sleep(pause) => {}
                    () = hurry.notified() => {}
                }
                remaining.run().await
            };
            let Some(failures) = self.shutdown.run_until_cancelled(next).await else { return };
            if failures.is_empty() {
                return self.done(number);
            }
            self.failed(number, failures);
            tries.send_modify(|tries| *tries += 1);
            pause = (pause * 2).min(LAST);
        }
    }

    fn failed(&self, number: u64, failures: Vec<Failure>) {
        let failures = told(failures);
        self.failures.fetch_add(count(&failures), Ordering::Relaxed);
        for (what, error) in &failures {
            tracing::debug!(error, "{what}");
        }
        if let Some(chain) = self.lock().get_mut(&number) {
            chain.tries += 1;
            chain.failures = failures;
        }
    }

    fn done(&self, number: u64) {
        let Some(chain) = self.lock().remove(&number) else { return };
        self.recovered.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            object = chain.object.name,
            tries = chain.tries + 1,
            "what could not be taken back at first was taken back"
        );
    }

    /// Has what is left of `pod` tried now, and waits a moment for it.
    pub(crate) async fn hasten(&self, pod: &str) {
        let concerned: Vec<_> = {
            let chains = self.lock();
            let concerned =
                chains.values().filter(|chain| chain.object.pod.as_deref() == Some(pod));
            let tried = concerned.map(|chain| {
                let mut tried = chain.tried.clone();
                // Before the try can begin, which may be over at once.
                tried.mark_unchanged();
                chain.hurry.notify_one();
                tried
            });
            tried.collect()
        };
        let tried = concerned.into_iter().map(|mut tried| async move {
            // An error means that all is done.
            let _done = tried.changed().await;
        });
        if timeout(HASTE, join_all(tried)).await.is_err() {
            tracing::debug!("undo of an earlier try goes on");
        }
    }

    /// The driver of `object` failed to do `step`, and tries again. What it failed to do
    /// last is what is shown of it.
    pub(crate) fn show(&self, object: &Object, step: &'static str, error: &Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let object = &object.name;
        let told = error.told();
        let mut shown = self.shown();
        let entry = shown.entry(object.clone()).or_insert_with(|| {
            let (since, error) = (Instant::now(), String::new());
            Shown { step: "", since, tries: 0, error }
        });
        if entry.step == step {
            tracing::debug!(object, error = told, "{step}");
        } else {
            let error = error as &dyn std::error::Error;
            tracing::warn!(object, error, "{step}; it is tried again");
        }
        entry.step = step;
        entry.tries += 1;
        entry.error = told;
    }

    /// The driver of `object` has nothing more to try.
    pub(crate) fn clear(&self, object: &Object) {
        let Some(entry) = self.shown().remove(&object.name) else { return };
        self.recovered.fetch_add(1, Ordering::Relaxed);
        let (object, tries) = (&object.name, entry.tries + 1);
        tracing::info!(object, tries, "what failed at first was done: {}", entry.step);
    }

    /// What is tried again, oldest first, and how it went so far.
    pub(crate) fn status(&self) -> UndoStatus {
        let mut unfinished = Vec::new();
        for chain in self.lock().values() {
            unfinished.extend(chain.failures.iter().map(|(step, error)| UnfinishedUndo {
                object: chain.object.name.clone(),
                step,
                tries: chain.tries,
                elapsed: chain.since.elapsed(),
                error: error.clone(),
            }));
        }
        unfinished.extend(self.shown().iter().map(|(object, shown)| UnfinishedUndo {
            object: object.clone(),
            step: shown.step,
            tries: shown.tries,
            elapsed: shown.since.elapsed(),
            error: shown.error.clone(),
        }));
        unfinished.sort_by_key(|left| std::cmp::Reverse(left.elapsed));
        UndoStatus {
            unfinished,
            failures: self.failures.load(Ordering::Relaxed),
            recovered: self.recovered.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Chain>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<String, Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(failures: Vec<Failure>) -> Vec<(&'static str, String)> {
    failures.into_iter().map(|(what, error)| (what, error.told())).collect()
}

fn count(failures: &[(&'static str, String)]) -> u64 {
    u64::try_from(failures.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// A step that fails `times` times.
    fn step(times: u32) -> Step {
        let left = Arc::new(AtomicU32::new(times));
        Step::new("remove it", move || {
            let failed =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            std::future::ready(if failed.is_ok() { Err(Error::ShuttingDown) } else { Ok(()) })
        })
    }

    fn pending(pod: Option<&str>, times: u32) -> Arc<Pending> {
        let pending = Arc::new(Pending::default());
        let object = Object { pod: pod.map(str::to_owned), ..Object::new("sandbox", "a") };
        pending.take_step(object, step(times), Error::ShuttingDown);
        pending
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_until_it_succeeds_and_is_seen_meanwhile() {
        let pending = pending(None, 7);
        sleep(Duration::from_millis(62_500)).await;
        let status = pending.status();
        let [left] = &status.unfinished[..] else { panic!("{status:?}") };
        // 1, 3, 7, 15, 31 s; the seventh try comes at 63 s.
        assert_eq!((left.tries, left.step), (6, "remove it"));
        assert_eq!(left.object, "sandbox a");
        assert_eq!(left.elapsed.as_secs(), 62);
        assert!(left.error.contains("shutting down"), "{}", left.error);
        assert_eq!((status.failures, status.recovered), (6, 0));

        sleep(LAST * 3).await;
        let status = pending.status();
        assert!(status.unfinished.is_empty(), "{status:?}");
        assert_eq!((status.failures, status.recovered), (8, 1));
        assert!(pending.tasks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_drivers_try_again_is_shown_until_it_is_done() {
        let pending = pending(None, u32::MAX);
        sleep(Duration::from_millis(500)).await;
        let object = Object::new("container", "b");
        pending.clear(&object);
        pending.show(&object, "store the end", &Error::ShuttingDown);
        pending.show(&object, "remove", &Error::ShuttingDown);
        let status = pending.status();
        let [first, second] = &status.unfinished[..] else { panic!("{status:?}") };
        assert_eq!((first.object.as_str(), first.tries), ("sandbox a", 1), "oldest first");
        assert_eq!(
            (second.object.as_str(), second.step, second.tries),
            ("container b", "remove", 2)
        );
        pending.clear(&object);
        let status = pending.status();
        assert_eq!((status.unfinished.len(), status.failures, status.recovered), (1, 3, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_daemon_is_not_held_up() {
        let pending = pending(None, u32::MAX);
        sleep(Duration::from_secs(10)).await;
        pending.tasks.close();
        pending.shutdown.cancel();
        timeout(Duration::from_millis(1), pending.tasks.wait()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_try_of_a_pod_has_its_undo_tried_at_once() {
        let pending = pending(Some("default/web"), 2);
        sleep(Duration::from_secs(2)).await;
        let began = Instant::now();
        pending.hasten("default/other").await;
        assert_eq!(pending.status().unfinished.len(), 1, "another pod's is left alone");
        pending.hasten("default/web").await;
        assert_eq!(pending.status().unfinished[0].tries, 3);
        pending.hasten("default/web").await;
        assert!(pending.status().unfinished.is_empty());
        assert!(began.elapsed() < FIRST);
    }
}
