//! Opens a process's streams and keeps this side of them while it lives.

mod clients;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use berth_oci_runtime::Stdio;
use nix::fcntl::OFlag;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK, O_PATH};
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) use self::clients::Client;
use super::attached::Stdin;
use super::frame::Stream;
use super::logfile::LogFile;
use super::outlet::Outlets;
use super::place::is_served_by_others;
use super::pump::{Feed, LogStream, copy, copy_until};
use super::uri::{Sink, Source, Uris};
use super::writer::Writer;
use super::{set_nonblocking, watch};
use crate::error::Error;
use crate::reaper::Reaper;

/// Streams that were opened: one side goes to the process, one stays.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stdio: Stdio,
    pub(crate) streams: Streams,
}

/// The shim's side of one process's streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    log: Option<Log>,
    logged: Vec<Arc<LogStream>>,
    /// Clients that hear what the shim reads.
    outlets: Arc<Outlets>,
    /// FIFOs between a terminal and the caller: input, then output.
    terminal: Option<(Option<OwnedFd>, Option<OwnedFd>)>,
    inner: Mutex<Inner>,
}

/// Who writes a log.
#[derive(Clone, Debug)]
enum Log {
    /// The shim.
    Own(Arc<LogFile>),
    /// A process, since writing may hang.
    Writer(Arc<Writer>),
}

impl Log {
    /// The file, if the shim writes it.
    fn own(&self) -> Option<Arc<LogFile>> {
        match self {
            Self::Own(file) => Some(Arc::clone(file)),
            Self::Writer(_) => None,
        }
    }
}

/// An input that nobody but attached clients writes to.
#[derive(Debug, Default)]
enum Held {
    /// There is none, or no more.
    #[default]
    Nothing,
    /// The pipe, while nobody was ever attached.
    Pipe(OwnedFd),
    /// The terminal, likewise.
    Terminal,
    /// Either, once somebody was.
    Watched(Stdin),
}

#[derive(Debug, Default)]
struct Inner {
    held: Held,
    /// Keeps the process's input from ending: a caller that goes away may come back.
    stdin: Option<OwnedFd>,
    /// The caller's FIFO, not open yet, and the pipe that it will be copied to.
    piped: Option<(File, OwnedFd)>,
    /// Dropped when the input shall end with what is in the FIFO.
    more: Option<oneshot::Sender<()>>,
    /// Whether the caller has closed the input.
    closed: bool,
    /// Keep the caller's FIFOs from breaking while the caller is away.
    kept: Vec<OwnedFd>,
    console: Option<OwnedFd>,
    outputs: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
    /// Dropped to tell the clients of the end.
    clients: Vec<oneshot::Sender<()>>,
    /// Whether the process has ended, and its output.
    ended: bool,
}

impl Streams {
    /// Opens what `uris` name. `keep` holds output FIFOs open on this side too: a
    /// container survives a caller that restarts; an added process ends with its caller.
    pub(crate) fn open(uris: &Uris, keep: bool) -> Result<Opened, Error> {
        let (source, (stdout, stderr)) = (uris.source()?, uris.sinks()?);
        let mut streams = Self::default();
        let stdio = if uris.terminal {
            streams.open_terminal(source, stdout)?;
            Stdio::Terminal
        } else {
            Stdio::Fds {
                stdin: streams.open_source(&source)?,
                stdout: streams.open_sink(stdout, Stream::Stdout, keep)?,
                stderr: streams.open_sink(stderr, Stream::Stderr, keep)?,
            }
        };
        Ok(Opened { stdio, streams })
    }

