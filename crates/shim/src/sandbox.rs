//! What the containers of a pod share, and whether it is there.
//!
//! berthd hands the network, IPC and UTS namespaces over as descriptors
//! ([`NAMESPACE_FDS`]); a shared pid namespace and the mount of `/dev/shm` are made here.
//! All of it goes when the sandbox is stopped.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use berth_oci_runtime::SharedMounts;
use nix::errno::Errno;
use rustix::io::DupFlags;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::sync::watch::Sender;
use tokio::time::timeout;

use crate::error::Error;
use crate::init::PidNamespace;
use crate::io::watch;
use crate::reaper::{Exit, Reaper};

/// Where berthd puts the network, IPC and UTS namespaces; those it does not give are the
/// node's.
pub(crate) const NAMESPACE_FDS: [RawFd; 3] = [10, 11, 12];
/// Where berthd puts the user namespace that owns them, if there is one.
pub(crate) const USER_NAMESPACE_FD: RawFd = 14;
/// Where a shared pid namespace is put, for specs to name as `/proc/self/fd/13`.
pub(crate) const PID_NAMESPACE_FD: RawFd = 13;

/// How long making the shared mounts may take: it is some ten system calls.
const SHARED: Duration = Duration::from_secs(10);
/// How long the pid namespace's init may take to end once it was killed.
const GONE: Duration = Duration::from_secs(5);

/// What berthd wants of a sandbox (`berth.shim.v1.SandboxOptions`, as JSON).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Size of the shared `/dev/shm`, bytes; 0 makes none.
    pub(crate) shm_size: u64,
    /// Whether the containers share one pid namespace.
    pub(crate) share_pid: bool,
    /// Its user namespace, [`USER_NAMESPACE_FD`]; `None` is the node's.
    pub(crate) user: Option<User>,
}

/// The users of a pod.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    /// Who its root is on the node.
    pub(crate) uid: u32,
    /// Its root's group on the node.
    pub(crate) gid: u32,
    /// How many ids it has.
    pub(crate) ids: u32,
}

/// The one sandbox of a shim; none when the Sandbox API is not used.
#[derive(Debug)]
pub(crate) struct Sandbox {
    inner: Mutex<Inner>,
    stopped: Sender<Option<SystemTime>>,
}

#[derive(Debug, Default)]
struct Inner {
    id: Option<String>,
    /// The id of one that is being made.
    taken: Option<String>,
    created_at: Option<SystemTime>,
    stopping: bool,
    shared: Arc<SharedMounts>,
    pids: Option<PidNamespace>,
    /// Holds [`PID_NAMESPACE_FD`], so that nothing else gets that number.
    reserved: Option<OwnedFd>,
    /// Whether [`USER_NAMESPACE_FD`] is its user namespace.
    own_users: bool,
}

/// What `SandboxStatus` tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) created_at: Option<SystemTime>,
    pub(crate) stopped_at: Option<SystemTime>,
}

/// Takes [`PID_NAMESPACE_FD`], so that nothing else gets that number; `None` if something
/// has it already. To be called before anything that opens descriptors in numbers.
pub(crate) fn reserve() -> Result<Option<OwnedFd>, Error> {
    let failed = |source: io::Error| Error::Io("reserve a descriptor", source);
    let null = File::open("/dev/null").map_err(failed)?;
    let reserved = rustix::io::fcntl_dupfd_cloexec(&null, PID_NAMESPACE_FD)
        .map_err(|errno| failed(errno.into()))?;
    Ok((reserved.as_raw_fd() == PID_NAMESPACE_FD).then_some(reserved))
}

impl Default for Sandbox {
    fn default() -> Self {
        let (stopped, _) = tokio::sync::watch::channel(None);
        Self { inner: Mutex::default(), stopped }
    }
}

impl Sandbox {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the descriptor that [`reserve`] made until it is put to use.
    pub(crate) fn keep(&self, place: Option<OwnedFd>) {
        self.inner().reserved = place;
    }

