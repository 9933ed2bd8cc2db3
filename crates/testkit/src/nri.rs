//! A plugin of the Node Resource Interface, byte by byte: it shares no code with the
//! runtime that it is to test.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use berth_api::nri::{
    self, ConfigureRequest, ConfigureResponse, Container, ContainerEvent, Empty, PodEvent,
    PodSandbox, RegisterPluginRequest, StateChangeEvent, SynchronizeRequest, SynchronizeResponse,
    UpdateContainersRequest, UpdateContainersResponse,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// Connections of the socket: where the plugin serves, and where it asks.
const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;

/// ttrpc's `Request`.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

/// ttrpc's `Response`.
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// What the runtime has asked.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The method.
    pub method: String,
    /// The request as it came.
    pub payload: Vec<u8>,
}

impl Heard {
    /// The request as the message it is.
    pub fn read<M: prost::Message + Default>(&self) -> Result<M> {
        Ok(M::decode(&self.payload[..])?)
    }

    /// The pod of a request that has one.
    #[must_use]
    pub fn pod(&self) -> PodSandbox {
        let pod = match self.method.as_str() {
            "Synchronize" => None,
            "StateChange" => self.read::<StateChangeEvent>().ok().and_then(|event| event.pod),
            _ => self.read::<PodEvent>().ok().and_then(|event| event.pod),
        };
        pod.unwrap_or_default()
    }

    /// The container of a request that has one.
    #[must_use]
    pub fn container(&self) -> Container {
        let event = match self.method.as_str() {
            "Synchronize" => None,
            _ => self.read::<ContainerEvent>().ok(),
        };
        event.and_then(|event| event.container).unwrap_or_default()
    }
}

/// What a plugin does with a request.
#[derive(Debug)]
pub enum Reaction {
    /// An empty answer.
    Nothing,
    /// This answer.
    Answer(Vec<u8>),
    /// An error with these words.
    Refuse(String),
    /// It has no such method.
    Unimplemented,
    /// No answer, ever.
    Silence,
    /// Nothing until the other end is used or dropped, then an empty answer.
    Wait(oneshot::Receiver<()>),
    /// The end of the connection.
    Close,
}

impl Reaction {
    /// The answer `message`.
    pub fn answer(message: &impl prost::Message) -> Self {
        Self::Answer(message.encode_to_vec())
    }
}

/// What a plugin is and does.
pub struct Options {
    /// Two digits.
    pub index: String,
    /// Its name.
    pub name: String,
    /// Bits of what it wants to hear; none is all.
    pub events: i32,
    /// Decides what each request leads to; configuration is answered before it.
    pub react: Box<dyn Fn(&Heard) -> Reaction + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("index", &self.index).field("name", &self.name).finish()
    }
}

impl Options {
    /// Hears everything, and objects to nothing.
    #[must_use]
    pub fn observer(index: &str, name: &str) -> Self {
        let react = Box::new(|_: &Heard| Reaction::Nothing);
        Self { index: index.into(), name: name.into(), events: 0, react }
    }

    /// Hears everything, and reacts.
    #[must_use]
    pub fn reacting(
        index: &str,
        react: impl Fn(&Heard) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        Self { react: Box::new(react), ..Self::observer(index, "reacting") }
    }
}

/// A plugin that is connected.
pub struct Plugin {
    shared: Arc<Shared>,
    out: mpsc::Sender<Vec<u8>>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    options: Options,
    heard: Mutex<Vec<Heard>>,
    news: Notify,
    answers: Mutex<(u32, HashMap<u32, oneshot::Sender<Response>>)>,
    closed: tokio::sync::watch::Sender<bool>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Connects, registers, and returns once it was told what exists.
    pub async fn connect(socket: &Path, options: Options) -> Result<Self> {
        let plugin = Self::register(socket, options).await?;
        plugin
            .wait_for("Synchronize", |heard| {
                heard.method == "Synchronize"
                    && heard.read::<SynchronizeRequest>().is_ok_and(|request| !request.more)
            })
            .await?;
        Ok(plugin)
    }

