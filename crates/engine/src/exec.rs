//! A command in a running container, to its end.
//!
//! Its output comes through two FIFOs in a directory of its own. It ends with its client:
//! whatever drops the future has the process killed, by the shim or without it; what a
//! daemon did not live to end, the next one does.

mod end;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::{ContainerId, ErrorKind, ExecId, SandboxId};
use berth_shim_client::{ExecRequest, Exited, Input, Output, Process, ProcessId, Shim};
use nix::sys::stat::Mode;
use oci_spec::runtime::Spec;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument as _, debug_span};

pub(crate) use self::end::sweep;
use self::end::{CONTAINER, Leftover};
use crate::container::{Container, unless_silent};
use crate::core::{Core, step, step_blocking};
use crate::{Error, ExecOutput, MAX_EXEC_OUTPUT, clock, files};

/// Largest `config.json` read back, bytes.
const MAX_SPEC: u64 = 16 << 20;
/// How long output is read on after the process has ended, in case a child of it keeps
/// the FIFO open.
const DRAIN: Duration = Duration::from_secs(1);
/// How long the shim may take to forget a command that has ended.
const FORGET: Duration = Duration::from_secs(2);
/// Longest that a command without a timeout of its own may run.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs `command`; see [`crate::Engine::exec_sync`].
pub(crate) async fn exec_sync(
    core: &Arc<Core>,
    id: &ContainerId,
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let limit = limit.filter(|limit| !limit.is_zero()).unwrap_or(FOREVER).min(FOREVER);
    let until = Instant::now() + limit;
    let container = core.container(id)?;
    let status = container.status.get();
    if status.pid().is_none() {
        let state = status.state.name();
        return Err(Error::ContainerState { verb: "exec in", id: id.clone(), state });
    }
    let shim = container.sandbox.live_shim("exec")?;
    let late = || Error::Deadline { what: format!("command in container {id}"), limit };
    let run = timeout_at(until, run(core, &container, shim, command));
    let bounded = async {
        tokio::select! {
            ended = run => ended.unwrap_or_else(|_| Err(late())),
            () = core.shutdown.cancelled() => Err(Error::ShuttingDown),
        }
    };
    // A shutdown waits for what it tracks, and so until the command was taken back.
    core.tasks.track_future(bounded).await
}

async fn run(
    core: &Arc<Core>,
    container: &Container,
    shim: Shim,
    command: Vec<String>,
) -> Result<ExecOutput, Error> {
    let exec = ExecId::from_random(clock::random()?);
    let dir = core.config.execs().join(exec.as_str());
    // From here on whatever happens takes back what was made.
    let mut session = Session {
        core: Arc::clone(core),
        shim: shim.clone(),
        container: container.id.clone(),
        exec,
        dir: Directory::at(dir),
        known: false,
        process: None,
        ended: false,
    };
    let (bundle, dir) = (container.bundle.clone(), session.dir.clone());
    let id = container.id.clone();
    step(Point::EXEC_ENTERED).await?;
    let prepare = move || {
        dir.make(&id)?;
        step_blocking(Point::EXEC_FIFOS)?;
        process(&bundle, command)
    };
    let process = core.disk.run(prepare).instrument(debug_span!("prepare")).await??;
    let mut out = Stream::open(&session.stdout())?;
    let mut err = Stream::open(&session.stderr())?;

    session.known = true;
    let sandbox = &container.sandbox.id;
    let started = session.start(process, sandbox).instrument(debug_span!("exec_start")).await;
    // The process has its ends by now, or never will.
    out.let_go();
    err.let_go();
    started?;

    let exited = session.wait(&mut out, &mut err).instrument(debug_span!("exec_wait")).await?;
    session.ended = true;
    step(Point::EXEC_ENDED).await?;
    Ok(ExecOutput { stdout: out.kept, stderr: err.kept, code: exited.code })
}

