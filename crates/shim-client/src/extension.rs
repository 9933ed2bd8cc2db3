//! `berth.shim.v1.Extension`: what the in-tree shim has beyond containerd's APIs.
//!
//! Shims outlive the daemon, so one may be of another release than we are. Each verb has
//! the number of the protocol that brought it (`proto/berth/shim/v1/shim.proto`). A shim
//! that lacks a verb says so by itself, hence nothing is asked beforehand; its number is
//! asked for once a verb was refused, and for people. What a shim would not refuse but
//! ignore must be asked for with [`Shim::info`] first.

use std::path::Path;
use std::time::Duration;

use berth_api::shim::{
    self, AttachRequest as AttachMessage, InfoRequest, InfoResponse, ReopenLogRequest,
};
use berth_model::ContainerId;
use prost::Message;
use ttrpc::Code;

use crate::{AttachRequest, Error, Shim};

/// What touches no disk and starts nothing.
const QUICK: Duration = Duration::from_secs(10);
/// What every in-tree shim speaks.
const FIRST: u32 = 1;
/// Longest version that is kept, characters.
const MAX_VERSION: usize = 64;

/// Something the extension can do.
#[derive(Clone, Copy, Debug)]
struct Verb {
    method: &'static str,
    /// The protocol that brought it.
    since: u32,
    /// For people.
    words: &'static str,
}

const REOPEN_LOG: Verb =
    Verb { method: shim::REOPEN_LOG, since: FIRST, words: "open a log file anew" };
const INFO: Verb = Verb { method: shim::INFO, since: 2, words: "say what it is" };

const ATTACH: Verb = Verb { method: shim::ATTACH, since: 3, words: "attach to a container" };

/// What a shim is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShimInfo {
    /// Its protocol beside containerd's: 0 for a shim that is not ours, which has none.
    pub protocol: u32,
    /// Its release; empty if it does not say.
    pub version: String,
}

impl Shim {
    /// What the shim is. It is asked once: a shim stays what it is.
    pub async fn info(&self, deadline: Duration) -> Result<ShimInfo, Error> {
        let asked = self.known().get_or_try_init(|| self.ask_info(deadline));
        asked.await.cloned()
    }

    async fn ask_info(&self, deadline: Duration) -> Result<ShimInfo, Error> {
        let payload = InfoRequest {}.encode_to_vec();
        let protocol = match self.raw(shim::SERVICE, INFO.method, payload, Some(deadline)).await {
            Ok(answer) => {
                let answer = InfoResponse::decode(answer.as_slice())
                    .map_err(|source| Error::Extension { method: INFO.method, source })?;
                let version = answer.version.chars().take(MAX_VERSION).collect();
                return Ok(ShimInfo { protocol: answer.protocol.max(INFO.since), version });
            }
            Err(error) => match lacking(&error) {
                Some(Lacking::Method) => FIRST,
                Some(Lacking::Service) => 0,
                None => return Err(error),
            },
        };
        Ok(ShimInfo { protocol, version: String::new() })
    }

    /// Refuses a shim that speaks an earlier protocol than `since`, which brought `words`:
    /// for what such a shim would not refuse by itself.
    ///
    /// # Errors
    /// [`Error::Unsupported`], and whatever asking it may meet.
    pub async fn needs(&self, since: u32, words: &'static str) -> Result<(), Error> {
        let protocol = self.info(QUICK).await?.protocol;
        if protocol >= since {
            return Ok(());
        }
        let address = self.address().to_owned();
        Err(Error::Unsupported { address, protocol, verb: words, needed: since })
    }

    /// Opens the container's log anew, after it was renamed. The file exists at its path
    /// when this returns.
    pub async fn reopen_log(&self, container: &ContainerId) -> Result<(), Error> {
        let message = ReopenLogRequest { container_id: container.to_string() };
        self.extension(REOPEN_LOG, message.encode_to_vec()).await.map(drop)
    }

    /// Asks the shim to connect to `socket`.
    pub(crate) async fn ask_to_attach(
        &self,
        request: &AttachRequest,
        socket: &Path,
    ) -> Result<(), Error> {
        let message = AttachMessage {
            container_id: request.container.to_string(),
            socket: socket.to_string_lossy().into_owned(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            close_stdin: request.close_stdin,
        };
        self.extension(ATTACH, message.encode_to_vec()).await.map(drop)
    }

    /// Whether the shim understands [`Output::Drain`](crate::Output::Drain): it would take
    /// the word for something else.
    pub async fn drains(&self) -> Result<bool, Error> {
        Ok(self.info(QUICK).await?.protocol >= 3)
    }

    async fn extension(&self, verb: Verb, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        match self.raw(shim::SERVICE, verb.method, payload, Some(QUICK)).await {
            Err(error) if lacking(&error).is_some() => {
                let protocol = self.info(QUICK).await?.protocol;
                let address = self.address().to_owned();
                Err(Error::Unsupported { address, protocol, verb: verb.words, needed: verb.since })
            }
            other => other,
        }
    }
}

/// What a shim said that it does not have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lacking {
    Service,
    Method,
}

