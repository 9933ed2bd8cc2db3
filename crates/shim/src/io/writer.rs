//! A process that writes one container's log, where writing may hang.
//!
//! The shim's one thread must not wait for a file system that others serve
//! ([`super::place`]). There, and only there, a forked child reads the container's pipes and
//! writes the log; a file system that does not answer stops that child and, once its pipe is
//! full, the container, and nobody else. No line is lost, for they wait in the pipe, but the
//! unfinished one of a writer that is killed.
//!
//! ```text
//! container --pipe--> writer --> log        shim <--requests, answers--> writer
//!                      O  open the log, or open it anew
//!                      D  write what the streams hold now
//!                      A  give the output to a client too, whose socket comes along
//!                      (end of file)  end with the streams
//! ```
//!
//! Requests and answers are packets, numbered, for an answer may come after its time. A
//! writer dies with the shim. One that dies alone is followed by another: the shim keeps the
//! pipes open, so a container never notices.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use berth_sys::descriptor::close_all_but;
use berth_sys::process::{ForkOptions, InChild, fork};
use berth_sys::spawn::send_signal;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{Pid, getpid, getppid};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::frame::Stream;
use super::logfile::LogFile;
use super::outlet::{Outlet, Outlets, Wanted};
use super::pump::{Feed, Progress};
use super::{Watched, watch};
use crate::log;
use crate::reaper::{Child, Exit, Reaper};

/// How long a log may take to open before the request that wants it fails.
const OPEN: Duration = Duration::from_secs(8);
/// How long the end of a container is held back for its last lines.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a writer may go on after its container was forgotten.
const LINGER: Duration = Duration::from_secs(60);
/// Pause before a writer that died is followed by another; longer when that one fails too.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const OPEN_LOG: u8 = b'O';
const DRAIN_STREAMS: u8 = b'D';
const ADD_CLIENT: u8 = b'A';
/// A request: what, the streams that a client wants, and its number.
const REQUEST: usize = 6;

/// The shim's side of a log that a process of its own writes.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    inner: Mutex<Inner>,
    /// Number of the last request; held while one is under way.
    turn: tokio::sync::Mutex<u32>,
    /// Told when no more is wanted of it.
    done: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    sources: Vec<(OwnedFd, Stream)>,
    socket: Option<Arc<AsyncFd<Watched<OwnedFd>>>>,
    /// Sockets of clients, while they are there: a process that follows gets them too.
    clients: Vec<(Weak<OwnedFd>, Wanted)>,
    finished: bool,
}

impl Writer {
    pub(super) fn new(path: &Path) -> Arc<Self> {
        let (inner, turn, done) = Default::default();
        Arc::new(Self { path: path.to_owned(), inner, turn, done })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a stream to be logged, whose reads return at once; before the start.
    pub(super) fn add(&self, source: OwnedFd, stream: Stream) {
        self.inner().sources.push((source, stream));
    }

    /// Forks the process and waits until it has opened the log.
    pub(super) async fn start(self: &Arc<Self>, reaper: &Arc<Reaper>) -> io::Result<()> {
        let child = self.fork(reaper)?;
        let (writer, reaper) = (Arc::clone(self), Arc::clone(reaper));
        tokio::spawn(async move { writer.follow(child, &reaper).await });
        self.ask(OPEN_LOG, OPEN, None).await.inspect_err(|_| self.finish())
    }

    /// Opens the log anew after its file was renamed.
    pub(super) async fn reopen(&self) -> io::Result<()> {
        self.ask(OPEN_LOG, OPEN, None).await
    }

    /// Waits, not for long, until what the streams hold now is written.
    pub(super) async fn drain(&self) {
        if let Err(error) = self.ask(DRAIN_STREAMS, DRAIN, None).await {
            let path = self.path.display();
            log::warn(format_args!("log {path} lags behind its container's end: {error}"));
        }
    }

    /// Gives the output to a client too.
    pub(super) async fn give(&self, socket: &Arc<OwnedFd>, wanted: Wanted) -> io::Result<()> {
        {
            let mut inner = self.inner();
            inner.clients.retain(|(client, _)| client.strong_count() > 0);
            inner.clients.push((Arc::downgrade(socket), wanted));
        }
        self.ask(ADD_CLIENT, OPEN, Some((socket, wanted))).await
    }

    /// Gives a new process the clients of the one before it.
    async fn give_again(&self) {
        let clients = self.inner().clients.clone();
        for (client, wanted) in clients {
            if let Some(socket) = client.upgrade()
                && let Err(error) = self.ask(ADD_CLIENT, OPEN, Some((&socket, wanted))).await
            {
                let path = self.path.display();
                log::warn(format_args!("log {path}: a client hears no more: {error}"));
            }
        }
    }

    /// No stream will be added, and no request made; the process ends with its streams.
    pub(super) fn finish(&self) {
        let mut inner = self.inner();
        inner.finished = true;
        inner.socket = None;
        inner.sources.clear();
        self.done.notify_one();
    }

    fn fork(&self, reaper: &Reaper) -> io::Result<Child> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let ours = watch(ours, Interest::READABLE)?;
        let parent = getpid();
        let mut inner = self.inner();
        let quiet = ForkOptions { quiet: true, ..ForkOptions::default() };
        let child = fork(&quiet, |child| {
            let process = Process::new(&self.path, &inner.sources, theirs.as_fd());
            u8::from(process.run(child, parent).is_err())
        });
        let child = child.map_err(|error| io::Error::from(error.errno()))?;
        inner.socket = Some(Arc::new(ours));
        Ok(reaper.know(child.pid.as_raw().unsigned_abs(), child.pidfd))
    }

