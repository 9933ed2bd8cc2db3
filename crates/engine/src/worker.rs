//! Where blocking work runs: never on the threads that answer requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::Error;

type Job = Box<dyn FnOnce() + Send>;

/// One thread that runs jobs in the order in which they come.
///
/// It ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    name: &'static str,
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread; at most `queue` jobs wait, further callers do.
    pub(crate) fn start(name: &'static str, queue: usize) -> Result<Self, Error> {
        let (jobs, mut receiver) = mpsc::channel::<Job>(queue);
        let run = move || {
            while let Some(job) = receiver.blocking_recv() {
                // A job that panics answers nobody, and its caller is told so.
                let _panicked = catch_unwind(AssertUnwindSafe(job));
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
        thread.spawn(run).map_err(Error::io("start thread", name))?;
        Ok(Self { name, jobs })
    }

    /// Runs `work` on the thread. The work is done even if the caller goes away.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            // The caller may have gone away.
            let _unheard = sender.send(work());
        });
        self.jobs.send(job).await.map_err(|_| Error::TaskDied(self.name))?;
        receiver.await.map_err(|_| Error::TaskDied(self.name))
    }
}

/// A bounded share of the runtime's blocking threads.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    name: &'static str,
    permits: Arc<Semaphore>,
}

impl Pool {
    pub(crate) fn new(name: &'static str, threads: usize) -> Self {
        Self { name, permits: Arc::new(Semaphore::new(threads)) }
    }

    /// Waits for a thread.
    pub(crate) async fn place(&self) -> Result<Place, Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        Ok(Place { name: self.name, permit: permit.map_err(|_| Error::TaskDied(self.name))? })
    }

    /// Runs `work` on a thread of its own. Once begun, it is done even if the caller
    /// goes away.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.place().await?.run(work).await
    }
}

/// A thread of a [`Pool`], for one piece of work.
#[derive(Debug)]
pub(crate) struct Place {
    name: &'static str,
    permit: OwnedSemaphorePermit,
}

impl Place {
    /// As [`Pool::run`], at once.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let Self { name, permit } = self;
        let span = tracing::Span::current();
        let job = move || {
            let _permit = permit;
            span.in_scope(work)
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| Error::TaskDied(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_in_order_on_one_thread() {
        let worker = Worker::start("test-worker", 2).unwrap();
        let name = worker.run(|| thread::current().name().map(str::to_owned)).await.unwrap();
        assert_eq!(name.as_deref(), Some("test-worker"));
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_caller_only() {
        let worker = Worker::start("test-worker", 2).unwrap();
        let died = worker.run(|| panic!("on purpose")).await;
        assert!(matches!(died, Err(Error::TaskDied("test-worker"))));
        assert_eq!(worker.run(|| 5).await.unwrap(), 5);
    }
}