    /// Makes what is shared.
    pub(crate) async fn create(
        &self,
        id: &str,
        options: Options,
        reaper: &Arc<Reaper>,
    ) -> Result<(), Error> {
        {
            let mut inner = self.inner();
            if let Some(existing) = inner.id.as_ref().or(inner.taken.as_ref()) {
                return Err(Error::Exists { what: "sandbox", id: existing.clone() });
            }
            inner.taken = Some(id.to_owned());
        }
        let made = self.make(options, reaper).await;
        let mut inner = self.inner();
        let id = inner.taken.take();
        if made.is_ok() {
            inner.id = id;
        }
        made
    }

    async fn make(&self, options: Options, reaper: &Arc<Reaper>) -> Result<(), Error> {
        self.inner().own_users = options.user.is_some();
        if options.shm_size > 0 {
            let owner = options.user.map_or((0, 0), |user| (user.uid, user.gid));
            let shared = shared_mounts(options.shm_size, owner, reaper).await?;
            self.inner().shared = Arc::new(shared);
        }
        if options.share_pid {
            let (pids, namespace) = PidNamespace::new(reaper, options.user).await?;
            let mut inner = self.inner();
            // Kept first: whatever happens, it ends with the sandbox.
            inner.pids = Some(pids);
            let busy = Error::Syscall("place the pid namespace", Errno::EBUSY);
            let place = inner.reserved.as_mut().ok_or(busy)?;
            rustix::io::dup3(&namespace, place, DupFlags::CLOEXEC)
                .map_err(|errno| Error::Io("place the pid namespace", errno.into()))?;
        }
        Ok(())
    }

    /// The sandbox is used from now on; the pid of its own process, 0 without one.
    pub(crate) fn start(&self, id: &str) -> Result<(u32, SystemTime), Error> {
        let mut inner = self.check(id)?;
        if self.stopped.borrow().is_some() {
            return Err(Error::State { id: id.to_owned(), state: "stopped" });
        }
        let at = *inner.created_at.get_or_insert_with(berth_failpoint::now);
        Ok((inner.pids.as_ref().map_or(0, PidNamespace::pid), at))
    }

    pub(crate) fn shared(&self) -> Arc<SharedMounts> {
        Arc::clone(&self.inner().shared)
    }

    /// No container is made from here on.
    pub(crate) fn stopping(&self) {
        self.inner().stopping = true;
    }

    /// Whether it was stopped, or is being.
    pub(crate) fn is_stopped(&self) -> bool {
        self.inner().stopping
    }

    /// Whether there ever was one, or is to be.
    pub(crate) fn is_used(&self) -> bool {
        let inner = self.inner();
        inner.id.is_some() || inner.taken.is_some()
    }

    /// Whether there is one that was not stopped.
    pub(crate) fn is_active(&self) -> bool {
        self.inner().id.is_some() && self.stopped.borrow().is_none()
    }

    pub(crate) fn status(&self, id: &str) -> Result<Status, Error> {
        let inner = self.check(id)?;
        Ok(Status {
            pid: inner.pids.as_ref().map_or(0, PidNamespace::pid),
            created_at: inner.created_at,
            stopped_at: *self.stopped.borrow(),
        })
    }

    fn check(&self, id: &str) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.inner();
        match &inner.id {
            Some(own) if own == id => Ok(inner),
            _ => Err(Error::NotFound { what: "sandbox", id: id.to_owned() }),
        }
    }

    /// Waits until it was stopped.
    pub(crate) async fn wait(&self, id: &str) -> Result<Exit, Error> {
        drop(self.check(id)?);
        let mut stopped = self.stopped.subscribe();
        loop {
            if let Some(at) = *stopped.borrow_and_update() {
                return Ok(Exit { code: 0, at });
            }
            if stopped.changed().await.is_err() {
                // Not reached: `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Drops what was shared, once its containers have ended; twice is success.
    pub(crate) async fn stop(&self, reaper: &Arc<Reaper>) -> Result<(), Error> {
        let (pids, own_users) = {
            let mut inner = self.inner();
            inner.shared = Arc::default();
            // The last descriptor of the namespace goes with its number.
            inner.reserved = None;
            (inner.pids.take(), std::mem::take(&mut inner.own_users))
        };
        if let Some(pids) = pids {
            let late =
                |_| Error::Timeout { what: "the end of the pod's init", seconds: GONE.as_secs() };
            // Reaped whenever it ends, also after this has given up.
            let reaper = Arc::clone(reaper);
            let ended = tokio::spawn(async move { pids.end(&reaper).await });
            timeout(GONE, ended).await.map_err(late)?.ok();
        }
        let numbers = NAMESPACE_FDS.into_iter().chain(own_users.then_some(USER_NAMESPACE_FD));
        for number in numbers.filter(|number| is_namespace(*number)) {
            // Closed is what it shall be: an error changes nothing.
            nix::unistd::close(number).ok();
        }
        self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            stopped.get_or_insert_with(berth_failpoint::now);
            first
        });
        Ok(())
    }
}

