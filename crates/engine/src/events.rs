//! What happens to sandboxes and containers, for who listens (CRI `GetContainerEvents`).
//!
//! ```text
//! drivers ──tell──▶ ring of the last events ◀── each listener's own place
//! ```
//!
//! A driver never waits for a listener: one that is too slow finds that its next event is
//! gone, is told so, and lists anew. Times are later each than the one before, whatever the
//! clock says and also after a restart: kubelet's evented PLEG takes the later of two
//! statuses of a pod for the newer one. So an event's statuses are taken at its time, under
//! the one lock that also gives the time. Nobody takes that lock while nobody listens, and
//! nothing is kept then.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_model::container::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::core::{Core, warn_failure};
use crate::sandbox::Sandbox;
use crate::{ContainerStatus, Error, SandboxStatus, clock, files};

/// Events that a listener may be behind.
const CAPACITY: usize = 1024;
/// How long events are kept for a listener that went away and may come back.
const RESUME: Duration = Duration::from_secs(60);
/// How far ahead of an event the time lies that a restart begins with: so often at most is
/// it written down.
const AHEAD: i64 = 1_000_000_000;

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventKind {
    /// It can be started. A sandbox is started as it is created.
    Created,
    /// It runs.
    Started,
    /// It runs no more, or never will.
    Stopped,
    /// It was forgotten.
    Deleted,
}

/// Something happened to a sandbox, or to a container.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// Whose id; for what happened to a sandbox, the sandbox's.
    pub id: String,
    /// When; later than every event before.
    pub at: Timestamp,
    /// The sandbox at that time; of one that was forgotten, the last that was known.
    pub sandbox: Arc<SandboxStatus>,
    /// Its containers at that time, oldest first.
    pub containers: Vec<Arc<ContainerStatus>>,
}

/// Why no event comes any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EventsEnd {
    /// The listener did not keep up, or asked for events that are gone.
    #[error("events were missed: list, and listen again")]
    Missed,
    /// The daemon ends.
    #[error("the daemon ends")]
    Closed,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// Number of the first one.
    first: u64,
    /// Every event after this time is in the ring.
    whole_since: Timestamp,
    listeners: usize,
    /// When the last listener went away.
    left: Option<Instant>,
    closed: bool,
    /// Where a restart finds a time that no event has yet, and that time.
    floor: Option<(File, i64)>,
}

/// The ring, and who waits for its next event.
#[derive(Debug)]
pub(crate) struct Feed {
    ring: Mutex<Ring>,
    /// Whether the ring is filled.
    wanted: AtomicBool,
    /// The latest time that was given out.
    last: AtomicI64,
    changed: watch::Sender<()>,
}

/// A place in the ring.
#[derive(Debug)]
pub struct Events {
    feed: Arc<Feed>,
    /// Number of the next event.
    next: u64,
    changed: watch::Receiver<()>,
}

impl Feed {
    /// A feed whose times go on after those of the daemon before, which `path` tells.
    pub(crate) fn open(path: &Path) -> Self {
        let floor = floor(path).inspect_err(|error| warn_failure("keep time of events", error));
        let floor = floor.ok();
        Self {
            last: AtomicI64::new(floor.as_ref().map_or(0, |(_, at)| *at)),
            ring: Mutex::new(Ring {
                events: VecDeque::new(),
                first: 0,
                whole_since: Timestamp(0),
                listeners: 0,
                left: None,
                closed: false,
                floor,
            }),
            wanted: AtomicBool::new(false),
            changed: watch::Sender::new(()),
        }
    }

    /// The present: not before anything that was told, and before every event to come.
    /// Whoever reads statuses after it has nothing older than an event before it.
    pub(crate) fn moment(&self) -> Timestamp {
        let Timestamp(now) = clock::now();
        Timestamp(self.last.fetch_max(now, Ordering::AcqRel).max(now))
    }

    /// Ends every listener, for good.
    pub(crate) fn close(&self) {
        let mut ring = self.lock();
        ring.closed = true;
        let last = self.last.load(Ordering::Acquire);
        ring.keep_floor(last, last);
        drop(ring);
        self.changed.send_replace(());
    }

