//! What moves bytes: a pipe or terminal into a CRI log, and a terminal to and from FIFOs.
//!
//! Nothing is held between two wake-ups but an unfinished line: an idle container costs
//! no buffer. A chunk is read, framed and written in one step without a pause, so the
//! lines of two streams never mix within a line. Writing to a log file may block the shim's
//! thread for a moment, when the kernel throttles dirty pages; after a slow write other work
//! has its turn.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::frame::{Framer, Stream, rfc3339};
use super::logfile::LogFile;
use super::outlet::Outlets;
use super::{Watched, set_nonblocking, watch};

/// Bytes read at once: half of a pipe's default size.
const CHUNK: usize = 32 << 10;
/// Chunks read before other work of the shim has its turn, and the time they may take.
const TURN: usize = 8;
const SLICE: Duration = Duration::from_millis(10);
/// Chunks in a pipe of the largest size that an unprivileged process can give it (pipe(7)).
pub(super) const MOST: usize = (1 << 20) / CHUNK;
/// Bytes framed before they are written: a chunk of line feeds grows forty-fold.
const BATCH: usize = 2 << 10;
/// Bytes of lines that are written at once.
const WRITE: usize = 32 << 10;

/// Makes log lines of a stream's bytes, and gives them to who is attached.
#[derive(Debug)]
pub(super) struct Feed {
    framer: Mutex<Framer>,
    /// `None`: nobody keeps the output.
    file: Option<Arc<LogFile>>,
    outlets: Arc<Outlets>,
}

/// What came of reading once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    More,
    Blocked,
    Ended,
}

impl Feed {
    pub(super) fn new(stream: Stream, file: Option<Arc<LogFile>>, outlets: Arc<Outlets>) -> Self {
        Self { framer: Mutex::new(Framer::new(stream)), file, outlets }
    }

    /// Reads one chunk, and writes its lines.
    pub(super) fn step(&self, from: BorrowedFd<'_>) -> Progress {
        let mut chunk = vec![0; CHUNK];
        let mut framer = self.framer.lock().unwrap_or_else(PoisonError::into_inner);
        let read = loop {
            match nix::unistd::read(from, &mut chunk) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Progress::Blocked,
                // EIO: no process has the terminal open any more (pty(7)).
                Err(_) => break 0,
                Ok(read) => break read,
            }
        };
        self.log(&mut framer, &chunk[..read]);
        self.outlets.send(framer.stream(), &chunk[..read]);
        if read == 0 { Progress::Ended } else { Progress::More }
    }

    /// Writes the lines of a chunk; an empty one is the end.
    fn log(&self, framer: &mut Framer, chunk: &[u8]) {
        let Some(file) = &self.file else { return };
        let time = rfc3339(berth_failpoint::now());
        let mut lines = Vec::new();
        for batch in chunk.chunks(BATCH) {
            framer.push(batch, &time, &mut lines);
            if lines.len() >= WRITE {
                file.write(&lines);
                lines.clear();
            }
        }
        if chunk.is_empty() {
            framer.finish(&time, &mut lines);
        }
        file.write(&lines);
    }
}

/// One stream of a process on its way into a log that the shim writes, or to nobody but
/// attached clients.
#[derive(Debug)]
pub(super) struct LogStream {
    fd: AsyncFd<Watched<OwnedFd>>,
    feed: Feed,
}

impl LogStream {
    /// Takes the reading end of a pipe, or a terminal's master.
    pub(super) fn new(fd: OwnedFd, feed: Feed) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let fd = watch(fd, Interest::READABLE)?;
        Ok(Self { fd, feed })
    }

    /// Writes the log until the last writer has closed the stream.
    pub(super) async fn run(self: Arc<Self>) {
        while let Ok(mut ready) = self.fd.readable().await {
            match self.steps(TURN).1 {
                Progress::More => tokio::task::yield_now().await,
                Progress::Blocked => ready.clear_ready(),
                Progress::Ended => return,
            }
        }
    }

    /// Writes what the stream holds now, at most what fits a pipe.
    pub(super) async fn drain(&self) {
        let mut left = MOST;
        while left > 0 {
            let (done, progress) = self.steps(TURN.min(left));
            if progress != Progress::More {
                return;
            }
            left -= done;
            tokio::task::yield_now().await;
        }
    }

    /// Reads at most `count` chunks, fewer if they take long: how many.
    fn steps(&self, count: usize) -> (usize, Progress) {
        let begun = Instant::now();
        for done in 1..=count {
            let progress = self.feed.step(self.fd.get_ref().0.as_fd());
            if progress != Progress::More || begun.elapsed() > SLICE {
                return (done, progress);
            }
        }
        (count, Progress::More)
    }
}

