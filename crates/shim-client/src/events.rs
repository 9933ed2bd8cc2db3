//! The server that shims publish their events to.
//!
//! Best effort, as the protocol is: what does not fit the queue is refused, so a
//! receiver that must not miss an exit holds a [`Shim::wait`](crate::Shim::wait) too.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use berth_model::container::Timestamp;
use containerd_shim_protos::api;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::{Message, MessageField};
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener};
use ttrpc::{Code, get_status};

use crate::task::timestamp;

type Stamp = MessageField<protobuf::well_known_types::timestamp::Timestamp>;

/// Something that happened to a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// The namespace the shim was started with.
    pub namespace: String,
    /// The container's id, as the shim gave it.
    pub container: String,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EventKind {
    /// It was created.
    Created {
        /// Pid of its first process.
        pid: u32,
    },
    /// Its program was executed.
    Started {
        /// Pid of its first process.
        pid: u32,
    },
    /// A process ended.
    Exited {
        /// `None` for the first process, else the exec id.
        exec: Option<String>,
        /// Pid it had.
        pid: u32,
        /// Exit code, or 128 and the signal's number.
        code: i32,
        /// When it ended.
        at: Timestamp,
    },
    /// The kernel killed a process for the memory limit.
    OutOfMemory,
    /// It was deleted.
    Deleted,
    /// Anything else, by its topic.
    Other(String),
}

/// Serves `containerd.services.events.ttrpc.v1.Events` on a unix socket.
pub struct EventServer {
    /// In a mutex only because ttrpc's server is not `Sync`; nobody contends for it.
    server: Mutex<Server>,
    path: PathBuf,
}

impl fmt::Debug for EventServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventServer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl EventServer {
    /// Listens at `path` (made anew, mode 0600); at most `capacity` events wait in the
    /// returned queue. Must be called inside a tokio runtime.
    pub async fn listen(path: &Path, capacity: usize) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let (queue, events) = mpsc::channel(capacity);
        let service = create_events(Arc::new(Service { queue }));
        let mut server =
            Server::new().add_listener(Listener::try_from(listener)?).register_service(service);
        server.start().await.map_err(io::Error::other)?;
        Ok((Self { server: Mutex::new(server), path: path.to_owned() }, events))
    }

    /// What a shim is told to connect to: the path, for the environment's `TTRPC_ADDRESS`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops listening, closes every connection and removes the socket.
    pub async fn stop(self) -> io::Result<()> {
        let mut server = self.server.into_inner().unwrap_or_else(PoisonError::into_inner);
        server.shutdown().await.map_err(io::Error::other)?;
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

struct Service {
    queue: mpsc::Sender<Event>,
}

#[async_trait]
impl Events for Service {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: api::ForwardRequest,
    ) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = decode(&envelope)
            .map_err(|error| ttrpc::Error::RpcStatus(get_status(Code::INVALID_ARGUMENT, error)))?;
        self.queue.try_send(event).map_err(|_| {
            ttrpc::Error::RpcStatus(get_status(Code::RESOURCE_EXHAUSTED, "event queue is full"))
        })?;
        Ok(api::Empty::new())
    }
}

fn decode(envelope: &Envelope) -> protobuf::Result<Event> {
    let any = envelope.event.clone().unwrap_or_default();
    let at = |stamp: &Stamp| stamp.as_ref().map(timestamp).unwrap_or_default();
    let (container, kind) = match any.type_url.rsplit(['/', '.']).next().unwrap_or_default() {
        "TaskCreate" => {
            let event = events::TaskCreate::parse_from_bytes(&any.value)?;
            (event.container_id, EventKind::Created { pid: event.pid })
        }
        "TaskStart" => {
            let event = events::TaskStart::parse_from_bytes(&any.value)?;
            (event.container_id, EventKind::Started { pid: event.pid })
        }
        "TaskExit" => {
            let event = events::TaskExit::parse_from_bytes(&any.value)?;
            let kind = EventKind::Exited {
                exec: (event.id != event.container_id && !event.id.is_empty()).then_some(event.id),
                pid: event.pid,
                code: i32::try_from(event.exit_status).unwrap_or(255),
                at: at(&event.exited_at),
            };
            (event.container_id, kind)
        }
        "TaskOOM" => {
            let event = events::TaskOOM::parse_from_bytes(&any.value)?;
            (event.container_id, EventKind::OutOfMemory)
        }
        "TaskDelete" => {
            let event = events::TaskDelete::parse_from_bytes(&any.value)?;
            (event.container_id, EventKind::Deleted)
        }
        _ => (String::new(), EventKind::Other(envelope.topic.clone())),
    };
    Ok(Event { namespace: envelope.namespace.clone(), container, kind })
}
