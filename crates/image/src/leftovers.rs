//! What failed pulls leave: verified blobs, which make the next try cheap.
//!
//! They stay for [`crate::Config::leftover_grace`] after the failure, unless space is
//! wanted: a removal, a full disk and a restart take them at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tracing::Instrument as _;

use crate::blocking;
use crate::images::Inner;
use crate::pins::Pin;

/// What is kept, by failure.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Mutex<Vec<Arc<Pin>>>);

impl Leftovers {
    /// Gives everything up; the next collection takes it.
    pub(crate) fn clear(&self) {
        // Giving back waits for nobody, but is nothing to do while locked.
        let kept = std::mem::take(&mut *self.lock());
        drop(kept);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Pin>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up one; says whether it was still kept.
    fn give_up(&self, listed: &Weak<Pin>) -> bool {
        let mut kept = self.lock();
        let found = kept.iter().position(|pin| std::ptr::eq(Arc::as_ptr(pin), listed.as_ptr()));
        found.map(|at| kept.swap_remove(at)).is_some()
    }
}

/// Keeps what a failed pull had pinned for the grace time, then has it collected.
pub(crate) fn keep(images: &Arc<Inner>, pin: Arc<Pin>) {
    if pin.is_empty() {
        return;
    }
    // The list has the only share: who clears it gives everything back at once.
    let listed = Arc::downgrade(&pin);
    images.leftovers.lock().push(pin);
    let (images, tasks) = (images.clone(), images.flights.tasks().clone());
    let expire = async move {
        let grace = tokio::time::sleep(images.config.leftover_grace);
        let stopped = images.flights.stopped().run_until_cancelled(grace).await.is_none();
        let expired = images.leftovers.give_up(&listed);
        if expired && !stopped {
            collect(&images).await;
        }
    };
    tasks.spawn(expire.in_current_span());
}

/// Removes what nothing needs; failures are logged.
pub(crate) async fn collect(images: &Arc<Inner>) {
    let inner = images.clone();
    let collected = blocking("collect leftovers", move || inner.collect(None)).await;
    match collected.flatten() {
        Ok((0, 0)) => {}
        Ok((layers, blobs)) => tracing::info!(layers, blobs, "leftovers of failed pulls removed"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "collect leftovers");
        }
    }
}
