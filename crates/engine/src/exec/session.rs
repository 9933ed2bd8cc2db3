//! One command, from its request to its end: what must go away when its client does.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use berth_failpoint::Point;
use berth_model::{ContainerId, ErrorKind, ExecId, SandboxId};
use berth_shim_client::{
    ExecRequest, Exited, Input as From, Output as To, Process, ProcessId, Shim,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug_span};

use super::end::Leftover;
use super::fifos::Directory;
use super::stream::{Input, Output};
use crate::Error;
use crate::client::Size;
use crate::container::unless_silent;
use crate::core::{Core, step, warn_failure};

/// How long the shim may take to forget a command that has ended.
const FORGET: Duration = Duration::from_secs(2);

/// One command: what must go away when its client does.
pub(super) struct Session {
    pub(super) core: Arc<Core>,
    pub(super) shim: Shim,
    pub(super) container: ContainerId,
    pub(super) exec: ExecId,
    pub(super) dir: Directory,
    /// Whether its process gets a terminal.
    pub(super) tty: bool,
    /// Whether the shim may know of it.
    pub(super) known: bool,
    /// Its process, once it was started.
    pub(super) process: Option<ProcessId>,
    /// Whether its process has ended.
    pub(super) ended: bool,
}

impl Session {
    fn id(&self) -> Process<'_> {
        Process { container: &self.container, exec: Some(&self.exec) }
    }

    pub(super) async fn start(
        &mut self,
        process: Vec<u8>,
        sandbox: &SandboxId,
    ) -> Result<(), Error> {
        let request = ExecRequest {
            container: self.container.clone(),
            id: self.exec.clone(),
            process,
            terminal: self.tty,
            stdin: if self.dir.input { From::Fifo(self.dir.stdin()) } else { From::Null },
            stdout: To::Fifo(self.dir.stdout()),
            stderr: if self.tty { To::Null } else { To::Fifo(self.dir.stderr()) },
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

    /// Moves bytes while the process runs, and what it has written after its end.
    pub(super) async fn wait(
        &self,
        out: &mut Output,
        err: &mut Output,
        input: Option<Input>,
        resizes: Option<mpsc::Receiver<Size>>,
    ) -> Result<Exited, Error> {
        let ended = CancellationToken::new();
        let read = async {
            let (dir, ended) = (self.dir.path(), &ended);
            let (out, err) = tokio::join!(out.read(dir, ended), err.read(dir, ended));
            out.and(err)
        };
        let exit = async {
            let exited = self.shim.wait(self.id()).await;
            ended.cancel();
            exited.map_err(|failure| self.failed(failure))
        };
        // What cannot be read any more would stop the process: it is taken back.
        let run = async { tokio::try_join!(exit, read) };
        let served = async { tokio::join!(self.feed(input), self.follow(resizes)) };
        tokio::select! {
            ended = run => ended.map(|(exited, ())| exited),
            (never, _) = served => match never {},
        }
    }

    /// Gives the client's input to the process, and its end.
    async fn feed(&self, input: Option<Input>) -> Infallible {
        if let Some(input) = input {
            input.copy().await;
            // A process that has ended already wants no end of its input.
            if let Err(failure) = self.shim.close_stdin(self.id()).await
                && failure.kind() != ErrorKind::NotFound
            {
                warn_failure("close the input of a command", &self.failed(failure));
            }
        }
        std::future::pending().await
    }

    /// Gives the terminal the sizes of the client's.
    async fn follow(&self, resizes: Option<mpsc::Receiver<Size>>) -> Infallible {
        if let Some(mut resizes) = resizes {
            while let Some(Size { width, height }) = resizes.recv().await {
                if let Err(failure) = self.shim.resize(self.id(), width, height).await
                    && failure.kind() != ErrorKind::NotFound
                {
                    warn_failure("resize the terminal of a command", &self.failed(failure));
                }
            }
        }
        std::future::pending().await
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
