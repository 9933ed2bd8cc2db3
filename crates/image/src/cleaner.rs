//! Removes files in the background: what is taken away is out of sight at once, and a
//! file system may take its time over 25,000 files.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use berth_failpoint::Point;

/// What waits to be removed.
#[derive(Debug)]
pub(crate) enum Trash {
    /// Directories of layers.
    Layer(berth_snapshot::Trash),
    /// The file of a blob.
    Blob(berth_content::Trash),
}

impl Trash {
    /// What cannot be removed has no name any more, and goes at the next start.
    fn empty(self) {
        let (layer, blob) = match self {
            Self::Layer(layer) => (layer.empty().err(), None),
            Self::Blob(blob) => (None, blob.empty().err()),
        };
        let error = layer.as_ref().map(|error| error as &dyn std::error::Error);
        let error = error.or(blob.as_ref().map(|error| error as &dyn std::error::Error));
        if blob.is_none() && layer.is_none() {
            // Nobody waits for this, so nobody can be told of a failure.
            berth_failpoint::pass(Point::COLLECT_LAYER_EMPTIED).ok();
        }
        if let Some(error) = error {
            tracing::warn!(error, "remove files of what is not needed any more");
        }
    }
}

/// One thread while there is something to remove, and none otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cleaner(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Trash>,
    runs: bool,
    stopped: bool,
}

impl Cleaner {
    /// Has `trash` removed.
    pub(crate) fn take(&self, trash: Vec<Trash>) {
        let mut state = self.lock();
        state.queue.extend(trash);
        if state.runs || state.stopped || state.queue.is_empty() {
            return;
        }
        let cleaner = self.clone();
        let thread = thread::Builder::new().name("berth-cleaner".to_owned());
        match thread.spawn(move || cleaner.run()) {
            Ok(_) => state.runs = true,
            // The next removal tries again, or the next start.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "start a thread to remove files");
            }
        }
    }

    fn run(&self) {
        loop {
            let next = {
                let mut state = self.lock();
                let next = if state.stopped { None } else { state.queue.pop_front() };
                if next.is_none() {
                    state.runs = false;
                    self.0.idle.notify_all();
                }
                next
            };
            let Some(trash) = next else { return };
            // Whoever asks meanwhile is told how much there is: it was not counted before
            // the start that found it.
            if let Trash::Layer(layer) = &trash
                && let Err(error) = layer.measure()
            {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "measure what is removed");
            }
            trash.empty();
        }
    }

    /// Lets the thread end after what it is removing now.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
    }

    /// Waits until nothing is left to remove, or nobody removes it.
    pub(crate) fn wait(&self) {
        let state = self.lock();
        let wait = self.0.idle.wait_while(state, |state| state.runs);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