    /// Waits for the process's end, and starts another if that was not wanted.
    async fn follow(&self, mut child: Child, reaper: &Reaper) {
        loop {
            let exit = self.end_of(child, reaper).await;
            if self.inner().finished {
                return;
            }
            let (path, code) = (self.path.display(), exit.code);
            log::warn(format_args!("the writer of log {path} ended with {code}: another follows"));
            let Some(next) = self.successor(reaper).await else { return };
            child = next;
        }
    }

    /// Starts another process, as soon as one can open the log: until then the container may
    /// have to wait, and nobody else would see to it. `None` if no more is wanted.
    async fn successor(&self, reaper: &Reaper) -> Option<Child> {
        let (path, mut pause) = (self.path.display(), AGAIN.0);
        loop {
            sleep(pause).await;
            if self.inner().finished {
                return None;
            }
            match self.fork(reaper) {
                Ok(child) => match self.ask(OPEN_LOG, OPEN, None).await {
                    Ok(()) => {
                        self.give_again().await;
                        return Some(child);
                    }
                    // It hangs, and opens the log when that is possible.
                    Err(error) if error.raw_os_error() == Some(Errno::ETIMEDOUT as i32) => {
                        log::warn(format_args!("open log {path} in a new writer: {error}"));
                        return Some(child);
                    }
                    Err(error) => {
                        log::warn(format_args!("open log {path} in a new writer: {error}"));
                        child.kill();
                        reaper.wait(child).await;
                    }
                },
                Err(error) => log::warn(format_args!("log {path} has no writer: {error}")),
            }
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// Waits for the end of a process, which is made to end if it takes too long to write
    /// what a forgotten container has said.
    async fn end_of(&self, child: Child, reaper: &Reaper) -> Exit {
        let pidfd = child.pidfd();
        let ended = reaper.wait(child);
        tokio::pin!(ended);
        tokio::select! {
            exit = &mut ended => return exit,
            () = self.done.notified() => {}
        }
        if let Ok(exit) = timeout(LINGER, &mut ended).await {
            return exit;
        }
        let path = self.path.display();
        log::warn(format_args!("log {path} takes no more: its last lines are lost"));
        if let Ok(pidfd) = pidfd {
            send_signal(pidfd.as_fd(), Signal::SIGKILL as i32).ok();
        }
        ended.await
    }

    async fn ask(
        &self,
        what: u8,
        limit: Duration,
        client: Option<(&OwnedFd, Wanted)>,
    ) -> io::Result<()> {
        let socket = self.inner().socket.clone();
        let socket = socket.ok_or_else(|| io::Error::from(Errno::EPIPE))?;
        let answer = timeout(limit, async {
            let mut number = self.turn.lock().await;
            *number = number.wrapping_add(1);
            send_request(socket.get_ref().0.as_fd(), what, *number, client)?;
            loop {
                let mut answer = [0; 8];
                let read = |fd: &Watched<OwnedFd>| {
                    Ok(recv(fd.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?)
                };
                if socket.async_io(Interest::READABLE, read).await? < answer.len() {
                    return Err(io::Error::from(Errno::EPIPE));
                }
                let [n0, n1, n2, n3, e0, e1, e2, e3] = answer;
                if u32::from_le_bytes([n0, n1, n2, n3]) == *number {
                    return match i32::from_le_bytes([e0, e1, e2, e3]) {
                        0 => Ok(()),
                        errno => Err(Errno::from_raw(errno).into()),
                    };
                }
            }
        });
        answer.await.unwrap_or_else(|_| Err(Errno::ETIMEDOUT.into()))
    }
}

/// Sends a request, and with it a descriptor (`SCM_RIGHTS`, unix(7)).
fn send_request(
    socket: BorrowedFd<'_>,
    what: u8,
    number: u32,
    client: Option<(&OwnedFd, Wanted)>,
) -> io::Result<()> {
    let wanted =
        client.map_or(0, |(_, Wanted { stdout, stderr })| u8::from(stdout) | u8::from(stderr) << 1);
    let [n0, n1, n2, n3] = number.to_le_bytes();
    let packet: [u8; REQUEST] = [what, wanted, n0, n1, n2, n3];
    let client = client.map(|(socket, _)| [socket.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if let Some(client) = &client {
        rights.push(SendAncillaryMessage::ScmRights(client));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&packet)], &mut rights, flags)?;
    Ok(())
}

/// Receives a request, if there is one.
fn receive_request(socket: BorrowedFd<'_>) -> Result<([u8; REQUEST], Option<OwnedFd>), Errno> {
    let mut packet = [0; REQUEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut packet)];
    let received = recvmsg(socket, &mut parts, &mut rights, flags);
    let received = received.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    let client = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    if received.bytes == REQUEST { Ok((packet, client)) } else { Err(Errno::EPIPE) }
}

/// The forked child's side.
struct Process<'a> {
    path: &'a Path,
    log: Option<Arc<LogFile>>,
    outlets: Arc<Outlets>,
    sources: Vec<Source<'a>>,
    requests: Option<BorrowedFd<'a>>,
}

struct Source<'a> {
    fd: BorrowedFd<'a>,
    stream: Stream,
    feed: Option<Feed>,
    ended: bool,
}

