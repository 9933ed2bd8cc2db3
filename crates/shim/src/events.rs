//! Publishes what happens to containerd's event service, or berthd's, without ever waiting.
//!
//! Best effort: an event that finds the queue full, or nobody listening, is dropped.
//! Whoever must know of an exit holds a `Wait`.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskOOM, TaskStart};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::topics;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use ttrpc::asynchronous::{Client, transport::Socket};

use crate::reaper::Exit;

/// Events that may wait while the receiver is slow.
const QUEUE: usize = 256;
/// How long one event may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so long without an event the connection is given up: it costs memory on both ends.
const IDLE: Duration = Duration::from_secs(5);

/// The sending end.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: Option<mpsc::Sender<Envelope>>,
    namespace: String,
}

impl Publisher {
    /// Publishes to the unix socket at `address`; to nobody if that is empty.
    pub(crate) fn new(address: &str, namespace: &str) -> Self {
        let namespace = namespace.to_owned();
        let path = address.strip_prefix("unix://").unwrap_or(address);
        if path.is_empty() {
            return Self { queue: None, namespace };
        }
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(deliver(path.to_owned(), events));
        Self { queue: Some(queue), namespace }
    }

    pub(crate) fn created(&self, container: &str, bundle: &str, pid: u32) {
        let mut event = TaskCreate::new();
        event.container_id = container.to_owned();
        event.bundle = bundle.to_owned();
        event.pid = pid;
        self.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
    }

    pub(crate) fn started(&self, container: &str, pid: u32) {
        let mut event = TaskStart::new();
        event.container_id = container.to_owned();
        event.pid = pid;
        self.publish(topics::TASK_START_EVENT_TOPIC, &event);
    }

    /// `id` is the container's for its first process, else the added one's.
    pub(crate) fn exited(&self, container: &str, id: &str, pid: u32, exit: Exit) {
        let mut event = TaskExit::new();
        event.container_id = container.to_owned();
        event.id = id.to_owned();
        event.pid = pid;
        event.exit_status = exit.code;
        event.exited_at = Some(timestamp(exit.at)).into();
        self.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    pub(crate) fn out_of_memory(&self, container: &str) {
        let mut event = TaskOOM::new();
        event.container_id = container.to_owned();
        self.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    pub(crate) fn deleted(&self, container: &str, id: &str, pid: u32, exit: Exit) {
        let mut event = TaskDelete::new();
        event.container_id = container.to_owned();
        event.id = id.to_owned();
        event.pid = pid;
        event.exit_status = exit.code;
        event.exited_at = Some(timestamp(exit.at)).into();
        self.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
    }

    fn publish<M: Message>(&self, topic: &str, event: &M) {
        let Some(queue) = &self.queue else { return };
        let mut any = Any::new();
        // Not from the descriptor: reflection would build tables that stay for ever.
        any.type_url = format!("containerd.events.{}", M::NAME);
        let Ok(value) = event.write_to_bytes() else { return };
        any.value = value;
        let mut envelope = Envelope::new();
        envelope.timestamp = Some(timestamp(berth_failpoint::now())).into();
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = topic.to_owned();
        envelope.event = Some(any).into();
        // A full queue: the receiver is away or slow, and this is best effort.
        drop(queue.try_send(envelope));
    }
}

/// A time as the protocol carries it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut stamp = Timestamp::new();
    stamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    stamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    stamp
}

async fn deliver(path: String, mut events: mpsc::Receiver<Envelope>) {
    let mut client: Option<EventsClient> = None;
    loop {
        let next = if client.is_some() {
            timeout(IDLE, events.recv()).await
        } else {
            Ok(events.recv().await)
        };
        let envelope = match next {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return,
            Err(_) => {
                client = None;
                continue;
            }
        };
        let mut request = ForwardRequest::new();
        request.envelope = Some(envelope).into();
        // A connection from before may be stale: berthd was restarted. So a second one.
        for _ in 0..2 {
            if client.is_none() {
                client = connect(&path).await;
            }
            let Some(connected) = &client else { break };
            let nanos = i64::try_from(PATIENCE.as_nanos()).unwrap_or(i64::MAX);
            let context = ttrpc::context::with_timeout(nanos);
            match connected.forward(context, &request).await {
                Ok(_) | Err(ttrpc::Error::RpcStatus(_)) => break,
                Err(_) => client = None,
            }
        }
    }
}

async fn connect(path: &str) -> Option<EventsClient> {
    let stream = timeout(PATIENCE, UnixStream::connect(path)).await.ok()?.ok()?;
    Some(EventsClient::new(Client::new(Socket::new(stream))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that is stopped: it takes the connection, and answers nothing.
    #[tokio::test]
    async fn events_that_nobody_takes_are_dropped_and_cost_neither_time_nor_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let publisher = Publisher::new(path.to_str().unwrap(), "k8s.io");
        let begun = std::time::Instant::now();
        for n in 0..100_000 {
            publisher.started("a", n);
        }
        let queue = publisher.queue.as_ref().unwrap();
        assert_eq!((queue.max_capacity(), queue.capacity()), (QUEUE, 0));
        tokio::task::yield_now().await;
        for n in 0..1000 {
            publisher.started("a", n);
        }
        // The one on its way has left the queue.
        assert!(queue.capacity() <= 1);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
