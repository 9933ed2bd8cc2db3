//! The inside of a sandbox's network namespace.
//!
//! A netlink socket belongs for ever to the namespace of the thread that opened it, and so
//! does a file of `/proc/net`: only the opening needs a thread in there. For the socket that is
//! the thread that makes the namespace; for files of one that exists there is [`Opener`], a
//! thread that enters, opens, goes home, and ends should it not get home.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::address::Subnet;
use crate::error::Error;
use crate::netlink::Socket;
use crate::netlink::request::Request;
use crate::{route, sysctl};

/// The calling thread's network namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";
/// How long to wait for a file: statistics are not worth more.
const OPEN_LIMIT: Duration = Duration::from_secs(1);

/// A netlink socket of a sandbox's network namespace, usable from any thread.
#[derive(Debug)]
pub struct Inside {
    pub(crate) socket: Socket,
}

impl Inside {
    /// Prepares the calling thread's network namespace, which must be a new sandbox's:
    /// turns IPv6 off for interfaces made later, and opens a socket.
    ///
    /// An `eth0` without IPv6 sends no router solicitations and takes no advertisements,
    /// which a neighbour could forge (CVE-2020-10749). Setting the parameter costs 0.03 ms
    /// here; what it saves while attaching is lost in the noise. `lo` keeps its `::1`, for
    /// programs that name it.
    ///
    /// # Errors
    /// No socket to be had; the kernel parameter cannot be set.
    pub fn here() -> Result<Self, Error> {
        sysctl::set_if_present("net/ipv6/conf/default/disable_ipv6", "1")?;
        let socket = Socket::route().map_err(|source| Error::Netlink {
            operation: "open socket in network namespace of sandbox".into(),
            source,
        })?;
        Ok(Self { socket })
    }

    /// Brings `lo` up.
    ///
    /// # Errors
    /// The kernel's refusal.
    #[cfg(test)]
    pub(crate) fn loopback_up(&mut self) -> Result<(), Error> {
        let mut request = Request::new();
        route::set_loopback_up(&mut request);
        self.socket.run(request)
    }

    /// `lo` and the interface up, the address, and the default route, in one write.
    pub(crate) fn configure(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        subnet: &Subnet,
    ) -> Result<(), Error> {
        let mut request = Request::new();
        route::set_loopback_up(&mut request);
        route::set_index_up(&mut request, index);
        route::add_address(&mut request, index, address, subnet);
        route::add_default_route(&mut request, index, subnet.gateway());
        self.socket.run(request)
    }
}

/// Makes an [`Inside`] of a network namespace by a thread of its own, which ends in there.
#[cfg(test)]
pub(crate) fn visit(netns: BorrowedFd<'_>) -> Result<Inside, Error> {
    const NAME: &str = "netns-visit";
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new()
            .name(NAME.into())
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(Error::EnterNetns)?;
                Inside::here()
            })
            .map_err(|source| Error::Thread { name: NAME, source })?;
        visitor.join().unwrap_or(Err(Error::ThreadGone))
    })
}

type Answer = mpsc::SyncSender<Result<File, Error>>;

/// A thread that opens files in other namespaces.
#[derive(Debug)]
pub(crate) struct Opener {
    /// What it opens.
    path: &'static str,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    requests: mpsc::Sender<(OwnedFd, Answer)>,
    thread: JoinHandle<()>,
}

impl Opener {
    /// Starts the thread; its home is the calling thread's namespace.
    pub(crate) fn new(path: &'static str) -> Result<Self, Error> {
        Ok(Self { path, running: Mutex::new(Some(Running::start(path)?)) })
    }

    /// The file as it is in that namespace.
    pub(crate) fn open(&self, netns: BorrowedFd<'_>) -> Result<File, Error> {
        let netns = netns.try_clone_to_owned().map_err(|error| Error::EnterNetns(errno(&error)))?;
        let (answer, receiver) = mpsc::sync_channel(1);
        self.ask((netns, answer))?;
        receiver.recv_timeout(OPEN_LIMIT).unwrap_or(Err(Error::ThreadGone))
    }

    fn ask(&self, mut request: (OwnedFd, Answer)) -> Result<(), Error> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = running.as_ref() {
            match live.requests.send(request) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(returned)) => request = returned,
            }
        }
        // The thread could not go home from its last visit, and ended.
        let live = running.insert(Running::start(self.path)?);
        live.requests.send(request).map_err(|_| Error::ThreadGone)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(Running { requests, thread }) = running.take() {
            drop(requests);
            if thread.join().is_err() {
                tracing::error!("the thread that enters network namespaces panicked");
            }
        }
    }
}

impl Running {
    fn start(path: &'static str) -> Result<Self, Error> {
        const NAME: &str = "netns-opener";
        let thread = |source| Error::Thread { name: NAME, source };
        let home = OwnedFd::from(std::fs::File::open(OWN_NETNS).map_err(thread)?);
        let (requests, incoming) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || serve(path, &home, &incoming))
            .map_err(thread)?;
        Ok(Self { requests, thread })
    }
}

/// Serves requests until their sender is gone, or this thread is stuck in a sandbox.
fn serve(path: &'static str, home: &OwnedFd, incoming: &mpsc::Receiver<(OwnedFd, Answer)>) {
    while let Ok((netns, answer)) = incoming.recv() {
        let opened = match setns(&netns, CloneFlags::CLONE_NEWNET) {
            Ok(()) => File::open(path).map_err(|source| Error::Open { path, source }),
            Err(errno) => Err(Error::EnterNetns(errno)),
        };
        let at_home = setns(home.as_fd(), CloneFlags::CLONE_NEWNET);
        drop(netns);
        if answer.send(opened).is_err() {
            tracing::debug!(path, "nobody waits for a file of a sandbox any more");
        }
        if let Err(error) = at_home {
            tracing::error!(%error, "leave network namespace of sandbox; thread ends");
            return;
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