    /// Begins to move bytes, once the process exists; `console` is its terminal's master.
    pub(crate) async fn attach(
        &mut self,
        console: Option<OwnedFd>,
        reaper: &Arc<Reaper>,
    ) -> Result<(), Error> {
        let failed = |source| Error::Io("watch a process's streams", source);
        if let Some(console) = console {
            self.attach_console(console).map_err(failed)?;
        }
        if let Some(Log::Writer(writer)) = &self.log {
            let started = writer.start(reaper).await;
            started.map_err(|source| unopened(writer.path(), source))?;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in &self.logged {
            inner.outputs.push(tokio::spawn(Arc::clone(stream).run()));
        }
        Ok(())
    }

    fn attach_console(&mut self, console: OwnedFd) -> io::Result<()> {
        set_nonblocking(&console)?;
        let (input, output) = self.terminal.take().unwrap_or_default();
        let (copied, mut outputs) = (console.try_clone()?, Vec::new());
        match (&self.log, output) {
            (Some(Log::Writer(writer)), _) => writer.add(copied, Stream::Stdout),
            (None, Some(output)) => {
                let to = watch(output, Interest::WRITABLE)?;
                let copying = copy(watch(copied, Interest::READABLE)?, to);
                outputs.push(tokio::spawn(async move { drop(copying.await) }));
            }
            (log, _) => {
                let file = log.as_ref().and_then(Log::own);
                let feed = Feed::new(Stream::Stdout, file, Arc::clone(&self.outlets));
                self.logged.push(Arc::new(LogStream::new(copied, feed)?));
            }
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.outputs = outputs;
        if let Some(input) = input {
            let to = watch(console.try_clone()?, Interest::WRITABLE)?;
            let copying = copy(watch(input, Interest::READABLE)?, to);
            inner.input = Some(tokio::spawn(async move { drop(copying.await) }));
        }
        inner.console = Some(console);
        Ok(())
    }

    /// Begins to copy the input when the process starts. Not sooner: until a FIFO has a
    /// reader its writers wait, so a client that reaches the end of its own input before
    /// it knows of the process (containerd issue 4489) still closes it afterwards.
    pub(crate) fn begin_input(&self) -> Result<(), Error> {
        let failed = |source| Error::Io("open standard input", source);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((fifo, pipe)) = inner.piped.take() else { return Ok(()) };
        let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
        let open = |how: &mut OpenOptions| how.custom_flags(O_NONBLOCK).open(&path);
        // The reader first: poll(2) tells it of the end of writers that came after it.
        let reader = open(OpenOptions::new().read(true)).map_err(failed)?;
        let writer = open(OpenOptions::new().write(true)).map_err(failed)?;
        let from = watch(reader.into(), Interest::READABLE).map_err(failed)?;
        let to = watch(pipe, Interest::WRITABLE).map_err(failed)?;
        let (more, no_more) = oneshot::channel();
        inner.input = Some(tokio::spawn(async move { drop(copy_until(from, to, no_more).await) }));
        if !inner.closed {
            inner.stdin = Some(writer.into());
            inner.more = Some(more);
        }
        Ok(())
    }

    /// Opens the log anew after its file was renamed.
    pub(crate) async fn reopen_log(&self) -> Result<(), Error> {
        let opened = match &self.log {
            None => return Err(Error::invalid("container_id", "it has no CRI log")),
            Some(Log::Own(file)) => file.reopen(),
            Some(Log::Writer(writer)) => writer.reopen().await,
        };
        opened.map_err(|source| Error::Io("open the log anew", source))
    }

    /// Ends the process's input, after what was written to it.
    pub(crate) fn close_stdin(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed = true;
        inner.stdin = None;
        inner.more = None;
        // A terminal is no pipe: its input has no end.
        if inner.console.is_none() {
            inner.held = Held::Nothing;
        }
    }

    /// Tells the terminal its size, in characters.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<(), Error> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let console = inner.console.as_ref();
        let console = console.ok_or_else(|| Error::invalid("id", "the process has no terminal"))?;
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console, size)
            .map_err(|errno| Error::Io("resize terminal", errno.into()))
    }

    /// After the process's end: what it has written is logged when this returns, unless the
    /// log hangs, and nothing keeps its FIFOs open.
    pub(crate) async fn ended(&self) {
        for stream in &self.logged {
            stream.drain().await;
        }
        if let Some(Log::Writer(writer)) = &self.log {
            writer.drain().await;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.stdin = None;
        inner.held = Held::Nothing;
        inner.kept.clear();
        inner.ended = true;
        inner.clients = Vec::new();
        if let Some(input) = inner.input.take() {
            input.abort();
        }
    }

    /// What still moves bytes after the process's end: its orphans may write on.
    pub(crate) fn take_outputs(&self) -> Vec<JoinHandle<()>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.console = None;
        std::mem::take(&mut inner.outputs)
    }

    fn open_terminal(&mut self, source: Source, stdout: Sink) -> Result<(), Error> {
        let input = match source {
            Source::Null => None,
            Source::Hold => {
                let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
                inner.held = Held::Terminal;
                None
            }
            Source::Fifo(path) => Some(both(&path)?.into()),
        };
        let output = match stdout {
            Sink::Null | Sink::Drain => None,
            Sink::Fifo(path) => Some(both(&path)?.into()),
            Sink::File(_) => return Err(Error::Unimplemented("a terminal with a file:// output")),
            Sink::CriLog(path) => {
                self.log(&path)?;
                None
            }
        };
        self.terminal = Some((input, output));
        Ok(())
    }

    fn open_source(&mut self, source: &Source) -> Result<OwnedFd, Error> {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        match source {
            Source::Null => null(),
            Source::Hold => {
                let (read, write) = pipe()?;
                inner.held = Held::Pipe(write);
                Ok(read)
            }
            Source::Fifo(path) => {
                let fifo = fifo(path, OpenOptions::new().read(true), O_PATH)?;
                let (read, write) = pipe()?;
                set_nonblocking(&write).map_err(|source| Error::Io("make pipe", source))?;
                inner.piped = Some((fifo, write));
                Ok(read)
            }
        }
    }

