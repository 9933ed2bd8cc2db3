//! A client and the streams of a container, which belong to its shim.
//!
//! The shim connects to a socket of ours and sends a copy of what the container writes; it
//! waits for nobody, so a client that is slow misses output and is told so. Input goes the
//! other way, as fast as the container reads it. A daemon that dies takes its clients with
//! it and nothing else: the next one attaches anew.

use std::path::PathBuf;
use std::sync::Arc;

use berth_model::{ContainerId, ErrorKind};
use berth_shim_client::{AttachRequest, Attachment, Door, MAX_PACKET, Packet, Shim};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug_span};

use crate::client::{Io, Reader, Size, Writer};
use crate::container::Container;
use crate::core::{Core, warn_failure};
use crate::{Error, clock};

/// Length of a socket's name: a socket's path has 107 bytes (unix(7)), and the state
/// directory up to 80 of them.
const NAME: usize = 16;

/// The container, if a client can be attached to it, and its shim.
pub(crate) fn find(core: &Core, id: &ContainerId) -> Result<(Arc<Container>, Shim), Error> {
    let container = core.container(id)?;
    let status = container.status.get();
    if status.pid().is_none() {
        let state = status.state.name();
        return Err(Error::ContainerState { verb: "attach to", id: id.clone(), state });
    }
    let shim = container.sandbox.live_shim("attach")?;
    Ok((container, shim))
}

/// Attaches a client; see [`crate::Engine::attach`].
pub(crate) async fn attach(core: &Arc<Core>, id: &ContainerId, io: Io) -> Result<(), Error> {
    let (container, shim) = find(core, id)?;
    let work = async {
        tokio::select! {
            done = run(core, &container, shim, io) => done,
            () = core.shutdown.cancelled() => Err(Error::ShuttingDown),
        }
    };
    core.tasks.track_future(work).await
}

async fn run(core: &Arc<Core>, container: &Container, shim: Shim, io: Io) -> Result<(), Error> {
    let Io { stdin, stdout, stderr, resizes } = io;
    let status = container.status.get();
    let spec = &status.spec;
    // A container without an input is given none, and a terminal's never ends.
    let once = spec.stdin_once && !spec.tty;
    let request = AttachRequest {
        container: container.id.clone(),
        stdin: spec.stdin && stdin.is_some(),
        stdout: stdout.is_some(),
        stderr: stderr.is_some() && !spec.tty,
        close_stdin: once,
    };
    let path = socket(core)?;
    let open = {
        let path = path.clone();
        move || Door::open(&path)
    };
    let door = core.disk.run(open).await?.map_err(Error::io("make socket", path))?;
    let failed = |source| refused(&container.id, source);
    let attached = shim.attach(&request, door).instrument(debug_span!("shim_attach")).await;
    let session = Session {
        container,
        shim: &shim,
        attachment: attached.map_err(failed)?,
        taken: CancellationToken::new(),
        tty: spec.tty,
    };
    let input = async {
        match stdin.filter(|_| request.stdin) {
            Some(stdin) => session.feed(stdin, once).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        heard = session.hear(stdout, stderr) => heard,
        () = input => Ok(()),
        () = session.follow(resizes) => Ok(()),
    }
}

/// Where the shim connects to: beside the directories of commands, where a restart removes
/// what it does not know.
fn socket(core: &Core) -> Result<PathBuf, Error> {
    let name: String = ContainerId::from_random(clock::random()?).as_str()[..NAME].to_owned();
    Ok(core.config.execs().join(name))
}

fn refused(id: &ContainerId, source: berth_shim_client::Error) -> Error {
    match source.kind() {
        // It has ended meanwhile; to a client "not found" would mean something else.
        ErrorKind::NotFound => {
            Error::ContainerState { verb: "attach to", id: id.clone(), state: "exited" }
        }
        _ => Error::Shim { action: "attach to container", id: id.to_string(), source },
    }
}

/// A client that is attached.
struct Session<'a> {
    container: &'a Container,
    shim: &'a Shim,
    attachment: Attachment,
    /// Told when the process was given all input.
    taken: CancellationToken,
    tty: bool,
}

impl Session<'_> {
    /// Gives the client what the container writes, until it has ended.
    async fn hear(
        &self,
        mut stdout: Option<Writer>,
        mut stderr: Option<Writer>,
    ) -> Result<(), Error> {
        let mut missed: u64 = 0;
        let ended = loop {
            let received = self.attachment.receive().await;
            match received.unwrap_or(Packet::Lost) {
                Packet::Stdout(bytes) => write(&mut stdout, &bytes).await,
                Packet::Stderr(bytes) => write(&mut stderr, &bytes).await,
                Packet::Skipped(bytes) => missed = missed.saturating_add(bytes),
                Packet::InputTaken => self.taken.cancel(),
                Packet::End => break true,
                Packet::Lost => break false,
            }
        };
        for mut writer in stdout.into_iter().chain(stderr) {
            // Whoever has closed it knows.
            writer.shutdown().await.ok();
        }
        // A terminal shows how things are now, and is drawn anew; of a stream every byte
        // counts.
        if missed > 0 && !self.tty {
            return Err(Error::OutputMissed { id: self.container.id.clone(), bytes: missed });
        }
        // A shim that was killed takes its containers with it.
        let runs = || self.container.status.get().pid().is_some();
        if !ended && runs() {
            return Err(Error::OutputLost(self.container.id.clone()));
        }
        Ok(())
    }

    /// Gives the container what the client writes. Ends when the client's input has, and
    /// the container shall not see that: who has nothing more to say leaves.
    async fn feed(&self, mut stdin: Reader, once: bool) {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let read = stdin.read(&mut buffer).await;
            let sent = match read {
                Ok(0) | Err(_) => break,
                Ok(read) => self.attachment.input(&buffer[..read]).await,
            };
            if sent.is_err() {
                break;
            }
        }
        if self.attachment.end_input().await.is_ok() && !once {
            self.taken.cancelled().await;
            return;
        }
        std::future::pending().await
    }

    /// Gives the terminal the sizes of the client's.
    async fn follow(&self, mut resizes: mpsc::Receiver<Size>) {
        while let Some(Size { width, height }) = resizes.recv().await {
            if !self.tty {
                continue;
            }
            let id = &self.container.id;
            if let Err(source) = self.shim.resize(id, width, height).await
                && source.kind() != ErrorKind::NotFound
            {
                let action = "resize the terminal of container";
                warn_failure("attach", &Error::Shim { action, id: id.to_string(), source });
            }
        }
        std::future::pending().await
    }
}

/// What a client has closed takes no more.
async fn write(writer: &mut Option<Writer>, bytes: &[u8]) {
    if let Some(to) = writer
        && (to.write_all(bytes).await.is_err() || to.flush().await.is_err())
    {
        *writer = None;
    }
}