    /// Connects and registers.
    pub async fn register(socket: &Path, options: Options) -> Result<Self> {
        let stream = StdStream::connect(socket).context("connect to the plugin socket")?;
        stream.set_nonblocking(true)?;
        let plugin = Self::over(UnixStream::from_std(stream)?, options);
        let (index, name) = {
            let options = &plugin.shared.options;
            (options.index.clone(), options.name.clone())
        };
        let request = RegisterPluginRequest {
            plugin_name: name,
            plugin_idx: index,
            nri_version: String::new(),
        };
        plugin.ask::<Empty>("RegisterPlugin", &request).await?;
        Ok(plugin)
    }

    /// Speaks over `stream`, and has not registered.
    #[must_use]
    pub fn over(stream: UnixStream, options: Options) -> Self {
        let (out, outgoing) = mpsc::channel(64);
        let (closed, _) = tokio::sync::watch::channel(false);
        let shared = Arc::new(Shared {
            options,
            heard: Mutex::default(),
            news: Notify::new(),
            answers: Mutex::new((1, HashMap::new())),
            closed,
        });
        let (reader, writer) = stream.into_split();
        let reading = tokio::spawn(read(Arc::clone(&shared), reader, out.clone()));
        let writing = tokio::spawn(write(writer, outgoing));
        Self { shared, out, tasks: vec![reading, writing] }
    }

