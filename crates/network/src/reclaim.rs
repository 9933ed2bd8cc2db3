//! Addresses are given back only when the link that had them is gone (decision 8).
//!
//! One thread looks for detached links by name. It asks rather than listens: a question
//! takes no lock of the kernel's networking and there is one per detached sandbox and 20,
//! 40, 80… ms, while an announcement would wake the thread at every change of every link.
//! With nothing detached it sleeps.

use std::net::Ipv4Addr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_failpoint::Point;
use berth_model::SandboxId;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::error::Error;
use crate::leases::Leases;
use crate::link;
use crate::netlink::Socket;
use crate::network::Network;

/// How long a host link may outlive its sandbox's detachment before it is deleted.
pub const LINK_GRACE: Duration = Duration::from_secs(30);

const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A host link that is to go, and the lease that goes with it.
#[derive(Debug)]
pub(crate) struct Draining {
    /// `None` if there never was a link, and only the lease could not be given back yet.
    pub(crate) name: Option<String>,
    /// Its index, if known; a link of that name and another index is another link.
    pub(crate) index: Option<u32>,
    pub(crate) lease: Option<(SandboxId, Ipv4Addr)>,
    /// When to delete it, should it still be there.
    pub(crate) delete_at: Instant,
}

impl Draining {
    fn gone(&self) -> bool {
        let Some(name) = &self.name else { return true };
        match (if_nametoindex(name.as_str()), self.index) {
            (Ok(found), Some(index)) => found != index,
            (Ok(_), None) => false,
            // Any other error, such as no descriptor being left, says nothing of the link.
            (Err(errno), _) => errno == Errno::ENODEV,
        }
    }
}

/// How many links are draining, and who waits for that to change.
#[derive(Debug, Default)]
struct Count {
    links: Mutex<usize>,
    changed: Condvar,
}

impl Count {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    incoming: Option<mpsc::Sender<Draining>>,
    thread: Option<JoinHandle<()>>,
    count: Arc<Count>,
}

impl Reclaimer {
    /// Starts the thread in the calling thread's network namespace, that of `route`.
    pub(crate) fn new(route: Socket, leases: Arc<dyn Leases>) -> Result<Self, Error> {
        const NAME: &str = "net-reclaim";
        let (incoming, queue) = mpsc::channel();
        let count = Arc::new(Count::default());
        let mut worker = Worker { route, leases, count: Arc::clone(&count), draining: Vec::new() };
        let thread = std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || worker.run(&queue))
            .map_err(|source| Error::Thread { name: NAME, source })?;
        Ok(Self { incoming: Some(incoming), thread: Some(thread), count })
    }

    /// Hands a link over. Should the thread be gone, its lease is kept for the next sweep.
    pub(crate) fn drain(&self, link: Draining) {
        *self.count.lock() += 1;
        let sent = self.incoming.as_ref().map(|incoming| incoming.send(link));
        if !matches!(sent, Some(Ok(()))) {
            *self.count.lock() -= 1;
            tracing::error!("the thread that reclaims addresses is gone; a lease is kept");
        }
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        drop(self.incoming.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reclaims addresses panicked");
        }
    }
}

struct Worker {
    route: Socket,
    leases: Arc<dyn Leases>,
    count: Arc<Count>,
    draining: Vec<Draining>,
}

impl Worker {
    /// Runs until the sender is gone; leases left over are the next sweep's.
    fn run(&mut self, queue: &mpsc::Receiver<Draining>) {
        let mut pause = FIRST_LOOK;
        let mut look_at = Instant::now();
        loop {
            let next = if self.draining.is_empty() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(look_at.saturating_duration_since(Instant::now()))
            };
            match next {
                Ok(link) => {
                    pause = FIRST_LOOK;
                    let wanted = link.delete_at.min(Instant::now() + pause);
                    look_at = if self.draining.is_empty() { wanted } else { look_at.min(wanted) };
                    self.draining.push(link);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    look_at = Instant::now() + pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Releases what is gone, and deletes what is overdue.
    fn look(&mut self) {
        self.release_gone();
        let now = Instant::now();
        let overdue = self.draining.iter_mut().filter(|link| link.delete_at <= now);
        let mut names: Vec<String> = overdue
            .filter_map(|link| {
                link.delete_at = now + LINK_GRACE;
                link.name.clone()
            })
            .collect();
        if names.is_empty() {
            return;
        }
        names.sort_unstable();
        names.dedup();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Err(error) = link::delete(&mut self.route, &names) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "delete links of detached sandboxes; tried again later");
        }
        self.release_gone();
    }

    fn release_gone(&mut self) {
        let before = self.draining.len();
        let leases = &self.leases;
        self.draining.retain(|link| !(link.gone() && released(leases.as_ref(), link)));
        let gone = before - self.draining.len();
        if gone > 0 {
            *self.count.lock() -= gone;
            self.count.changed.notify_all();
        }
    }
}

/// Gives the lease of a link that is gone back; says whether there is none any more.
fn released(leases: &dyn Leases, link: &Draining) -> bool {
    let Some((sandbox, address)) = &link.lease else { return true };
    let gone = berth_failpoint::pass(Point::STOP_LINK_GONE);
    match gone.map_err(Into::into).and_then(|()| leases.release(sandbox, *address)) {
        Ok(()) => true,
        Err(error) => {
            let error: &dyn std::error::Error = &*error;
            tracing::warn!(sandbox.id = %sandbox, %address, error, "release address; tried again");
            false
        }
    }
}

impl Network {
    /// How many detached sandboxes still have a host link, and so a lease.
    #[must_use]
    pub fn draining(&self) -> usize {
        *self.reclaimer.count.lock()
    }

    /// Waits until no detached sandbox has a host link; says whether that came to be.
    #[must_use]
    pub fn wait_drained(&self, limit: Duration) -> bool {
        let count = &self.reclaimer.count;
        let waited = count.changed.wait_timeout_while(count.lock(), limit, |links| *links > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}
