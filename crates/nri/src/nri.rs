//! The plugins of a node, as the engine sees them.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use berth_api::nri::{Container, ContainerEviction, ContainerUpdate, Event, PodSandbox};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listen::Listening;
use crate::names::{ALL, bit};
use crate::plugin::Plugin;
use crate::{Error, join, launch, listen};

/// Most changes under way at one time; further ones wait.
const PASSAGES: u32 = 1 << 16;
/// Most plugins; further ones are refused.
pub(crate) const MAX_PLUGINS: usize = 64;

/// A future of an object's method.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the daemon's configuration says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where plugins connect; `None` lets none connect.
    pub socket: Option<PathBuf>,
    /// Where programs lie that are started with the daemon, called `NN-name`.
    pub plugins: PathBuf,
    /// Where their configurations lie, called `NN-name.conf` or `name.conf`.
    pub configurations: PathBuf,
    /// How long a plugin may take to register, and to be told what exists.
    pub registration_timeout: Duration,
    /// How long it may take to answer a request.
    pub request_timeout: Duration,
    /// What plugins are told to be connected to.
    pub runtime: (String, String),
}

/// All that exists at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every sandbox.
    pub pods: Vec<PodSandbox>,
    /// Every container that has not ended.
    pub containers: Vec<Container>,
    /// Ids of those that have.
    pub ended: Vec<String>,
}

/// Who has the pods and containers.
pub trait Runtime: Send + Sync + 'static {
    /// All that exists.
    fn snapshot(&self) -> Answer<'_, Snapshot>;

    /// Changes limits of containers, and stops some; what could not be changed comes back.
    fn update(
        &self,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Answer<'_, Vec<ContainerUpdate>>;
}

/// The plugins of a node; clones share everything.
#[derive(Clone, Debug)]
pub struct Nri {
    pub(crate) shared: Arc<Shared>,
}

/// The plugins as an operator sees them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Where plugins connect.
    pub socket: Option<PathBuf>,
    /// Whether that is ours: another runtime may have it, or have taken its name.
    pub listening: bool,
    /// In the order in which they are asked.
    pub plugins: Vec<PluginStatus>,
    /// How many are about to join.
    pub joining: u32,
}

/// One plugin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PluginStatus {
    /// Two digits.
    pub index: String,
    /// Its name.
    pub name: String,
    /// Whether it is not being let go.
    pub connected: bool,
}