/// Copies until either end is closed. The descriptors must not block.
pub(super) async fn copy(
    from: AsyncFd<Watched<OwnedFd>>,
    to: AsyncFd<Watched<OwnedFd>>,
) -> io::Result<()> {
    loop {
        from.readable().await?.retain_ready();
        let mut chunk = vec![0; CHUNK];
        let count = from
            .async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(&fd.0, &mut chunk)?))
            .await?;
        if count == 0 {
            return Ok(());
        }
        write_all(&to, &chunk[..count]).await?;
    }
}

/// As [`copy`]; ends as well when `from` is empty after the sender of `no_more` is gone.
pub(super) async fn copy_until(
    from: AsyncFd<Watched<OwnedFd>>,
    to: AsyncFd<Watched<OwnedFd>>,
    mut no_more: oneshot::Receiver<()>,
) -> io::Result<()> {
    let mut last = false;
    loop {
        let ready = if last {
            None
        } else {
            tokio::select! {
                ready = from.readable() => Some(ready?),
                _ = &mut no_more => {
                    last = true;
                    None
                }
            }
        };
        let mut chunk = vec![0; CHUNK];
        match nix::unistd::read(&from.get_ref().0, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => write_all(&to, &chunk[..count]).await?,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if last => return Ok(()),
            Err(Errno::EAGAIN) => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

async fn write_all(to: &AsyncFd<Watched<OwnedFd>>, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        let written =
            to.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(&fd.0, rest)?)).await?;
        rest = &rest[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use nix::fcntl::OFlag;

    fn stream(dir: &std::path::Path) -> (Arc<LogStream>, OwnedFd) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let file = Arc::new(LogFile::open(&dir.join("log")).unwrap());
        let feed = Feed::new(Stream::Stdout, Some(file), Arc::default());
        (Arc::new(LogStream::new(read, feed).unwrap()), write)
    }

    fn texts(dir: &std::path::Path) -> Vec<String> {
        let log = std::fs::read_to_string(dir.join("log")).unwrap();
        assert!(log.is_empty() || log.ends_with('\n'));
        log.lines().map(|line| line.split_once(" stdout ").unwrap().1.to_owned()).collect()
    }

    #[tokio::test]
    async fn a_stream_is_logged_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, write) = stream(dir.path());
        let task = tokio::spawn(stream.run());
        nix::unistd::write(&write, b"one\ntw").unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(texts(dir.path()), ["F one"]);
        nix::unistd::write(&write, b"o\nthree").unwrap();
        drop(write);
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
        assert_eq!(texts(dir.path()), ["F one", "F two", "P three"]);
    }

    #[tokio::test]
    async fn drain_writes_what_is_there_although_the_stream_stays_open() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, write) = stream(dir.path());
        let mut expected = Vec::new();
        for n in 0..4000 {
            nix::unistd::write(&write, format!("{n:05}\n").as_bytes()).unwrap();
            expected.push(format!("F {n:05}"));
        }
        stream.drain().await;
        assert_eq!(texts(dir.path()), expected);
        let task = tokio::spawn(Arc::clone(&stream).run());
        drop(write);
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
        assert_eq!(texts(dir.path()).len(), 4000);
    }

    #[tokio::test]
    async fn a_chunk_of_line_feeds_is_all_empty_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, write) = stream(dir.path());
        nix::unistd::write(&write, &[b'\n'; 60_000]).unwrap();
        stream.drain().await;
        let texts = texts(dir.path());
        assert_eq!(texts.len(), 60_000);
        assert!(texts.iter().all(|text| text == "F "));
    }

    #[tokio::test]
    async fn copy_ends_with_its_source() {
        let pipe = || {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
            (watch(read, Interest::READABLE).unwrap(), write)
        };
        let ((first, input), (output, second)) = (pipe(), pipe());
        let task = tokio::spawn(copy(first, watch(second, Interest::WRITABLE).unwrap()));
        // More than the pipe behind it holds, so that the copy has to wait for its reader.
        let text = b"0123456789abcdef".repeat(3 << 10);
        nix::unistd::write(&input, &text).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        nix::unistd::write(&input, &text).unwrap();
        drop(input);
        let mut copied = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let read = output
                .async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(&fd.0, &mut chunk)?))
                .await
                .unwrap();
            if read == 0 {
                break;
            }
            copied.extend_from_slice(&chunk[..read]);
        }
        task.await.unwrap().unwrap();
        assert!(copied == text.repeat(2));
    }
}