/// One command: what must go away when its client does.
struct Session {
    core: Arc<Core>,
    shim: Shim,
    container: ContainerId,
    exec: ExecId,
    dir: Directory,
    /// Whether the shim may know of it.
    known: bool,
    /// Its process, once it was started.
    process: Option<ProcessId>,
    /// Whether its process has ended.
    ended: bool,
}

impl Session {
    fn stdout(&self) -> PathBuf {
        self.dir.path.join("out")
    }

    fn stderr(&self) -> PathBuf {
        self.dir.path.join("err")
    }

    fn id(&self) -> Process<'_> {
        Process { container: &self.container, exec: Some(&self.exec) }
    }

    async fn start(&mut self, process: Vec<u8>, sandbox: &SandboxId) -> Result<(), Error> {
        let request = ExecRequest {
            container: self.container.clone(),
            id: self.exec.clone(),
            process,
            terminal: false,
            stdin: Input::Null,
            stdout: Output::Fifo(self.stdout()),
            stderr: Output::Fifo(self.stderr()),
        };
        let failed = |failure| self.failed(failure);
        let started = async {
            let added = self.shim.exec(&request).instrument(debug_span!("task_exec"));
            added.await.map_err(failed)?;
            step(Point::EXEC_ADDED).await?;
            let executed = self.shim.start(self.id()).instrument(debug_span!("task_start"));
            executed.await.map_err(failed)
        };
        let pid = unless_silent(&self.shim, sandbox, failed, started).await?;
        self.process = ProcessId::of(pid).ok();
        step(Point::EXEC_STARTED).await
    }

    fn failed(&self, failure: berth_shim_client::Error) -> Error {
        let id = self.container.clone();
        match failure.exec_failure() {
            Some(message) => Error::ExecSync {
                id,
                message: message.to_owned(),
                kind: match failure.kind() {
                    // To a client "not found" would mean the container.
                    ErrorKind::NotFound | ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
                    kind => kind,
                },
            },
            None => {
                Error::Shim { action: "exec in container", id: id.to_string(), source: failure }
            }
        }
    }

    /// Reads both streams while the process runs, and a little longer.
    async fn wait(&self, out: &mut Stream, err: &mut Stream) -> Result<Exited, Error> {
        let read = async {
            let (out, err) = tokio::join!(out.read(&self.dir.path), err.read(&self.dir.path));
            out.and(err)
        };
        tokio::pin!(read);
        let wait = self.shim.wait(self.id());
        tokio::pin!(wait);
        let exited = tokio::select! {
            exited = &mut wait => {
                // A child of the process may hold the FIFO for ever.
                if let Ok(read) = timeout(DRAIN, &mut read).await {
                    read?;
                }
                exited
            }
            read = &mut read => {
                read?;
                wait.await
            }
        };
        exited.map_err(|failure| self.failed(failure))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let leftover = Leftover {
            core: Arc::clone(&self.core),
            shim: self.shim.clone(),
            container: self.container.clone(),
            exec: self.exec.clone(),
            process: self.process.take(),
            dir: self.dir.clone(),
        };
        let (known, ended) = (self.known, self.ended);
        let clean = async move {
            match (known, ended) {
                (false, _) => leftover.remove_dir().await,
                (true, true) => leftover.forgotten(FORGET).await,
                (true, false) => leftover.end().await,
            }
        };
        // The request is answered before this is done, so it is no part of its span.
        let id = &self.container;
        let span = debug_span!(parent: None, "exec_clean", container.id = %id);
        self.core.tasks.spawn(clean.instrument(span));
    }
}

/// Where the FIFOs are, and the name of the container. A client may go while they are being
/// made, so their removal is final.
#[derive(Clone)]
struct Directory {
    path: PathBuf,
    over: Arc<Mutex<bool>>,
}

impl Directory {
    fn at(path: PathBuf) -> Self {
        Self { path, over: Arc::default() }
    }

    /// Makes it all, unless nobody wants it any more.
    fn make(&self, container: &ContainerId) -> Result<(), Error> {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if *over {
            return Ok(());
        }
        make_fifos(&self.path)?;
        files::write_file(&self.path.join(CONTAINER), container.as_str().as_bytes())
    }

