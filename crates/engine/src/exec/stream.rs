//! The streams of a command, on this side of their FIFOs.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::{Reader, Writer};
use crate::{Error, MAX_EXEC_OUTPUT};

/// How long output is waited for in all after the process has ended, in case a child of it
/// keeps the FIFO open.
const DRAIN: Duration = Duration::from_secs(1);
/// How much is read after the process has ended: more than a FIFO and a terminal can hold,
/// so that a child which writes on for ever holds up nobody.
const REST: usize = 2 << 20;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Who gets an output.
pub(super) enum Sink {
    /// The first bytes are kept, the rest is dropped.
    Kept(Vec<u8>),
    /// A client; `None` is one that does not want it, or no more.
    Client(Option<Writer>),
}

impl Sink {
    pub(super) fn kept(self) -> Vec<u8> {
        match self {
            Self::Kept(kept) => kept,
            Self::Client(_) => Vec::new(),
        }
    }

    /// Takes `bytes`, as fast as the client does.
    async fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::Kept(kept) => {
                let room = MAX_EXEC_OUTPUT - kept.len();
                kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Self::Client(client) => {
                if let Some(writer) = client
                    && (writer.write_all(bytes).await.is_err() || writer.flush().await.is_err())
                {
                    *client = None;
                }
            }
        }
    }

    /// Tells a client that this was all.
    async fn end(&mut self) {
        if let Self::Client(Some(writer)) = self {
            // Whoever has closed it knows.
            writer.shutdown().await.ok();
        }
    }
}

/// An output: what the process writes into the FIFO goes to the sink.
pub(super) struct Output {
    reader: pipe::Receiver,
    /// Keeps the FIFO from looking closed before the process has opened it.
    holder: Option<pipe::Sender>,
    sink: Sink,
}

impl Output {
    pub(super) fn open(path: &Path, sink: Sink) -> Result<Self, Error> {
        let failed = || Error::io("open FIFO", path);
        let reader = pipe::OpenOptions::new().open_receiver(path).map_err(failed())?;
        let holder = pipe::OpenOptions::new().open_sender(path).map_err(failed())?;
        Ok(Self { reader, holder: Some(holder), sink })
    }

    pub(super) fn let_go(&mut self) {
        self.holder = None;
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
    }

    /// Reads until nobody has the FIFO open; a while longer than the process at most.
    pub(super) async fn read(
        &mut self,
        dir: &Path,
        ended: &CancellationToken,
    ) -> Result<(), Error> {
        let mut buffer = vec![0; CHUNK];
        let (mut patience, mut left) = (DRAIN, REST);
        loop {
            let read = if ended.is_cancelled() {
                let begun = Instant::now();
                let Ok(read) = timeout(patience, self.reader.read(&mut buffer)).await else {
                    break;
                };
                patience = patience.saturating_sub(begun.elapsed());
                read
            } else {
                tokio::select! {
                    biased;
                    read = self.reader.read(&mut buffer) => read,
                    () = ended.cancelled() => continue,
                }
            };
            let read = read.map_err(Error::io("read FIFO", dir))?;
            if ended.is_cancelled() {
                left = left.saturating_sub(read);
            }
            if read == 0 || left == 0 {
                break;
            }
            self.sink.take(&buffer[..read]).await;
        }
        self.sink.end().await;
        Ok(())
    }
}

/// An input: what the client writes goes into the FIFO.
pub(super) struct Input {
    client: Reader,
    writer: pipe::Sender,
}

impl Input {
    pub(super) fn open(path: &Path, client: Reader) -> Result<Self, Error> {
        // Reading too: the shim opens its end when the process starts.
        let writer = pipe::OpenOptions::new().read_write(true).open_sender(path);
        Ok(Self { client, writer: writer.map_err(Error::io("open FIFO", path))? })
    }

    /// Copies until the client has no more, or is gone.
    pub(super) async fn copy(mut self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            match self.client.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    if self.writer.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::PathBuf;

    use super::super::fifos::make_fifos;
    use super::*;

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let fifos = dir.path().join("fifos");
        make_fifos(&fifos, false).unwrap();
        let path = fifos.join("out");
        (dir, path)
    }