    fn publish(&self, event: impl FnOnce(Timestamp) -> Event) {
        if !self.wanted.load(Ordering::Acquire) {
            return;
        }
        let mut ring = self.lock();
        if ring.listeners == 0 && ring.left.is_none_or(|left| left.elapsed() > RESUME) {
            self.wanted.store(false, Ordering::Release);
            ring.events = VecDeque::new();
            return;
        }
        let at = self.stamp();
        if ring.floor.as_ref().is_some_and(|(_, floor)| at.0 >= *floor) {
            ring.keep_floor(at.0, at.0.saturating_add(AHEAD));
        }
        if ring.events.len() == CAPACITY
            && let Some(oldest) = ring.events.pop_front()
        {
            ring.first += 1;
            ring.whole_since = oldest.at;
        }
        ring.events.push_back(Arc::new(event(at)));
        drop(ring);
        self.changed.send_replace(());
    }

    /// The present, later than every time before.
    fn stamp(&self) -> Timestamp {
        let Timestamp(now) = clock::now();
        let next = |last: i64| now.max(last.saturating_add(1));
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, |l| Some(next(l)));
        Timestamp(next(last.unwrap_or_else(|last| last)))
    }

    /// Begins to listen: from now on, or after the event at `after` if all since then are
    /// here still.
    pub(crate) fn listen(self: &Arc<Self>, after: Option<Timestamp>) -> Result<Events, EventsEnd> {
        let changed = self.changed.subscribe();
        let next = self.place(after)?;
        Ok(Events { feed: Arc::clone(self), next, changed })
    }

    /// A place behind the last event, or behind the one at `after` if no event since then is
    /// missing.
    fn place(&self, after: Option<Timestamp>) -> Result<u64, EventsEnd> {
        let now = self.moment();
        let mut ring = self.lock();
        if ring.closed {
            return Err(EventsEnd::Closed);
        }
        if !self.wanted.swap(true, Ordering::AcqRel) {
            ring.first += u64::try_from(ring.events.len()).unwrap_or(u64::MAX);
            ring.events.clear();
            ring.whole_since = now;
        }
        let seen = match after {
            Some(after) if after < ring.whole_since => return Err(EventsEnd::Missed),
            Some(after) => ring.events.partition_point(|event| event.at <= after),
            None => ring.events.len(),
        };
        ring.listeners += 1;
        Ok(ring.first + u64::try_from(seen).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Notes `floor` for a restart. Without the file times still rise while the daemon lives.
    fn keep_floor(&mut self, at: i64, floor: i64) {
        let Some((file, kept)) = &mut self.floor else { return };
        match file.write_all_at(&floor.to_le_bytes(), 0) {
            Ok(()) => *kept = floor,
            Err(source) => {
                let error = Error::io("write", "time of events")(source);
                warn_failure("keep time of events", &error);
                *kept = at.saturating_add(AHEAD);
            }
        }
    }
}

/// The file, and what is in it; a new one, or one that is torn, says nothing.
fn floor(path: &Path) -> Result<(File, i64), Error> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(Error::io("open", path))?;
    let mut bytes = [0; 8];
    match file.read_exact_at(&mut bytes, 0) {
        // What is absurd was torn: nothing is later than the end of time.
        Ok(()) if (0..i64::MAX / 2).contains(&i64::from_le_bytes(bytes)) => {
            Ok((file, i64::from_le_bytes(bytes)))
        }
        _ => {
            files::write_file(path, &[0; 8])?;
            Ok((file, 0))
        }
    }
}

impl Core {
    /// Tells listeners what happened to the sandbox, or to one of its containers. What they
    /// are told is published on the board before.
    pub(crate) fn tell(&self, kind: EventKind, id: &str, sandbox: &Sandbox) {
        self.feed.publish(|at| {
            let containers = self.containers.all().into_iter();
            let members = containers.filter(|container| container.sandbox.id == sandbox.id);
            let mut containers: Vec<_> = members.map(|container| container.status.get()).collect();
            containers.sort_by_key(|container| container.created_at);
            Event { kind, id: id.to_owned(), at, sandbox: sandbox.status.get(), containers }
        });
    }
}

