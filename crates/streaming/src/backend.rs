//! What the transports need of whoever runs containers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use berth_model::{ContainerId, SandboxId};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Why a backend failed. Its words reach the client, each cause after a colon.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// What a backend's verb becomes.
pub type Outcome<T> = Pin<Box<dyn Future<Output = Result<T, BackendError>> + Send>>;

/// Whoever runs the containers.
///
/// A future that is dropped ends what it did: an exec is killed, an attach is detached, a
/// forwarded connection is closed. That is how a client that vanished is told.
pub trait Backend: Send + Sync + 'static {
    /// Runs a command in a container, to its exit code.
    fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        tty: bool,
        io: Io,
    ) -> Outcome<i32>;

    /// Joins the streams of a container's own process, until its output ends.
    fn attach(&self, container: &ContainerId, io: Io) -> Outcome<()>;

    /// Connects `stream` to a port in a sandbox, until both directions have ended.
    fn port_forward(&self, sandbox: &SandboxId, port: u16, stream: Box<dyn Duplex>) -> Outcome<()>;
}

/// Both directions of one connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The streams of a process. What is `None` was not asked for.
pub struct Io {
    /// Ends when the client ended its input.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Taken as fast as the client takes it.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Never with a terminal.
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The sizes that the client's terminal takes.
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

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub struct Size {
    /// Columns.
    #[serde(alias = "Width", default)]
    pub width: u16,
    /// Lines.
    #[serde(alias = "Height", default)]
    pub height: u16,
}