    fn kept(path: &Path) -> Output {
        Output::open(path, Sink::Kept(Vec::new())).unwrap()
    }

    fn open(path: &Path) -> std::fs::File {
        std::fs::File::options().write(true).open(path).unwrap()
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_last_writer_is_gone() {
        let (_dir, path) = fifo();
        let mut output = kept(&path);
        let writer = open(&path);
        output.let_go();
        (&writer).write_all(b"hello").unwrap();
        drop(writer);
        output.read(&path, &CancellationToken::new()).await.unwrap();
        assert_eq!(output.into_sink().kept(), b"hello");
    }

    /// teeth: crates/engine/src/exec/stream.rs: `MAX_EXEC_OUTPUT - kept.len()` → `usize::MAX`
    #[tokio::test]
    async fn d1_output_beyond_the_limit_is_read_and_dropped() {
        let (_dir, path) = fifo();
        let mut output = kept(&path);
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut file = open(&path);
                let chunk = vec![b'y'; 1 << 20];
                for _ in 0..20 {
                    file.write_all(&chunk).unwrap();
                }
            })
        };
        // The writer has opened its end once there is something to read.
        output.reader.readable().await.unwrap();
        output.let_go();
        output.read(&path, &CancellationToken::new()).await.unwrap();
        writer.join().unwrap();
        assert_eq!(output.into_sink().kept().len(), MAX_EXEC_OUTPUT);
    }

    #[tokio::test]
    async fn a_child_that_writes_on_for_ever_holds_up_nobody() {
        let (_dir, path) = fifo();
        let mut output = kept(&path);
        let writer = open(&path);
        output.let_go();
        let flood = std::thread::spawn(move || {
            // Until the reader is gone (EPIPE).
            while (&writer).write_all(&[b'y'; 4096]).is_ok() {}
        });
        let ended = CancellationToken::new();
        ended.cancel();
        output.read(&path, &ended).await.unwrap();
        assert!(output.into_sink().kept().len() <= REST);
        flood.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_is_silent_is_not_waited_for_long() {
        let (_dir, path) = fifo();
        let mut output = kept(&path);
        let writer = open(&path);
        output.let_go();
        (&writer).write_all(b"last words").unwrap();
        let ended = CancellationToken::new();
        ended.cancel();
        output.read(&path, &ended).await.unwrap();
        assert_eq!(output.into_sink().kept(), b"last words");
        drop(writer);
    }

    #[tokio::test]
    async fn a_slow_client_gets_all_that_was_written_before_the_end() {
        let (_dir, path) = fifo();
        // The client takes a byte at a time, the process is gone long before.
        let (client, mut far) = tokio::io::duplex(1);
        let mut output = Output::open(&path, Sink::Client(Some(Box::new(client)))).unwrap();
        let writer = open(&path);
        output.let_go();
        let text: Vec<u8> = (0..=255).cycle().take(60_000).collect();
        (&writer).write_all(&text).unwrap();
        let ended = CancellationToken::new();
        ended.cancel();
        let mut got = Vec::new();
        let (read, _) = tokio::join!(
            output.read(&path, &ended),
            tokio::io::AsyncReadExt::read_to_end(&mut far, &mut got)
        );
        read.unwrap();
        assert!(got == text, "{} of {} bytes", got.len(), text.len());
        drop(writer);
    }

    #[tokio::test]
    async fn a_client_that_has_closed_its_stream_does_not_stop_the_process() {
        let (_dir, path) = fifo();
        let (client, far) = tokio::io::duplex(1);
        drop(far);
        let mut output = Output::open(&path, Sink::Client(Some(Box::new(client)))).unwrap();
        let writer = open(&path);
        output.let_go();
        let flood = std::thread::spawn(move || {
            (&writer).write_all(&[b'y'; 1 << 20]).unwrap();
        });
        output.read(&path, &CancellationToken::new()).await.unwrap();
        flood.join().unwrap();
    }
}