    fn open_sink(&mut self, sink: Sink, stream: Stream, keep: bool) -> Result<OwnedFd, Error> {
        match sink {
            Sink::Null => null(),
            Sink::Fifo(path) => {
                let both = both(&path)?;
                let write = writer(&both, &path)?;
                if keep {
                    let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
                    inner.kept.push(both.into());
                }
                Ok(write)
            }
            Sink::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .open(&path)
                .map(OwnedFd::from)
                .map_err(|source| Error::Path { what: "open", path, source }),
            Sink::Drain => {
                let (read, write) = pipe()?;
                self.read(read, stream, None)?;
                Ok(write)
            }
            Sink::CriLog(path) => {
                let (read, write) = pipe()?;
                match self.log(&path)? {
                    Log::Own(file) => self.read(read, stream, Some(file))?,
                    Log::Writer(writer) => {
                        set_nonblocking(&read).map_err(unwatched)?;
                        writer.add(read, stream);
                    }
                }
                Ok(write)
            }
        }
    }

    /// Has the shim read a pipe.
    fn read(
        &mut self,
        pipe: OwnedFd,
        stream: Stream,
        file: Option<Arc<LogFile>>,
    ) -> Result<(), Error> {
        let feed = Feed::new(stream, file, Arc::clone(&self.outlets));
        self.logged.push(Arc::new(LogStream::new(pipe, feed).map_err(unwatched)?));
        Ok(())
    }

    /// The log at `path`: both streams share one, and its one file.
    fn log(&mut self, path: &Path) -> Result<Log, Error> {
        if let Some(log) = &self.log {
            return Ok(log.clone());
        }
        let log = if path.parent().is_some_and(is_served_by_others) {
            Log::Writer(Writer::new(path))
        } else {
            let file = LogFile::open(path).map_err(|source| unopened(path, source))?;
            Log::Own(Arc::new(file))
        };
        self.log = Some(log.clone());
        Ok(log)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        for task in inner.outputs.drain(..).chain(inner.input.take()) {
            task.abort();
        }
        if let Some(Log::Writer(writer)) = &self.log {
            writer.finish();
        }
    }
}

fn unwatched(source: io::Error) -> Error {
    Error::Io("watch a pipe", source)
}

fn unopened(path: &Path, source: io::Error) -> Error {
    Error::Path { what: "open log", path: path.to_owned(), source }
}

fn null() -> Result<OwnedFd, Error> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null");
    Ok(file.map_err(|source| Error::Io("open /dev/null", source))?.into())
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::Syscall("make pipe", errno))
}

/// Opens both ends of a FIFO, which waits for nobody and never ends (fifo(7)).
fn both(path: &Path) -> Result<File, Error> {
    fifo(path, OpenOptions::new().read(true).write(true), O_NONBLOCK)
}

/// Opens a FIFO; `flags` must be such that this waits for nobody.
fn fifo(path: &Path, how: &mut OpenOptions, flags: i32) -> Result<File, Error> {
    let failed = |source| Error::Path { what: "open FIFO", path: path.to_owned(), source };
    let file = how.custom_flags(flags | O_NOFOLLOW).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.file_type().is_fifo() {
        return Err(Error::invalid("stdio", format!("{} is not a FIFO", path.display())));
    }
    Ok(file)
}

/// Opens the writing end of the FIFO behind `both`, in blocking mode for the process that
/// gets it. `both` is open, so this waits for nobody; the path is not walked a second time.
fn writer(both: &File, path: &Path) -> Result<OwnedFd, Error> {
    let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", both.as_raw_fd()));
    let failed = |source| Error::Path { what: "open FIFO", path: path.to_owned(), source };
    Ok(file.map_err(failed)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use nix::pty::openpty;

    #[tokio::test]
    async fn a_terminal_that_nobody_reads_takes_any_output() {
        let uris = Uris { terminal: true, ..Uris::default() };
        let Opened { mut streams, .. } = Streams::open(&uris, true).unwrap();
        let pair = openpty(None, None).unwrap();
        streams.attach(Some(pair.master), &Arc::default()).await.unwrap();
        // More than a terminal holds, in a thread of its own, for it blocks when it is full.
        let slave = pair.slave;
        let writer = tokio::task::spawn_blocking(move || {
            for _ in 0..64 {
                assert_eq!(nix::unistd::write(&slave, &[b'x'; 1024]).unwrap(), 1024);
            }
        });
        tokio::time::timeout(Duration::from_secs(10), writer).await.unwrap().unwrap();
    }
}