    /// All that was heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        lock(&self.shared.heard).clone()
    }

    /// The methods heard so far that name `id`: a pod's, or one of its container's.
    #[must_use]
    pub fn methods(&self, id: &str) -> Vec<String> {
        let names = |heard: &&Heard| heard.pod().id == id || heard.container().id == id;
        self.heard().iter().filter(names).map(|heard| heard.method.clone()).collect()
    }

    /// Waits until something was heard; `what` is for people.
    pub async fn wait_for(&self, what: &str, found: impl Fn(&Heard) -> bool) -> Result<Heard> {
        let waiting = async {
            loop {
                let news = self.shared.news.notified();
                if let Some(heard) = self.heard().into_iter().find(&found) {
                    return heard;
                }
                news.await;
            }
        };
        let found = timeout(DEADLINE, waiting).await;
        found.with_context(|| format!("the plugin did not hear {what}: {:?}", self.heard_methods()))
    }

    fn heard_methods(&self) -> Vec<String> {
        self.heard().into_iter().map(|heard| heard.method).collect()
    }

    /// Waits until the runtime has closed the connection.
    pub async fn wait_closed(&self) -> Result<()> {
        let mut closed = self.shared.closed.subscribe();
        timeout(DEADLINE, closed.wait_for(|closed| *closed)).await.context("not closed")??;
        Ok(())
    }

    /// Whether the runtime has closed the connection.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// Asks for updates; returns what failed.
    pub async fn update(&self, request: &UpdateContainersRequest) -> Result<Vec<String>> {
        let answer: UpdateContainersResponse = self.ask("UpdateContainers", request).await?;
        Ok(answer.failed.into_iter().map(|update| update.container_id).collect())
    }

    /// Asks the runtime.
    pub async fn ask<A: prost::Message + Default>(
        &self,
        method: &str,
        request: &impl prost::Message,
    ) -> Result<A> {
        let request = Request {
            service: nri::RUNTIME.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
        };
        let (answer, answered) = oneshot::channel();
        let stream = {
            let mut answers = lock(&self.shared.answers);
            let stream = answers.0;
            answers.0 += 2;
            answers.1.insert(stream, answer);
            stream
        };
        self.out.send(message(RUNTIME, stream, 1, &request.encode_to_vec())?).await?;
        let response = timeout(DEADLINE, answered).await.context("no answer")?;
        let response = response.context("the connection closed")?;
        match response.status {
            Some(status) if status.code != 0 => bail!("{} ({})", status.message, status.code),
            _ => Ok(A::decode(&response.payload[..])?),
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.out.send(bytes).await?)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A message in one frame.
pub fn message(connection: u32, stream: u32, kind: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let size = u32::try_from(payload.len())?;
    let mut bytes = connection.to_be_bytes().to_vec();
    bytes.extend((size + 10).to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

async fn write(mut writer: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = outgoing.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read(shared: Arc<Shared>, mut reader: OwnedReadHalf, out: mpsc::Sender<Vec<u8>>) {
    let mut streams: HashMap<u32, Vec<u8>> = HashMap::new();
    while let Ok((connection, bytes)) = frame(&mut reader).await {
        let received = streams.entry(connection).or_default();
        received.extend(bytes);
        while let Some((stream, kind, payload)) = whole(received) {
            match (connection, kind) {
                (PLUGIN, 1) => {
                    let Ok(request) = Request::decode(&payload[..]) else { return };
                    tokio::spawn(serve(Arc::clone(&shared), stream, request, out.clone()));
                }
                (RUNTIME, 2) => {
                    let waiting = lock(&shared.answers).1.remove(&stream);
                    let response = Response::decode(&payload[..]).unwrap_or_default();
                    if let Some(waiting) = waiting {
                        let _unheard = waiting.send(response);
                    }
                }
                _ => {}
            }
        }
    }
    lock(&shared.answers).1.clear();
    shared.closed.send_replace(true);
}

async fn frame(reader: &mut OwnedReadHalf) -> std::io::Result<(u32, Vec<u8>)> {
    let (connection, length) = (reader.read_u32().await?, reader.read_u32().await?);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    reader.read_exact(&mut bytes).await?;
    Ok((connection, bytes))
}

/// The first message of a connection, once it is whole.
fn whole(received: &mut Vec<u8>) -> Option<(u32, u8, Vec<u8>)> {
    let number = |at: usize| Some(u32::from_be_bytes(received.get(at..at + 4)?.try_into().ok()?));
    let end = 10 + usize::try_from(number(0)?).ok()?;
    let (stream, kind) = (number(4)?, *received.get(8)?);
    let payload = received.get(10..end)?.to_vec();
    received.drain(..end);
    Some((stream, kind, payload))
}

async fn serve(shared: Arc<Shared>, stream: u32, request: Request, out: mpsc::Sender<Vec<u8>>) {
    let heard = Heard { method: request.method, payload: request.payload };
    let reaction = match heard.method.as_str() {
        "Configure" if heard.read::<ConfigureRequest>().is_ok() => {
            Reaction::answer(&ConfigureResponse { events: shared.options.events })
        }
        _ => (shared.options.react)(&heard),
    };
    let synchronizing = heard.method == "Synchronize";
    let more = synchronizing && heard.read::<SynchronizeRequest>().is_ok_and(|all| all.more);
    lock(&shared.heard).push(heard);
    shared.news.notify_waiters();
    let nothing = SynchronizeResponse { more, ..Default::default() }.encode_to_vec();
    let error =
        |code, message: &str| (Some(Status { code, message: message.to_owned() }), Vec::new());
    let (status, payload) = match reaction {
        Reaction::Nothing => (None, nothing),
        Reaction::Answer(payload) => (None, payload),
        Reaction::Refuse(message) => error(2, &message),
        Reaction::Unimplemented => error(12, "no such method"),
        Reaction::Wait(until) => {
            let _used_or_dropped = until.await;
            (None, nothing)
        }
        Reaction::Silence => return,
        Reaction::Close => {
            // Whatever this is, it is no message.
            let _gone = out.send(vec![0xff; 64]).await;
            return;
        }
    };
    let response = Response { status, payload }.encode_to_vec();
    if let Ok(bytes) = message(PLUGIN, stream, 2, &response) {
        let _gone = out.send(bytes).await;
    }
}
