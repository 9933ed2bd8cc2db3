//! The shim itself, from its fork to its end.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use berth_sys::descriptor::close_on_exec_from;
use futures_util::Stream;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::socket::{Backlog, listen};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use ttrpc::asynchronous::{Server, transport::Listener};

use crate::error::Error;
use crate::events::Publisher;
use crate::log;
use crate::sandbox;
use crate::service;
use crate::shim::Shim;

/// Time for the answer to the request that ended the shim to be written.
const FAREWELL: Duration = Duration::from_millis(20);
/// How long a shim waits for its first sandbox or container: much longer than whoever started
/// it waits for the answers. A test may say how many seconds.
const UNUSED: Duration = Duration::from_secs(60);
const UNUSED_SECONDS: &str = "BERTH_SHIM_UNUSED";
/// Killed after every workload, before berthd (-999).
const OOM_SCORE: &str = "-998";

/// A shim about to run.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) id: String,
    pub(crate) namespace: String,
    /// Where events go; empty for nowhere.
    pub(crate) events: String,
    pub(crate) socket: PathBuf,
    pub(crate) log: Log,
}

/// Where the shim's own log goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Log {
    /// The standard error it was started with: a file of berthd's.
    Inherited,
    /// containerd's FIFO `log` in the bundle, the working directory.
    Fifo,
}

impl Daemon {
    /// Runs the shim to its end; its exit code. `report` is told of success or failure.
    pub(crate) fn run(self, listener: UnixListener, report: OwnedFd) -> u8 {
        // Before the event loop takes numbers of its own.
        let runtime = self.prepare(&listener).and_then(|()| sandbox::reserve()).and_then(|place| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let made = builder.enable_all().build();
            let runtime = made.map_err(|source| Error::Io("make event loop", source))?;
            Ok((runtime, place))
        });
        let served = runtime.and_then(|(runtime, place)| {
            runtime
                .block_on(async {
                    let shim = self.serve(listener, place).await?;
                    Ok::<_, Error>((shim, &report))
                })
                .map(|(serving, _)| (runtime, serving))
        });
        match served {
            Ok((runtime, (shim, server))) => {
                tell(report, b"\0");
                runtime.block_on(async {
                    until_done(&shim).await;
                    sleep(FAREWELL).await;
                    drop(server);
                });
                drop(std::fs::remove_file(&self.socket));
                0
            }
            Err(error) => {
                tell(report, error.chain().as_bytes());
                1
            }
        }
    }

    fn prepare(&self, listener: &UnixListener) -> Result<(), Error> {
        let failed = |what| move |errno: Errno| Error::Syscall(what, errno);
        setsid().map_err(failed("make session"))?;
        prctl::set_child_subreaper(true).map_err(failed("become subreaper"))?;
        prctl::set_dumpable(false).map_err(failed("become undumpable"))?;
        close_on_exec_from(3).map_err(failed("mark descriptors"))?;
        umask(Mode::from_bits_truncate(0o022));
        join_cgroups()?;
        // Lowering it may not be allowed: then it stays as it was.
        drop(std::fs::write("/proc/self/oom_score_adj", OOM_SCORE));
        self.redirect().map_err(|source| Error::Io("redirect standard streams", source))?;
        std::env::set_current_dir("/").map_err(|source| Error::Io("leave the bundle", source))?;
        // Again, by this process: the peers' SO_PEERCRED is who listened last (unix(7)).
        let backlog = Backlog::new(128).map_err(failed("listen"))?;
        listen(listener, backlog).map_err(failed("listen"))
    }

    /// The caller reads `start`'s output to its end, so the shim must not hold it open.
    fn redirect(&self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        if self.log == Log::Fifo {
            // Reading too: the shim survives a containerd that goes and comes back.
            let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
            let fifo = OpenOptions::new().read(true).write(true).custom_flags(flags).open("log");
            match fifo {
                Ok(fifo) if fifo.metadata()?.file_type().is_fifo() => dup2_stderr(&fifo)?,
                _ => dup2_stderr(&null)?,
            }
        }
        Ok(())
    }

    async fn serve(
        &self,
        listener: UnixListener,
        place: Option<OwnedFd>,
    ) -> Result<(std::sync::Arc<Shim>, Server), Error> {
        let shim = Shim::new(&self.id, Publisher::new(&self.events, &self.namespace));
        shim.sandbox.keep(place);
        listener.set_nonblocking(true).map_err(|source| Error::Io("listen", source))?;
        let listener = tokio::net::UnixListener::from_std(listener);
        let listener = listener.map_err(|source| Error::Io("listen", source))?;
        let mut server = Server::new()
            .add_listener(Listener::new(roots(listener)))
            .register_service(service::all(&shim));
        let started = server.start().await;
        started.map_err(|error| Error::Io("serve", io::Error::other(error)))?;
        Ok((shim, server))
    }
}

/// The connections that root makes, who alone may open the socket: it may have been made
/// anybody's.
fn roots(listener: tokio::net::UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) => {
                    return Some((Ok(stream), listener));
                }
                Ok(_) => {}
                Err(error) => return Some((Err(error), listener)),
            }
        }
    })
}

/// A caller that is gone already needs no words.
fn tell(report: OwnedFd, words: &[u8]) {
    nix::unistd::write(&report, words).ok();
}

/// Joins the cgroups whose `tasks` or `cgroup.procs` berthd has opened and named.
fn join_cgroups() -> Result<(), Error> {
    let Ok(numbers) = std::env::var("BERTH_CGROUP_FDS") else { return Ok(()) };
    for number in numbers.split(',') {
        let failed = |source| Error::Io("join cgroup", source);
        let number: i32 = number
            .parse()
            .map_err(|_| Error::invalid("BERTH_CGROUP_FDS", format!("{numbers:?}")))?;
        let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{number}"));
        io::Write::write_all(&mut file.map_err(failed)?, b"0").map_err(failed)?;
        nix::unistd::close(number).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// Waits for the request to end, or for SIGTERM and then for the last container's end: a
/// node that shuts down signals everybody, and who waits is told the exit codes of those
/// that obey. Who does not wait finds them in the bundles ([`crate::end`]). A shim that
/// nobody has used in time ends too: whoever started it has died.
async fn until_done(shim: &Shim) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return shim.finished.notified().await;
    };
    tokio::select! {
        () = shim.finished.notified() => return,
        () = unused(shim) => {
            return log::warn(format_args!("nobody has used shim {}: it ends", shim.id));
        }
        _ = terminate.recv() => {}
    }
    if shim.is_busy() {
        log::warn(format_args!("asked to end, waiting for the containers of {}", shim.id));
    }
    tokio::select! {
        () = shim.finished.notified() => {}
        () = shim.idle() => {}
    }
}

/// Waits until it is clear that nobody wants this shim; for ever if somebody does, and then
/// without a timer, which would wake an idle shim up.
async fn unused(shim: &Shim) {
    let told = std::env::var(UNUSED_SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    let until = Instant::now() + told.map_or(UNUSED, Duration::from_secs);
    loop {
        let used = shim.use_changed.notified();
        if shim.is_used() {
            used.await;
            continue;
        }
        tokio::select! {
            () = used => {}
            () = sleep_until(until) => {
                if !shim.is_used() {
                    return;
                }
            }
        }
    }
}
