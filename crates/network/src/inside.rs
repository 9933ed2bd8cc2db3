//! The inside of a sandbox's network namespace.
//!
//! A netlink socket belongs for ever to the namespace of the thread that opened it, and so
//! does a file of `/proc/net`: only the opening needs a thread in there. [`Opener`] is such a
//! thread: it enters, opens, goes home, and ends should it not get home. Who attaches asks it
//! first, and it answers while the host side is being made.

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
/// How long to wait for what is opened in a sandbox's namespace.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

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
        Self::open()
    }

    /// Only opens the socket.
    fn open() -> Result<Self, Error> {
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

/// Opens a socket in a network namespace by a thread of its own, which ends in there.
#[cfg(test)]
pub(crate) fn visit(netns: BorrowedFd<'_>) -> Result<Inside, Error> {
    const NAME: &str = "netns-visit";
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new()
            .name(NAME.into())
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(Error::EnterNetns)?;
                Inside::open()
            })
            .map_err(|source| Error::Thread { name: NAME, source })?;
        visitor.join().unwrap_or(Err(Error::ThreadGone))
    })
}

/// A thread that opens in other namespaces what belongs to them.
#[derive(Debug)]
pub(crate) struct Opener {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    requests: mpsc::Sender<(OwnedFd, Box<dyn Errand>)>,
    thread: JoinHandle<()>,
}

/// What is done in a namespace, and said once its thread is home again.
trait Errand: Send {
    fn inside(&mut self, entered: Result<(), Error>);
    fn at_home(self: Box<Self>);
}

struct Opening<T> {
    open: fn() -> Result<T, Error>,
    opened: Result<T, Error>,
    answer: mpsc::SyncSender<Result<T, Error>>,
}

impl<T: Send> Errand for Opening<T> {
    fn inside(&mut self, entered: Result<(), Error>) {
        self.opened = entered.and_then(|()| (self.open)());
    }

    fn at_home(self: Box<Self>) {
        if self.answer.send(self.opened).is_err() {
            tracing::debug!("nobody waits for what was opened in a sandbox any more");
        }
    }
}

/// What was asked for, and is not there yet.
#[derive(Debug)]
pub(crate) struct Awaited<T>(mpsc::Receiver<Result<T, Error>>);

impl<T> Awaited<T> {
    pub(crate) fn wait(&self) -> Result<T, Error> {
        self.0.recv_timeout(OPEN_LIMIT).unwrap_or(Err(Error::ThreadGone))
    }
}

impl Opener {
    /// Starts the thread; its home is the calling thread's namespace.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self { running: Mutex::new(Some(Running::start()?)) })
    }

    /// Asks for what `open` opens in that namespace.
    pub(crate) fn open<T: Send + 'static>(
        &self,
        netns: BorrowedFd<'_>,
        open: fn() -> Result<T, Error>,
    ) -> Result<Awaited<T>, Error> {
        let netns = netns.try_clone_to_owned().map_err(|error| Error::EnterNetns(errno(&error)))?;
        let (answer, receiver) = mpsc::sync_channel(1);
        let errand = Opening { open, opened: Err(Error::ThreadGone), answer };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut request: (_, Box<dyn Errand>) = (netns, Box::new(errand));
        if let Some(live) = running.as_ref() {
            match live.requests.send(request) {
                Ok(()) => return Ok(Awaited(receiver)),
                Err(mpsc::SendError(returned)) => request = returned,
            }
        }
        // The thread could not go home from its last visit, and ended.
        let live = running.insert(Running::start()?);
        live.requests.send(request).map_err(|_| Error::ThreadGone)?;
        Ok(Awaited(receiver))
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
    fn start() -> Result<Self, Error> {
        const NAME: &str = "netns-opener";
        let thread = |source| Error::Thread { name: NAME, source };
        let home = OwnedFd::from(std::fs::File::open(OWN_NETNS).map_err(thread)?);
        let (requests, incoming) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || serve(&home, &incoming))
            .map_err(thread)?;
        Ok(Self { requests, thread })
    }
}

/// Serves requests until their sender is gone, or this thread is stuck in a sandbox.
fn serve(home: &OwnedFd, incoming: &mpsc::Receiver<(OwnedFd, Box<dyn Errand>)>) {
    while let Ok((netns, mut errand)) = incoming.recv() {
        errand.inside(setns(&netns, CloneFlags::CLONE_NEWNET).map_err(Error::EnterNetns));
        let at_home = setns(home.as_fd(), CloneFlags::CLONE_NEWNET);
        drop(netns);
        errand.at_home();
        if let Err(error) = at_home {
            tracing::error!(%error, "leave network namespace of sandbox; thread ends");
            return;
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