impl Events {
    /// The next event. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Arc<Event>, EventsEnd> {
        loop {
            self.changed.borrow_and_update();
            {
                let ring = self.feed.lock();
                let place = self.next.checked_sub(ring.first).ok_or(EventsEnd::Missed)?;
                let place = usize::try_from(place).map_err(|_| EventsEnd::Missed)?;
                if let Some(event) = ring.events.get(place) {
                    self.next += 1;
                    return Ok(Arc::clone(event));
                }
                if ring.closed {
                    return Err(EventsEnd::Closed);
                }
            }
            self.changed.changed().await.map_err(|_| EventsEnd::Closed)?;
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut ring = self.feed.lock();
        ring.listeners -= 1;
        if ring.listeners == 0 {
            ring.left = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use berth_model::{SandboxId, SandboxSpec, SandboxState};

    use super::*;

    fn feed(dir: &tempfile::TempDir) -> Arc<Feed> {
        Arc::new(Feed::open(&dir.path().join("events")))
    }

    fn happen(feed: &Feed, id: &str) {
        feed.publish(|at| Event {
            kind: EventKind::Started,
            id: id.to_owned(),
            at,
            sandbox: Arc::new(SandboxStatus {
                id: SandboxId::new("s").unwrap(),
                spec: Arc::new(SandboxSpec::default()),
                state: SandboxState::Ready,
                created_at: Timestamp(1),
                ip: None::<IpAddr>,
                runtime: "berth".into(),
                shim_pid: 0,
                netns: None,
                limits: Arc::default(),
                list_item: crate::ListItem::default(),
            }),
            containers: Vec::new(),
        });
    }

    #[tokio::test]
    async fn each_listener_hears_everything_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(&dir);
        happen(&feed, "unheard");
        let (mut one, mut two) = (feed.listen(None).unwrap(), feed.listen(None).unwrap());
        for n in 0..100 {
            happen(&feed, &n.to_string());
        }
        for listener in [&mut one, &mut two] {
            let mut last = Timestamp(0);
            for n in 0..100 {
                let event = listener.next().await.unwrap();
                assert_eq!(event.id, n.to_string());
                assert!(event.at > last, "{event:?}");
                last = event.at;
            }
        }
        let waiting = tokio::spawn(async move { one.next().await });
        happen(&feed, "later");
        assert_eq!(waiting.await.unwrap().unwrap().id, "later");
        feed.close();
        assert_eq!(two.next().await.unwrap().id, "later");
        assert_eq!(two.next().await.unwrap_err(), EventsEnd::Closed);
        assert_eq!(feed.listen(None).unwrap_err(), EventsEnd::Closed);
    }

    /// teeth: crates/engine/src/events.rs: `.ok_or(EventsEnd::Missed)?` → `.unwrap_or(0)`
    #[tokio::test]
    async fn who_does_not_keep_up_is_told_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(&dir);
        let (mut slow, mut quick) = (feed.listen(None).unwrap(), feed.listen(None).unwrap());
        for n in 0..=CAPACITY {
            happen(&feed, &n.to_string());
            assert_eq!(quick.next().await.unwrap().id, n.to_string());
        }
        assert_eq!(slow.next().await.unwrap_err(), EventsEnd::Missed);
        assert_eq!(feed.lock().events.len(), CAPACITY);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_in_time_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let feed = feed(&dir);
        let mut listener = feed.listen(None).unwrap();
        happen(&feed, "first");
        let first = listener.next().await.unwrap().at;
        drop(listener);
        happen(&feed, "second");
        let mut again = feed.listen(Some(first)).unwrap();
        assert_eq!(again.next().await.unwrap().id, "second");
        let before = Timestamp(first.0 - 1_000_000_000_000);
        assert_eq!(feed.listen(Some(before)).unwrap_err(), EventsEnd::Missed);
        drop(again);
        tokio::time::advance(RESUME * 2).await;
        happen(&feed, "kept for nobody");
        assert!(feed.lock().events.is_empty());
        assert_eq!(feed.listen(Some(first)).unwrap_err(), EventsEnd::Missed);
    }

    /// teeth: crates/engine/src/events.rs: `last: AtomicI64::new(floor.as_ref().map_or(0, |(_, at)| *at))` → `last: AtomicI64::new(0)`
    #[tokio::test]
    async fn times_rise_after_a_restart_even_if_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let first = feed(&dir);
        // As if the clock had been an hour ahead.
        let ahead = clock::now().0 + 3_600_000_000_000;
        first.last.store(ahead, Ordering::Release);
        let mut listener = first.listen(None).unwrap();
        happen(&first, "before");
        let before = listener.next().await.unwrap().at;
        assert!(before.0 > ahead);
        for closed in [false, true] {
            if closed {
                first.close();
            }
            let second = Arc::new(Feed::open(&path));
            let mut listener = second.listen(None).unwrap();
            happen(&second, "after");
            assert!(listener.next().await.unwrap().at > before);
            assert!(second.moment() > before);
        }
        std::fs::write(&path, i64::MAX.to_le_bytes()).unwrap();
        assert!(Feed::open(&path).moment().0 < ahead, "what is absurd is not believed");
    }
}