/// Held while something comes to be or ceases to be: no plugin is told meanwhile of all
/// that exists, so it is told of each thing either then or by its hooks.
#[derive(Debug)]
pub struct Passage(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

pub(crate) struct Shared {
    pub(crate) config: Config,
    runtime: OnceLock<Arc<dyn Runtime>>,
    /// Which file the socket is, since it is there.
    listening: OnceLock<(u64, u64)>,
    /// Bits of all that some plugin wants to hear.
    wanted: AtomicU32,
    /// In the order of their indices.
    plugins: Mutex<Vec<Arc<Plugin>>>,
    /// A plugin that joins takes all of them.
    passages: Arc<Semaphore>,
    /// Whose turn it is to ask the plugins.
    turn: Semaphore,
    /// How many plugins are about to join.
    joining: AtomicU32,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nri").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Nri {
    /// Does nothing until [`Nri::start`].
    #[must_use]
    pub fn new(config: Config) -> Self {
        let shared = Shared {
            config,
            runtime: OnceLock::new(),
            listening: OnceLock::new(),
            wanted: AtomicU32::new(0),
            plugins: Mutex::default(),
            passages: Arc::new(Semaphore::new(usize::try_from(PASSAGES).unwrap_or(usize::MAX))),
            turn: Semaphore::new(1),
            joining: AtomicU32::new(0),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the programs of the plugin directory, waits until each has joined or was
    /// given up, then lets others connect, unless another runtime has the socket.
    ///
    /// # Errors
    /// A directory that cannot be read, or a socket that cannot be made. What is wrong
    /// with one plugin is logged, and so is a socket that another runtime has.
    pub async fn start(&self, runtime: Arc<dyn Runtime>) -> Result<(), Error> {
        let _set_before = self.shared.runtime.set(runtime);
        for program in launch::programs(&self.shared.config).await? {
            let plugin = program.to_string();
            match launch::start(&program) {
                Ok((stream, process)) => {
                    join::launched(&self.shared, stream, program, process).await
                }
                Err(error) => {
                    tracing::warn!(
                        plugin,
                        error = &error as &dyn std::error::Error,
                        "start plugin"
                    );
                }
            }
        }
        if let Some(socket) = &self.shared.config.socket {
            match listen::bind(socket).await {
                Ok(listening) => {
                    self.shared.listens(&listening);
                    self.shared.tasks.spawn(listen::accept(Arc::clone(&self.shared), listening));
                }
                // Every runtime's default is the same socket: the first one has it.
                Err(error @ Error::InUse(_)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "no plugin can connect until it is free");
                    let shared = Arc::clone(&self.shared);
                    self.shared.tasks.spawn(listen::take_over(shared, socket.clone()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells plugins that the runtime goes, and lets go of them. Programs that were
    /// started here are ended.
    pub async fn shutdown(&self) {
        let plugins = self.shared.plugins();
        let limit = self.shared.config.request_timeout;
        if let Ok(_turn) = tokio::time::timeout(limit, self.shared.turn.acquire()).await {
            for plugin in &plugins {
                plugin.shut_down(limit.min(Duration::from_millis(500))).await;
            }
        }
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Who is connected, and whether others can connect. Looks at the socket's file.
    #[must_use]
    pub fn status(&self) -> Status {
        let told = |plugin: &Arc<Plugin>| PluginStatus {
            index: plugin.index.clone(),
            name: plugin.name.clone(),
            connected: !plugin.connection.is_closed(),
        };
        let socket = self.shared.config.socket.clone();
        let own = self.shared.listening.get();
        let own_file = |socket: &PathBuf| listen::file(socket).ok().as_ref() == own;
        Status {
            listening: own.is_some() && socket.as_ref().is_some_and(own_file),
            socket,
            plugins: self.shared.plugins().iter().map(told).collect(),
            joining: self.shared.joining.load(Ordering::SeqCst),
        }
    }

    /// Whether any plugin wants to hear of `event`. Costs the reading of an integer.
    #[must_use]
    pub fn wants(&self, event: Event) -> bool {
        self.shared.wanted.load(Ordering::SeqCst) & bit(event) != 0
    }

    /// Taken before a thing's first hook, and held until it is published, or gone.
    /// Waits only while a plugin joins.
    pub async fn pass(&self) -> Result<Passage, Error> {
        let passages = &self.shared.passages;
        if let Ok(passage) = Arc::clone(passages).try_acquire_owned() {
            return Ok(Passage(passage));
        }
        let waited = Arc::clone(passages).acquire_owned().await;
        waited.map(Passage).map_err(|_| Error::ShuttingDown)
    }
}

impl Shared {
    /// Plugins can connect from now on.
    pub(crate) fn listens(&self, listening: &Listening) {
        // It is made once.
        let _set_before = self.listening.set(listening.file());
    }

    pub(crate) fn runtime(&self) -> Option<&Arc<dyn Runtime>> {
        self.runtime.get()
    }

    pub(crate) fn plugins(&self) -> Vec<Arc<Plugin>> {
        self.locked().clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Plugin>>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to ask the plugins.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.turn.acquire().await.map_err(|_| Error::ShuttingDown)
    }

    /// From now on every hook waits for its turn: a plugin is about to join.
    pub(crate) fn expect(self: &Arc<Self>) -> Expected {
        self.joining.fetch_add(1, Ordering::SeqCst);
        self.note_wanted();
        Expected(Arc::clone(self))
    }

    /// Waits until nothing comes to be or ceases to be.
    pub(crate) async fn stand_still(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.passages.acquire_many(PASSAGES).await.map_err(|_| Error::ShuttingDown)
    }

    pub(crate) fn add(&self, plugin: Arc<Plugin>) {
        {
            let mut plugins = self.locked();
            let after = |known: &Arc<Plugin>| known.index <= plugin.index;
            let place = plugins.partition_point(after);
            plugins.insert(place, plugin);
        }
        self.note_wanted();
    }

    pub(crate) fn remove(&self, plugin: &Arc<Plugin>) {
        self.locked().retain(|known| !Arc::ptr_eq(known, plugin));
        self.note_wanted();
    }

    fn note_wanted(&self) {
        let plugins = self.locked();
        let mut wanted = plugins.iter().fold(0, |all, plugin| all | plugin.events);
        if self.joining.load(Ordering::SeqCst) > 0 {
            wanted = ALL;
        }
        self.wanted.store(wanted, Ordering::SeqCst);
    }
}

/// A plugin that is about to join.
#[derive(Debug)]
pub(crate) struct Expected(Arc<Shared>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.joining.fetch_sub(1, Ordering::SeqCst);
        self.0.note_wanted();
    }
}
