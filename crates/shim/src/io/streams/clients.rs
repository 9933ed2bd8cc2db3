//! Clients that are given the streams of a container.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use tokio::io::Interest;
use tokio::sync::oneshot;

use super::{Held, Inner, Log, Streams};
use crate::error::Error;
use crate::io::attached::{Attached, Stdin};
use crate::io::outlet::{Outlet, Wanted, dial};
use crate::io::{set_nonblocking, watch};

/// A client that asks for the streams of a container.
#[derive(Debug)]
pub(crate) struct Client {
    /// Where its daemon listens.
    pub(crate) socket: PathBuf,
    pub(crate) stdin: bool,
    pub(crate) output: Wanted,
    /// Whether its end is that of the process's input.
    pub(crate) close_stdin: bool,
}

impl Streams {
    /// Gives the streams to one more client, from now on.
    pub(crate) async fn give(self: &Arc<Self>, client: Client) -> Result<(), Error> {
        if self.logged.is_empty() && !matches!(self.log, Some(Log::Writer(_))) {
            let state = "not to be attached to: its streams do not pass through the shim";
            return Err(Error::State { id: "the container".to_owned(), state });
        }
        if !client.socket.is_absolute() {
            return Err(Error::invalid("socket", "it is not an absolute path"));
        }
        let failed =
            |source| Error::Path { what: "connect to", path: client.socket.clone(), source };
        let socket = Arc::new(dial(&client.socket).map_err(failed)?);
        let unwatched = |source| Error::Io("watch the input of a container", source);
        let stdin = match client.stdin {
            true => self.stdin().map_err(unwatched)?,
            false => None,
        };
        let attached = Attached::new(Arc::clone(&socket), stdin.as_ref()).map_err(unwatched)?;
        // It is heard of before it hears: an end that comes now is told to it.
        let end = self.client()?;
        let outlet = Arc::new(Outlet::new(Arc::clone(&socket), client.output));
        match &self.log {
            Some(Log::Writer(writer)) => {
                let given = writer.give(&socket, client.output).await;
                given
                    .map_err(|source| Error::Io("give a client to the writer of a log", source))?;
            }
            _ => self.outlets.add(Arc::clone(&outlet)),
        }
        tokio::spawn(self.serve(attached, outlet, end, client.stdin && client.close_stdin));
        Ok(())
    }

    fn serve(
        self: &Arc<Self>,
        attached: Attached,
        outlet: Arc<Outlet>,
        end: oneshot::Receiver<()>,
        close_stdin: bool,
    ) -> impl Future<Output = ()> + use<> {
        // A client does not keep what its container has left behind.
        let (outlets, streams) = (Arc::clone(&self.outlets), Arc::downgrade(self));
        async move {
            let input_ended = || {
                if close_stdin && let Some(streams) = streams.upgrade() {
                    streams.close_stdin();
                }
            };
            attached.serve(&outlet, end, input_ended).await;
            outlets.remove(&outlet);
        }
    }

    /// What tells a client of the end.
    fn client(&self) -> Result<oneshot::Receiver<()>, Error> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.ended {
            return Err(Error::State { id: "the container".to_owned(), state: "stopped" });
        }
        inner.clients.retain(|client| !client.is_closed());
        let (tell, end) = oneshot::channel();
        inner.clients.push(tell);
        Ok(end)
    }

    /// Where a client's input goes; `None` if the process takes none, or no more.
    fn stdin(&self) -> io::Result<Option<Stdin>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = match std::mem::take(&mut inner.held) {
            Held::Nothing => return Ok(None),
            Held::Pipe(fd) => fd,
            Held::Terminal => match &inner.console {
                Some(console) => console.try_clone()?,
                None => return Ok(None),
            },
            Held::Watched(stdin) => {
                inner.held = Held::Watched(Arc::clone(&stdin));
                return Ok(Some(stdin));
            }
        };
        inner.watched(fd).map(Some)
    }
}

impl Inner {
    fn watched(&mut self, fd: OwnedFd) -> io::Result<Stdin> {
        set_nonblocking(&fd)?;
        let stdin = Arc::new(watch(fd, Interest::WRITABLE)?);
        self.held = Held::Watched(Arc::clone(&stdin));
        Ok(stdin)
    }
}