/// Has the shared mounts made, without stopping the shim.
async fn shared_mounts(
    size: u64,
    owner: (u32, u32),
    reaper: &Arc<Reaper>,
) -> Result<SharedMounts, Error> {
    let failed = |source| Error::Io("make shared mounts", source);
    let mut fd = watch(SharedMounts::make(size, owner)?, Interest::READABLE).map_err(failed)?;
    let made = timeout(SHARED, async {
        loop {
            let mut ready = fd.readable_mut().await.map_err(failed)?;
            match ready.get_inner().0.advance()? {
                Some(made) => return Ok(made),
                None => ready.clear_ready(),
            }
        }
    });
    let late = |_| Error::Timeout { what: "making shared mounts", seconds: SHARED.as_secs() };
    let made = made.await.map_err(late).flatten();
    let (pid, pidfd) = fd.into_inner().0.end();
    reaper.bury(pid.as_raw().unsigned_abs(), pidfd);
    made
}

/// Whether `number` is a namespace: the number may mean anything once that was closed.
fn is_namespace(number: RawFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
    let link = link.ok().and_then(|link| link.into_os_string().into_string().ok());
    let kinds = ["net:[", "ipc:[", "uts:[", "user:["];
    link.is_some_and(|link| kinds.iter().any(|kind| link.starts_with(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults_and_no_unknown_fields() {
        let parse = |json: &str| serde_json::from_str::<Options>(json);
        assert_eq!(parse("{}").unwrap(), Options::default());
        let options = parse(r#"{"shm_size":67108864,"share_pid":true}"#).unwrap();
        assert_eq!(options, Options { shm_size: 64 << 20, share_pid: true, user: None });
        let options = parse(r#"{"shm_size":0,"user":{"uid":7,"gid":8,"ids":9}}"#).unwrap();
        assert_eq!(options.user, Some(User { uid: 7, gid: 8, ids: 9 }));
        assert!(parse(r#"{"shm":1}"#).is_err());
    }

    #[test]
    fn only_a_namespace_is_closed_by_its_number() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let namespace = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert!(!is_namespace(file.as_raw_fd()));
        assert!(is_namespace(namespace.as_raw_fd()));
        assert!(!is_namespace(9999));
    }

    #[tokio::test]
    async fn a_sandbox_is_stopped_once_and_known_by_its_id() {
        let (sandbox, reaper) = (Sandbox::default(), Arc::new(Reaper::default()));
        assert!(sandbox.status("a").is_err() && !sandbox.is_active());
        sandbox.create("a", Options::default(), &reaper).await.unwrap();
        assert!(sandbox.create("a", Options::default(), &reaper).await.is_err());
        assert!(sandbox.is_active() && sandbox.start("b").is_err());
        assert_eq!(sandbox.start("a").unwrap().0, 0);
        sandbox.stop(&reaper).await.unwrap();
        let at = sandbox.wait("a").await.unwrap().at;
        sandbox.stop(&reaper).await.unwrap();
        assert_eq!(sandbox.status("a").unwrap().stopped_at, Some(at));
        assert!(sandbox.start("a").is_err() && !sandbox.is_active());
    }
}
