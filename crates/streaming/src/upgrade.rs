//! What becomes of a connection once it is upgraded.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Io, Outcome};
use crate::forward::{self, Target};
use crate::http::Transport;
use crate::mux::{Mux, Reader};
use crate::peer::Peer;
use crate::remote::{self, Streams, Version, Wanted};
use crate::session::{Ending as Last, Limits, supervise};
use crate::spdy;
use crate::status::Ending;
use crate::token::Promise;
use crate::websocket::{self, Codec, Protocol, channel};

/// What every session needs beside its own.
#[derive(Debug)]
pub(crate) struct Context<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) limits: Limits,
    pub(crate) shutdown: CancellationToken,
    pub(crate) peer: Peer,
}

/// Why a connection ended before its session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("SPDY failed")]
    Spdy(#[from] spdy::Error),
    #[error("WebSocket failed")]
    WebSocket(#[from] websocket::Error),
}

/// A process whose streams a client gets.
struct Process {
    wanted: Wanted,
    start: Box<dyn FnOnce(Io) -> Outcome<Ending> + Send>,
}

/// Serves what was promised, to its end.
pub(crate) async fn serve<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    transport: Transport,
    promise: Promise,
    context: &Context<B>,
) -> Result<(), Error> {
    match (process(promise, &context.backend), transport) {
        (Ok(process), Transport::Spdy(version)) => {
            remote_spdy(socket, version, process, context).await
        }
        (Ok(process), Transport::WebSocket(protocol)) => {
            remote_channels(socket, protocol, process, context).await
        }
        (Err(target), Transport::WebSocket(protocol)) if protocol.codec == Codec::Raw => {
            forward_tunnel(socket, protocol, target, context).await
        }
        (Err(target), Transport::WebSocket(protocol)) => {
            forward_channels(socket, protocol, target, context).await
        }
        (Err(target), _) => forward_spdy(socket, target, context).await,
        // The negotiation gives pairs of streams to nobody else.
        (Ok(_), Transport::SpdyPairs) => Ok(()),
    }
}

/// The process that was promised, or the sandbox whose ports were.
fn process<B: Backend>(promise: Promise, backend: &Arc<B>) -> Result<Process, Target> {
    let backend = backend.clone();
    match promise {
        Promise::Exec { container, command, wanted } => {
            let start = Box::new(move |io: Io| {
                let outcome = backend.exec(&container, command, wanted.tty, io);
                remote::told(outcome, "error executing command in container", |code| match code {
                    0 => Ending::Success,
                    code => Ending::Exit(code),
                })
            });
            Ok(Process { wanted, start })
        }
        Promise::Attach { container, wanted } => {
            let start = Box::new(move |io: Io| {
                let outcome = backend.attach(&container, io);
                remote::told(outcome, "error attaching to container", |()| Ending::Success)
            });
            Ok(Process { wanted, start })
        }
        Promise::Forward(target) => Err(target),
    }
}

async fn remote_spdy<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    version: Version,
    process: Process,
    context: &Context<B>,
) -> Result<(), Error> {
    let mux = Mux::new(context.peer.clone());
    let (connection, opened) = spdy::Connection::new(mux.clone())?;
    let limit = context.limits.creation;
    let session = async {
        let streams = remote::gather(opened, process.wanted, version, limit).await;
        let Some(streams) = streams else {
            tracing::debug!(?limit, "timed out waiting for a client to create streams");
            mux.farewell(spdy::farewell());
            return Vec::new();
        };
        remote::run(streams, version.form, process.start).await
    };
    over_spdy(socket, connection, &mux, session, context).await
}

/// Moves the frames of `session`, which is over SPDY, until it has ended.
async fn over_spdy<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    connection: spdy::Connection,
    mux: &Mux,
    session: impl Future<Output = Vec<Reader>>,
    context: &Context<B>,
) -> Result<(), Error> {
    let drive = spdy::drive(socket, connection);
    let last = Last { when_done: false, frame: spdy::farewell() };
    Ok(supervise(mux, context.limits, &context.shutdown, drive, session, last).await?)
}

/// Moves the messages of `session`, which is over a WebSocket, until it has ended.
async fn over_websocket<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    protocol: Protocol,
    mux: &Mux,
    session: impl Future<Output = Vec<Reader>>,
    context: &Context<B>,
) -> Result<(), Error> {
    let drive = websocket::drive(socket, mux.clone(), protocol.codec, protocol.closes);
    let last = Last { when_done: true, frame: websocket::farewell() };
    Ok(supervise(mux, context.limits, &context.shutdown, drive, session, last).await?)
}

async fn remote_channels<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    protocol: Protocol,
    process: Process,
    context: &Context<B>,
) -> Result<(), Error> {
    let mux = Mux::new(context.peer.clone());
    let (streams, lowest) = open_channels(&mux, process.wanted);
    mux.control_now(websocket::greeting(protocol.codec, lowest));
    let session = remote::run(streams, protocol.form, process.start);
    over_websocket(socket, protocol, &mux, session, context).await
}

/// The channels of a process, and the lowest one that the client gets something on.
fn open_channels(mux: &Mux, wanted: Wanted) -> (Streams, u32) {
    let (mut silent, mut deaf) = (Vec::new(), Vec::new());
    let mut read = |id| {
        let (reader, writer) = mux.open(id, false);
        silent.push(writer);
        reader
    };
    let stdin = wanted.stdin.then(|| read(channel::STDIN));
    let resize = Some(read(channel::RESIZE));
    let mut write = |id| {
        let (reader, writer) = mux.open(id, false);
        deaf.push(reader);
        writer
    };
    let stdout = wanted.stdout.then(|| write(channel::STDOUT));
    let stderr = wanted.stderr.then(|| write(channel::STDERR));
    let error = Some(write(channel::ERROR));
    let lowest = match (wanted.stdout, wanted.stderr) {
        (true, _) => channel::STDOUT,
        (false, true) => channel::STDERR,
        (false, false) => channel::ERROR,
    };
    (Streams { stdin, stdout, stderr, error, resize, silent, deaf }, lowest)
}

async fn forward_spdy<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    target: Target,
    context: &Context<B>,
) -> Result<(), Error> {
    let mux = Mux::new(context.peer.clone());
    let (connection, opened) = spdy::Connection::new(mux.clone())?;
    let backend = context.backend.clone();
    let session = forward::over_spdy(backend, target, opened, context.limits.creation);
    over_spdy(socket, connection, &mux, session, context).await
}

async fn forward_channels<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    protocol: Protocol,
    target: Target,
    context: &Context<B>,
) -> Result<(), Error> {
    let mux = Mux::new(context.peer.clone());
    let session = forward::over_channels(context.backend.clone(), target, &mux);
    over_websocket(socket, protocol, &mux, session, context).await
}

/// SPDY whose bytes travel in WebSocket messages: one inside the other.
async fn forward_tunnel<B: Backend>(
    socket: impl AsyncRead + AsyncWrite,
    protocol: Protocol,
    target: Target,
    context: &Context<B>,
) -> Result<(), Error> {
    let mux = Mux::new(context.peer.clone());
    let (reader, writer) = mux.open(0, false);
    let session = async {
        let inner = tokio::io::join(reader, writer);
        if let Err(error) = forward_spdy(inner, target, context).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "tunnelled port-forward");
        }
        Vec::<Reader>::new()
    };
    over_websocket(socket, protocol, &mux, session, context).await
}
