//! A client that sends what it is given, and does not know what it says.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use bytes::{Buf as _, BufMut as _};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::schema::Rpc;

/// Most messages of a stream that are read.
const PARTS: usize = 50;
/// Longer than any answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Client(Grpc<Channel>);

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(Self(Grpc::new(endpoint.connect().await?)))
    }

    /// The answer, or the first of it.
    pub(crate) async fn send(&mut self, rpc: &Rpc, request: Vec<u8>) -> Result<Vec<u8>, Status> {
        let path = format!("/runtime.v1.{}/{}", rpc.service, rpc.name);
        let path = PathAndQuery::try_from(path).expect("a path");
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(format!("not ready: {error}")))?;
        let answer = self.stream(path, request, rpc.name != "GetContainerEvents");
        let late = || Status::new(Code::DataLoss, format!("no answer within {DEADLINE:?}"));
        tokio::time::timeout(DEADLINE, answer).await.map_err(|_| late())?
    }

    /// An answer of one message is a stream of one.
    async fn stream(
        &mut self,
        path: PathAndQuery,
        request: Vec<u8>,
        ends: bool,
    ) -> Result<Vec<u8>, Status> {
        let answer = self.0.server_streaming(Request::new(request), path, Raw).await?;
        let mut parts = answer.into_inner();
        let mut first = None;
        for _ in 0..PARTS {
            // What happens later is not waited for.
            if !ends {
                break;
            }
            let Some(part) = parts.message().await? else { break };
            first.get_or_insert(part);
        }
        Ok(first.unwrap_or_default())
    }
}
