//! `berth.shim.v1.Extension`: what kubelet's CRI needs and containerd's protocol lacks.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use berth_api::shim::{
    ATTACH, AttachRequest, AttachResponse, INFO, InfoResponse, PROTOCOL, REOPEN_LOG,
    ReopenLogRequest, ReopenLogResponse, SERVICE,
};
use prost::Message;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Request, Response};

use crate::error::Error;
use crate::io::{Client, Wanted};
use crate::process::Status;
use crate::shim::Shim;

pub(super) fn create(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let reopen_log: Box<dyn MethodHandler + Send + Sync> = Box::new(ReopenLog(Arc::clone(shim)));
    let methods = HashMap::from([
        (REOPEN_LOG.to_owned(), reopen_log),
        (
            ATTACH.to_owned(),
            Box::new(Attach(Arc::clone(shim))) as Box<dyn MethodHandler + Send + Sync>,
        ),
        (INFO.to_owned(), Box::new(Info) as Box<dyn MethodHandler + Send + Sync>),
    ]);
    HashMap::from([(SERVICE.to_owned(), Service { methods, streams: HashMap::new() })])
}

struct ReopenLog(Arc<Shim>);

impl ReopenLog {
    async fn reopen(&self, payload: &[u8]) -> Result<(), Error> {
        let request = ReopenLogRequest::decode(payload)
            .map_err(|error| Error::invalid("request", error.to_string()))?;
        let container = self.0.container(&request.container_id)?;
        // An ended container writes no more: a new file would stay empty for ever.
        if matches!(container.init.status(), Status::Stopped(_)) {
            return Err(Error::State { id: request.container_id, state: "stopped" });
        }
        let stopped = || Error::State { id: request.container_id.clone(), state: "not running" };
        container.init.streams().ok_or_else(stopped)?.reopen_log().await
    }
}

#[async_trait]
impl MethodHandler for ReopenLog {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let done = self.reopen(&request.payload).await;
        answer(done.map(|()| ReopenLogResponse {}.encode_to_vec()))
    }
}

struct Attach(Arc<Shim>);

impl Attach {
    async fn attach(&self, payload: &[u8]) -> Result<(), Error> {
        let request = AttachRequest::decode(payload)
            .map_err(|error| Error::invalid("request", error.to_string()))?;
        let container = self.0.container(&request.container_id)?;
        let state = match container.init.status() {
            Status::Running => None,
            Status::Created => Some("not started yet"),
            Status::Stopped(_) => Some("stopped"),
        };
        if let Some(state) = state {
            return Err(Error::State { id: request.container_id, state });
        }
        let stopped = || Error::State { id: request.container_id.clone(), state: "not running" };
        let streams = container.init.streams().ok_or_else(stopped)?;
        let client = Client {
            socket: request.socket.into(),
            stdin: request.stdin,
            output: Wanted { stdout: request.stdout, stderr: request.stderr },
            close_stdin: request.close_stdin,
        };
        streams.give(client).await
    }
}

#[async_trait]
impl MethodHandler for Attach {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        answer(self.attach(&request.payload).await.map(|()| AttachResponse {}.encode_to_vec()))
    }
}

/// What a caller is told.
fn answer(done: Result<Vec<u8>, Error>) -> ttrpc::Result<Response> {
    let mut response = Response::new();
    match done {
        Ok(payload) => response.payload = payload,
        Err(error) => match ttrpc::Error::from(error) {
            ttrpc::Error::RpcStatus(status) => response.set_status(status),
            other => return Err(other),
        },
    }
    Ok(response)
}

/// Says which protocol this shim speaks. What a later request adds to the question is of
/// no interest to this release.
struct Info;

#[async_trait]
impl MethodHandler for Info {
    async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mut response = Response::new();
        response.payload = InfoResponse { protocol: PROTOCOL, version }.encode_to_vec();
        Ok(response)
    }
}
