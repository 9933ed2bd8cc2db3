//! Streams of a client: it is told where to get them, and gets them from the engine.

use berth_api::v1::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest,
    PortForwardResponse,
};
use berth_engine::Engine;
use berth_model::{ContainerId, SandboxId};
use berth_streaming::{Backend, BackendError, Duplex, Io, Outcome, Size, Streams, Urls};
use tokio::sync::mpsc;

use crate::{Error, ids};

pub(crate) fn exec(
    engine: &Engine,
    urls: &Urls,
    request: ExecRequest,
) -> Result<ExecResponse, Error> {
    let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    if cmd.first().is_none_or(String::is_empty) {
        return Err(Error::Missing("cmd"));
    }
    let streams = checked(Streams { stdin, stdout, stderr, tty })?;
    let id = ids::container(engine, "container_id", &container_id)?;
    engine.may_exec(&id)?;
    Ok(ExecResponse { url: urls.exec(id, cmd, streams)? })
}

pub(crate) fn attach(
    engine: &Engine,
    urls: &Urls,
    request: AttachRequest,
) -> Result<AttachResponse, Error> {
    let AttachRequest { container_id, tty, stdin, stdout, stderr } = request;
    let streams = checked(Streams { stdin, stdout, stderr, tty })?;
    let id = ids::container(engine, "container_id", &container_id)?;
    engine.may_attach(&id)?;
    Ok(AttachResponse { url: urls.attach(id, streams)? })
}

pub(crate) fn port_forward(
    engine: &Engine,
    urls: &Urls,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, Error> {
    let ports = ports(&request.port)?;
    let id = ids::sandbox(engine, "pod_sandbox_id", &request.pod_sandbox_id)?;
    engine.may_forward(&id)?;
    Ok(PortForwardResponse { url: urls.port_forward(id, ports)? })
}

/// A terminal has one output, and a client without any stream has nothing to come for.
fn checked(streams: Streams) -> Result<Streams, Error> {
    if streams.tty && streams.stderr {
        return Err(Error::invalid("stderr", "cannot be had apart where tty is set"));
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Error::invalid("stdin", "must be set where stdout and stderr are not"));
    }
    Ok(streams)
}

fn ports(given: &[i32]) -> Result<Vec<u16>, Error> {
    let port = |(index, port): (usize, &i32)| match u16::try_from(*port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(Error::invalid(format!("port[{index}]"), format!("{port} is no port"))),
    };
    given.iter().enumerate().map(port).collect()
}

/// The engine, as the streams want it.
#[derive(Clone, Debug)]
pub struct StreamBackend(Engine);

impl StreamBackend {
    /// Streams of this engine's containers.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self(engine)
    }
}

impl Backend for StreamBackend {
    fn exec(
        &self,
        container: &ContainerId,
        command: Vec<String>,
        tty: bool,
        io: Io,
    ) -> Outcome<i32> {
        let (engine, container) = (self.0.clone(), container.clone());
        Box::pin(async move {
            let (io, sizes) = translated(io);
            tokio::select! {
                ended = engine.exec(&container, command, tty, io) => ended.map_err(boxed),
                never = sizes => match never {},
            }
        })
    }

    fn attach(&self, container: &ContainerId, io: Io) -> Outcome<()> {
        let (engine, container) = (self.0.clone(), container.clone());
        Box::pin(async move {
            let (io, sizes) = translated(io);
            tokio::select! {
                ended = engine.attach(&container, io) => ended.map_err(boxed),
                never = sizes => match never {},
            }
        })
    }

    fn port_forward(&self, sandbox: &SandboxId, port: u16, stream: Box<dyn Duplex>) -> Outcome<()> {
        let (engine, sandbox) = (self.0.clone(), sandbox.clone());
        Box::pin(async move {
            engine.port_forward(&sandbox, port, Box::new(stream)).await.map_err(boxed)
        })
    }
}

fn boxed(error: berth_engine::Error) -> BackendError {
    error.into()
}

/// The same streams, and what hands the sizes on for as long as it is polled.
fn translated(io: Io) -> (berth_engine::Io, impl Future<Output = std::convert::Infallible>) {
    let Io { stdin, stdout, stderr, resizes: mut given } = io;
    let (resized, resizes) = mpsc::channel(1);
    let sizes = async move {
        while let Some(Size { width, height }) = given.recv().await {
            // An engine that does not listen has no terminal.
            _ = resized.send(berth_engine::Size { width, height }).await;
        }
        std::future::pending().await
    };
    (berth_engine::Io { stdin, stdout, stderr, resizes }, sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_some_and_a_terminal_has_no_second_output() {
        for number in 0..16u8 {
            let bit = |bit| number & bit != 0;
            let streams = Streams { stdin: bit(1), stdout: bit(2), stderr: bit(4), tty: bit(8) };
            let good = number & 7 != 0 && number & 12 != 12;
            let checked = checked(streams);
            assert_eq!(checked.is_ok(), good, "{streams:?}");
            assert!(
                checked.is_ok()
                    || checked.is_err_and(|error| {
                        error.kind() == berth_model::ErrorKind::InvalidArgument
                    })
            );
        }
    }

    #[test]
    fn a_port_is_named_by_its_place_when_it_is_none() {
        assert_eq!(ports(&[1, 80, 65_535]).unwrap(), [1, 80, 65_535]);
        for wrong in [0, -1, 65_536, i32::MIN] {
            let error = ports(&[80, wrong]).unwrap_err();
            assert_eq!(error.to_string(), format!("port[1] {wrong} is no port"));
        }
    }
}