impl<'a> Process<'a> {
    fn new(path: &'a Path, sources: &'a [(OwnedFd, Stream)], requests: BorrowedFd<'a>) -> Self {
        let source = |(fd, stream): &'a (OwnedFd, Stream)| Source {
            fd: fd.as_fd(),
            stream: *stream,
            feed: None,
            ended: false,
        };
        let sources = sources.iter().map(source).collect();
        Self { path, log: None, outlets: Arc::default(), sources, requests: Some(requests) }
    }

    /// Serves until the shim is done with it, and every stream has ended.
    fn run(mut self, child: &InChild, parent: Pid) -> Result<(), Errno> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(Errno::ESRCH);
        }
        // The shim's handlers write to a descriptor that is about to be closed. And nothing
        // but SIGKILL ends a writer: a node that shuts down signals everybody, and what
        // the container says then is worth keeping.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        let mut keep: Vec<BorrowedFd<'_>> = self.sources.iter().map(|source| source.fd).collect();
        keep.extend(self.requests);
        close_all_but(child, &keep)?;
        prctl::set_name(c"berth-log")?;
        while self.requests.is_some() || self.sources.iter().any(|source| !source.ended) {
            self.wait()?;
            self.serve_request();
            for source in &mut self.sources {
                source.step();
            }
        }
        Ok(())
    }

    /// Waits for a request or a byte, or for a client to go. Streams are read once there is
    /// a log.
    fn wait(&self) -> Result<(), Errno> {
        let read = |source: &&Source<'_>| source.feed.is_some() && !source.ended;
        let fds = self.sources.iter().filter(read).map(|source| source.fd).chain(self.requests);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let clients = self.outlets.snapshot();
        // That a client is gone is told without being asked for (poll(2)).
        fds.extend(clients.iter().map(|outlet| PollFd::new(outlet.socket(), PollFlags::empty())));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        let polled = fds.iter().skip(fds.len() - clients.len());
        for (outlet, _) in clients.iter().zip(polled).filter(|(_, fd)| fd.any() == Some(true)) {
            self.outlets.remove(outlet);
        }
        Ok(())
    }

    fn serve_request(&mut self) {
        let Some(requests) = self.requests else { return };
        match receive_request(requests) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(([what, wanted, n0, n1, n2, n3], client)) => {
                let done = match what {
                    OPEN_LOG => self.open(),
                    ADD_CLIENT => {
                        self.add_client(client, wanted);
                        Ok(())
                    }
                    _ => {
                        self.drain();
                        Ok(())
                    }
                };
                let errno =
                    done.err().map_or(0, |error| error.raw_os_error().unwrap_or(nix::libc::EIO));
                let [e0, e1, e2, e3] = errno.to_le_bytes();
                let answer = [n0, n1, n2, n3, e0, e1, e2, e3];
                // A shim that is gone wants no answer.
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                send(requests.as_raw_fd(), &answer, flags).ok();
            }
            Err(_) => {
                self.requests = None;
                if self.log.is_none() {
                    // Nothing can be written: nothing is left to be done.
                    self.sources.clear();
                }
            }
        }
    }

    fn add_client(&self, socket: Option<OwnedFd>, wanted: u8) {
        if let Some(socket) = socket {
            let wanted = Wanted { stdout: wanted & 1 != 0, stderr: wanted & 2 != 0 };
            self.outlets.add(Arc::new(Outlet::new(Arc::new(socket), wanted)));
        }
    }

    fn open(&mut self) -> io::Result<()> {
        if let Some(log) = &self.log {
            return log.reopen();
        }
        let log = Arc::new(LogFile::open(self.path)?);
        for source in &mut self.sources {
            let (log, outlets) = (Arc::clone(&log), Arc::clone(&self.outlets));
            source.feed = Some(Feed::new(source.stream, Some(log), outlets));
        }
        self.log = Some(log);
        Ok(())
    }

    fn drain(&mut self) {
        for source in &mut self.sources {
            for _ in 0..super::pump::MOST {
                if !source.step() {
                    break;
                }
            }
        }
        // The container has ended, and its clients are told so next, by the shim: it does not
        // know what did not fit.
        self.outlets.tell_last();
    }
}

impl Source<'_> {
    /// Writes one chunk; whether there may be more.
    fn step(&mut self) -> bool {
        let Some(feed) = self.feed.as_ref().filter(|_| !self.ended) else { return false };
        let progress = feed.step(self.fd);
        self.ended = progress == Progress::Ended;
        progress == Progress::More
    }
}
