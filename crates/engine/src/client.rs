//! The client's side of an interactive request: its streams, and how large its terminal is.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Where a client's input is read.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Where a client's output is written.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A client's streams: those it asked for.
///
/// The end of `stdin` ends that of the process. What is written to a stream that the
/// client has closed is dropped: who is gone altogether has its request dropped.
pub struct Io {
    /// What the process reads.
    pub stdin: Option<Reader>,
    /// What it writes; with a terminal both streams.
    pub stdout: Option<Writer>,
    /// What it writes to standard error; nothing with a terminal.
    pub stderr: Option<Writer>,
    /// The sizes of the client's terminal. One without a terminal is told none.
    pub resizes: mpsc::Receiver<Size>,
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .finish_non_exhaustive()
    }
}