/// Whether the shim did nothing, since it has no such verb: in the words of ttrpc for Rust,
/// then of that for Go.
fn lacking(error: &Error) -> Option<Lacking> {
    let Error::Rpc { code, message, .. } = error else { return None };
    match code {
        Code::INVALID_ARGUMENT if message.ends_with("service does not exist") => {
            Some(Lacking::Service)
        }
        Code::UNIMPLEMENTED if message.starts_with("service ") => Some(Lacking::Service),
        Code::UNIMPLEMENTED => Some(Lacking::Method),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use async_trait::async_trait;
    use berth_model::ErrorKind;
    use ttrpc::asynchronous::{MethodHandler, Server, Service, TtrpcContext};
    use ttrpc::{Request, Response};

    use super::*;
    use crate::{ApiVersion, Bootstrap};

    /// Answers every call with the same bytes.
    struct Answer(Vec<u8>);

    #[async_trait]
    impl MethodHandler for Answer {
        async fn handler(&self, _: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
            let mut response = Response::new();
            response.payload.clone_from(&self.0);
            Ok(response)
        }
    }

    /// A shim whose service `name` has the given methods.
    async fn shim(name: &str, methods: &[(&str, Vec<u8>)]) -> (Shim, Server, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/s", dir.path().display());
        let mut handlers: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::new();
        for (method, answer) in methods {
            handlers.insert((*method).to_owned(), Box::new(Answer(answer.clone())));
        }
        let service = Service { methods: handlers, streams: HashMap::new() };
        let mut server = Server::new()
            .bind(&address)
            .unwrap()
            .register_service(HashMap::from([(name.to_owned(), service)]));
        server.start().await.unwrap();
        let bootstrap = Bootstrap { version: ApiVersion::V3, address };
        let shim = Shim::connect(&bootstrap, QUICK, true).await.unwrap();
        (shim, server, dir)
    }

    fn info(protocol: u32, version: &str) -> Vec<u8> {
        InfoResponse { protocol, version: version.to_owned() }.encode_to_vec()
    }

    #[tokio::test]
    async fn a_shim_without_info_is_of_the_first_release() {
        let (shim, _server, _dir) = shim(shim::SERVICE, &[(shim::REOPEN_LOG, Vec::new())]).await;
        let found = shim.info(QUICK).await.unwrap();
        assert_eq!(found, ShimInfo { protocol: 1, version: String::new() });
        shim.reopen_log(&ContainerId::from_random([7; 32])).await.unwrap();
    }

    #[tokio::test]
    async fn a_shim_of_the_future_does_what_is_known_today() {
        let mut answer = info(99, &"9.".repeat(100));
        // A field that this release has never heard of.
        answer.extend([0x9a, 0x06, 0x03, b'n', b'e', b'w']);
        let methods = [(shim::INFO, answer), (shim::REOPEN_LOG, Vec::new())];
        let (shim, _server, _dir) = shim(shim::SERVICE, &methods).await;
        let found = shim.info(QUICK).await.unwrap();
        assert_eq!((found.protocol, found.version.len()), (99, MAX_VERSION));
        shim.reopen_log(&ContainerId::from_random([7; 32])).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_shim_cannot_do_is_refused_by_name_and_number() {
        for (service, methods, protocol) in [
            (shim::SERVICE, vec![(shim::INFO, info(7, "x"))], 7),
            (shim::SERVICE, vec![("Other", Vec::new())], 1),
            ("another.Service", vec![(shim::REOPEN_LOG, Vec::new())], 0),
        ] {
            let (shim, _server, _dir) = shim(service, &methods).await;
            let error = shim.reopen_log(&ContainerId::from_random([7; 32])).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unimplemented, "{error}");
            let expected = format!(
                "shim at {} speaks protocol {protocol}, which cannot open a log file anew \
                 (protocol 1 can)",
                shim.address()
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[tokio::test]
    async fn an_older_shim_refuses_clients_and_drains_nothing() {
        let second = vec![(shim::INFO, info(2, "0.1"))];
        for (methods, protocol) in [(second, 2), (vec![("Other", Vec::new())], 1)] {
            let (shim, _server, dir) = shim(shim::SERVICE, &methods).await;
            assert!(!shim.drains().await.unwrap());
            let request = AttachRequest {
                container: ContainerId::from_random([7; 32]),
                stdin: false,
                stdout: true,
                stderr: true,
                close_stdin: false,
            };
            let path = dir.path().join("door");
            let door = crate::Door::open(&path).unwrap();
            let error = shim.attach(&request, door).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unimplemented, "{error}");
            let expected = format!(
                "speaks protocol {protocol}, which cannot attach to a container (protocol 3"
            );
            assert!(error.to_string().contains(&expected), "{error}");
            assert!(!path.exists(), "the socket is left");
        }
        let (shim, _server, _dir) = shim(shim::SERVICE, &[(shim::INFO, info(3, "0.2"))]).await;
        assert!(shim.drains().await.unwrap());
    }

    #[tokio::test]
    async fn an_answer_that_makes_no_sense_is_no_protocol() {
        let (shim, _server, _dir) = shim(shim::SERVICE, &[(shim::INFO, vec![0xff; 9])]).await;
        let error = shim.info(QUICK).await.unwrap_err();
        assert!(matches!(error, Error::Extension { .. }), "{error}");
    }

    #[test]
    fn a_refusal_for_another_reason_is_not_taken_for_age() {
        let rpc = |code, message: &str| Error::Rpc { method: "x", code, message: message.into() };
        for (error, expected) in [
            (rpc(Code::UNIMPLEMENTED, "Info method"), Some(Lacking::Method)),
            (rpc(Code::UNIMPLEMENTED, "method Info"), Some(Lacking::Method)),
            (rpc(Code::UNIMPLEMENTED, "service berth.x"), Some(Lacking::Service)),
            (rpc(Code::INVALID_ARGUMENT, "a.B service does not exist"), Some(Lacking::Service)),
            (rpc(Code::INVALID_ARGUMENT, "request: bad id"), None),
            (rpc(Code::NOT_FOUND, "container x"), None),
        ] {
            assert_eq!(lacking(&error), expected, "{error}");
        }
    }
}
