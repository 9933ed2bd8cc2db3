//! Pulls under way: requests for the same thing join.
//!
//! ```text
//! first request --> task --> outcome --> every waiter
//!                    └── stopped: shutdown, deadline, or no waiter for the grace time
//! ```
//!
//! Invariant: a waiter is counted, and a pull without waiters given up, under the same
//! lock, so nobody joins a pull that is about to stop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_model::Reference;
use berth_model::image::ImageRecord;
use berth_registry::Auth;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::images::Inner;
use crate::{Error, blocking, leftovers};

/// Those who prove themselves differently do not share an answer.
type Key = (Reference, Option<Auth>);

type Outcome = Option<Result<ImageRecord, Arc<Error>>>;

/// How long a shutdown waits for pulls to notice it.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// The pulls under way.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: Mutex<HashMap<Key, Arc<Flight>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Flight {
    outcome: watch::Receiver<Outcome>,
    waiters: watch::Sender<usize>,
}

/// One that awaits a pull.
struct Waiter(Arc<Flight>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.waiters.send_modify(|waiters| *waiters -= 1);
    }
}

/// Takes the pull off the list, whatever its end.
struct Landing {
    images: Arc<Inner>,
    key: Key,
    flight: Arc<Flight>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.images.flights.lock();
        // One that was given up is off the list before its end; its place may be taken.
        if flights.get(&self.key).is_some_and(|listed| Arc::ptr_eq(listed, &self.flight)) {
            flights.remove(&self.key);
        }
    }
}

impl Flights {
    /// Joins the pull of `reference`, or starts it. Must be called on a tokio runtime.
    pub(crate) async fn pull(
        images: &Arc<Inner>,
        reference: &Reference,
        auth: Option<Auth>,
    ) -> Result<ImageRecord, Error> {
        let waiter = images.flights.board(images, (reference.clone(), auth))?;
        let mut outcome = waiter.0.outcome.clone();
        let landed = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => (*outcome).clone(),
            Err(_) => None,
        };
        match landed {
            Some(Ok(record)) => Ok(record),
            Some(Err(error)) => Err(Error::Shared(error)),
            None => Err(Error::Panicked("a pull's task")),
        }
    }

    /// Stops every pull and waits for their tasks.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!("pulls did not stop in time");
        }
    }

    /// What runs on behalf of pulls.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Cancelled by the shutdown.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn board(&self, images: &Arc<Inner>, key: Key) -> Result<Waiter, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Stopped(key.0.to_string()));
        }
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&key) {
            flight.waiters.send_modify(|waiters| *waiters += 1);
            tracing::debug!("image.ref" = %key.0, "joined a pull");
            return Ok(Waiter(flight.clone()));
        }
        let (report, outcome) = watch::channel(None);
        let flight = Arc::new(Flight { outcome, waiters: watch::Sender::new(1) });
        flights.insert(key.clone(), flight.clone());
        let span = tracing::info_span!("image.pull", "image.ref" = %key.0);
        let landing = Landing { images: images.clone(), key, flight: flight.clone() };
        self.tasks.spawn(fly(landing, report).instrument(span));
        Ok(Waiter(flight))
    }
}

async fn fly(landing: Landing, report: watch::Sender<Outcome>) {
    let (images, (reference, auth)) = (landing.images.clone(), landing.key.clone());
    let limit = images.config.pull_deadline;
    let pin = Arc::new(images.pins.pin());
    let mut work = Box::pin(super::pull(images.clone(), pin.clone(), reference.clone(), auth));
    let ended = tokio::select! {
        done = &mut work => Ok(done),
        () = tokio::time::sleep(limit) => {
            Err(Error::Deadline { reference: reference.to_string(), limit })
        }
        () = abandoned(&landing) => Err(Error::Stopped(reference.to_string())),
        () = images.flights.stop.cancelled() => Err(Error::Stopped(reference.to_string())),
    };
    let result = match ended {
        Ok(done) => done,
        Err(why) => {
            // What it has unpacked is removed with it, file by file.
            blocking("give up a pull", move || drop(work)).await.ok();
            Err(why)
        }
    };
    match &result {
        Ok(_) => drop(pin),
        // Nothing that was fetched for an image that does not fit is worth its space.
        Err(error) if error.wants_space() => {
            drop(pin);
            images.leftovers.clear();
            leftovers::collect(&images).await;
        }
        Err(_) => leftovers::keep(&images, pin),
    }
    // First off the list, then the answer: who asks after it starts anew.
    drop(landing);
    report.send_replace(Some(result.map_err(Arc::new)));
}

/// Returns when the pull has had no waiter for the grace time, and is off the list.
async fn abandoned(landing: &Landing) {
    let flight = &landing.flight;
    let mut waiters = flight.waiters.subscribe();
    let grace = landing.images.config.orphan_grace;
    loop {
        // The sender lives in the flight, which we hold.
        let Ok(_) = waiters.wait_for(|waiters| *waiters == 0).await else { return };
        let back = tokio::time::timeout(grace, waiters.wait_for(|waiters| *waiters > 0)).await;
        if back.is_ok() {
            continue;
        }
        let mut flights = landing.images.flights.lock();
        if *flight.waiters.borrow() == 0 {
            flights.remove(&landing.key);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::pull::tests::Node;

    /// teeth: crates/image/src/config.rs: `orphan_grace: Duration::from_secs(60)` → `from_secs(50)`
    #[tokio::test(start_paused = true)]
    async fn a_pull_is_given_up_60_seconds_after_its_last_waiter_left() {
        let node = Node::as_configured();
        let (images, key) = (&node.images.0, (node.reference(":t"), None));
        let (outcome, waiters) = (watch::channel(None).1, watch::Sender::new(1));
        let flight = Arc::new(Flight { outcome, waiters });
        images.flights.lock().insert(key.clone(), flight.clone());
        let landing = Landing { images: images.clone(), key: key.clone(), flight: flight.clone() };
        let first = Waiter(flight);
        let given_up = abandoned(&landing);
        tokio::pin!(given_up);
        let seconds = |count| std::time::Duration::from_secs(count);

        timeout(seconds(3600), &mut given_up).await.unwrap_err();
        let second = images.flights.board(images, key.clone()).unwrap();
        drop(first);
        timeout(seconds(3600), &mut given_up).await.unwrap_err();
        drop(second);
        timeout(seconds(59), &mut given_up).await.unwrap_err();
        // Back in time: the grace begins anew when it leaves.
        let back = images.flights.board(images, key.clone()).unwrap();
        timeout(seconds(3600), &mut given_up).await.unwrap_err();
        drop(back);
        timeout(seconds(59), &mut given_up).await.unwrap_err();
        timeout(seconds(2), &mut given_up).await.unwrap();
        assert!(images.flights.lock().is_empty(), "nobody joins it any more");
    }

    #[test]
    fn a_pull_that_ends_late_leaves_the_place_of_its_successor() {
        let node = Node::new();
        let (images, key) = (&node.images.0, (node.reference(":t"), None));
        let flight = || {
            let outcome = watch::channel(None).1;
            Arc::new(Flight { outcome, waiters: watch::Sender::new(0) })
        };
        let (late, next) = (flight(), flight());
        let landing = |flight| Landing { images: images.clone(), key: key.clone(), flight };
        images.flights.lock().insert(key.clone(), next.clone());
        drop(landing(late));
        assert!(images.flights.lock().contains_key(&key));
        drop(landing(next));
        assert!(images.flights.lock().is_empty());
    }
}