    fn remove(&self) -> Result<(), Error> {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        *over = true;
        files::remove_dir(&self.path)
    }
}

fn make_fifos(dir: &Path) -> Result<(), Error> {
    files::make_dir(dir, 0o700)?;
    step_blocking(Point::EXEC_DIRECTORY)?;
    for name in ["out", "err"] {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| Error::io("make FIFO", &path)(errno.into()))?;
    }
    Ok(())
}

/// The process of the container with other arguments.
fn process(bundle: &Path, command: Vec<String>) -> Result<Vec<u8>, Error> {
    let path = bundle.join("config.json");
    let damaged = |source: serde_json::Error| Error::io("read", &path)(source.into());
    let spec: Spec =
        serde_json::from_slice(&files::read_bounded(&path, MAX_SPEC)?).map_err(damaged)?;
    let missing = || Error::io("read process of", &path)(io::ErrorKind::InvalidData.into());
    let container = spec.process().as_ref().ok_or_else(missing)?;
    let process = berth_spec::exec_process(container, command, false)
        .map_err(|source| Error::Spec { name: name_of(bundle), source })?;
    serde_json::to_vec(&process)
        .map_err(|source| Error::io("write process of", &path)(source.into()))
}

/// A bundle is called as its container is.
fn name_of(bundle: &Path) -> String {
    bundle.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// One output stream: the first bytes are kept, the rest is read and dropped.
struct Stream {
    reader: pipe::Receiver,
    /// Keeps the FIFO from looking closed before the process has opened it.
    holder: Option<pipe::Sender>,
    kept: Vec<u8>,
}

impl Stream {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = || Error::io("open FIFO", path);
        let reader = pipe::OpenOptions::new().open_receiver(path).map_err(failed())?;
        let holder = pipe::OpenOptions::new().open_sender(path).map_err(failed())?;
        Ok(Self { reader, holder: Some(holder), kept: Vec::new() })
    }

    fn let_go(&mut self) {
        self.holder = None;
    }

    async fn read(&mut self, dir: &Path) -> Result<(), Error> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = self.reader.read(&mut buffer).await.map_err(Error::io("read FIFO", dir))?;
            if read == 0 {
                return Ok(());
            }
            let room = MAX_EXEC_OUTPUT - self.kept.len();
            self.kept.extend_from_slice(&buffer[..read.min(room)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let fifos = dir.path().join("fifos");
        make_fifos(&fifos).unwrap();
        let path = fifos.join("out");
        (dir, path)
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_last_writer_is_gone() {
        let (_dir, path) = fifo();
        let mut stream = Stream::open(&path).unwrap();
        let writer = std::fs::File::options().write(true).open(&path).unwrap();
        stream.let_go();
        (&writer).write_all(b"hello").unwrap();
        drop(writer);
        stream.read(&path).await.unwrap();
        assert_eq!(stream.kept, b"hello");
    }

    #[tokio::test]
    async fn d1_output_beyond_the_limit_is_read_and_dropped() {
        let (_dir, path) = fifo();
        let mut stream = Stream::open(&path).unwrap();
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut file = std::fs::File::options().write(true).open(&path).unwrap();
                let chunk = vec![b'y'; 1 << 20];
                for _ in 0..20 {
                    file.write_all(&chunk).unwrap();
                }
            })
        };
        // The writer has opened its end once there is something to read.
        stream.reader.readable().await.unwrap();
        stream.let_go();
        stream.read(&path).await.unwrap();
        writer.join().unwrap();
        assert_eq!(stream.kept.len(), MAX_EXEC_OUTPUT);
    }

    #[test]
    fn fifos_made_late_for_a_client_that_is_gone_are_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Directory::at(parent.path().join("fifos"));
        let container = ContainerId::from_random([7; 32]);
        dir.make(&container).unwrap();
        assert!(dir.path.join("out").exists());
        dir.remove().unwrap();
        dir.make(&container).unwrap();
        assert!(!dir.path.exists());
    }

    #[test]
    fn the_fifos_are_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, path) = fifo();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
    }
}
