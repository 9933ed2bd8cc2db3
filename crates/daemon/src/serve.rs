//! The life of the daemon: configuration to engine, engine to front, signal to end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_content::Content;
use berth_engine::Engine;
use berth_image::Images;
use berth_metadata::ImageStore;
use berth_registry::Client;
use berth_snapshot::Snapshots;
use berth_streaming::Server;
use berth_telemetry::{Collector, Metrics, Telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::directories::{PASSABLE, PRIVATE, make_own};
use crate::listen::listen;
use crate::lock::DirectoryLock;
use crate::metrics::{Address, Listener};
use crate::reload::Reloading;
use crate::{configuration, lock, notify, settings};

/// Two threads serve every client; what blocks goes to others, which end when idle. Of these,
/// all paths that may hang together (`PATH_THREADS` of the engine) leave some.
const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 96;
/// How long blocking work may take after everything else has ended.
const DRAIN: Duration = Duration::from_secs(5);
/// How often freed memory is given back to the kernel.
const TRIM_PERIOD: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT, as the file at `path` says. Pods keep running.
pub(crate) fn serve(path: Option<PathBuf>) -> Result<()> {
    let config = configuration(path.clone())?;
    // Whoever starts more threads than there are processors would get an arena for each.
    let limited = berth_sys::allocator::limit_arenas(2);
    let metrics = Address::parse(&config.metrics.address).map_err(anyhow::Error::msg)?;
    let metrics = metrics.map(|address| (address, Metrics::new()));
    let telemetry = telemetry(&config, metrics.as_ref().map(|(_, metrics)| metrics))?;
    if !limited {
        tracing::debug!("the allocator keeps its own number of arenas");
    }
    // What may be wrong with them is found before anything is made.
    let plan = plan(path, config, metrics)?;
    let config = &plan.config;
    make_own(&config.root, PRIVATE, lock::FILE)?;
    make_own(&config.state, PASSABLE, lock::FILE)?;
    let locks = (DirectoryLock::take(&config.root)?, DirectoryLock::take(&config.state)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(run(plan, &telemetry));
    runtime.shutdown_timeout(DRAIN);
    drop(locks);
    // The last spans may take a moment, in which another daemon may be starting.
    telemetry.shutdown();
    served
}

/// Logs, and traces if the environment names a collector. One that cannot be used is no
/// reason not to serve.
fn telemetry(config: &Config, metrics: Option<&Metrics>) -> Result<Telemetry> {
    let collector = Collector::from_environment("berthd", |name| std::env::var(name).ok());
    let exporting = collector.and_then(|found| found.map(Collector::start).transpose());
    let (exporting, failed) = match exporting {
        Ok(exporting) => (exporting, None),
        Err(error) => (None, Some(error)),
    };
    let (format, filter) = (config.log.format.parse()?, config.log.filter.parse()?);
    let telemetry = berth_telemetry::init(format, filter, exporting, metrics)?;
    if let Some(error) = failed {
        tracing::warn!(error = &error as &dyn std::error::Error, "traces are not exported");
    }
    Ok(telemetry)
}

/// What the daemon is made of that touches nothing yet.
struct Plan {
    path: Option<PathBuf>,
    config: Config,
    metrics: Option<(Address, Metrics)>,
    client: Client,
    engine: berth_engine::Config,
    streams: Server,
}

fn plan(
    path: Option<PathBuf>,
    config: Config,
    metrics: Option<(Address, Metrics)>,
) -> Result<Plan> {
    let client = Client::new(settings::registry(&config, settings::proxies()));
    let client = client.context("environment")?;
    let engine = settings::engine(&config)?;
    let streams = Server::bind(settings::streaming(&config)?)?;
    Ok(Plan { path, config, metrics, client, engine, streams })
}

async fn run(plan: Plan, telemetry: &Telemetry) -> Result<()> {
    let Plan { path, config, metrics, client, engine, streams } = plan;
    let shutdown = CancellationToken::new();
    let mut ends = Ends::watch()?;
    // Before it is watched it would end the process.
    let hangup = signal(SignalKind::hangup()).context("watch SIGHUP")?;
    // Whoever can connect can also end the daemon well: signals first, the socket then.
    let socket = config.socket();
    let listener = listen(&socket)?;
    let numbers = match metrics {
        Some((address, metrics)) => Some((Listener::bind(&address).await?, metrics)),
        None => None,
    };
    // Whoever ends the daemon while it opens does not wait for that: it may be cut off at
    // any point, as a kill would.
    let engine = tokio::select! {
        opened = open_engine(&config, client.clone(), engine) => opened?,
        () = ends.come() => return Ok(()),
    };
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    let stop = shutdown.clone().cancelled_owned();
    let urls = streams.urls();
    let (shown, config_shown) = watch::channel(settings::shown(&config));
    let front = berth_cri::serve(incoming, engine.clone(), urls, config_shown, stop);
    let mut front = tokio::spawn(front);
    let backend = berth_cri::StreamBackend::new(engine.clone());
    let streams = tokio::spawn(streams.serve(backend, shutdown.clone()));
    let trimmer = tokio::spawn(trim(shutdown.clone()));
    let numbers = numbers.map(|(listener, metrics)| {
        tokio::spawn(listener.serve(metrics, engine.clone(), shutdown.clone()))
    });

    notify::notify(std::env::var_os("NOTIFY_SOCKET"), notify::READY)
        .context("notify supervisor")?;
    tracing::info!(socket = %socket.display(), root = %config.root.display(), "ready");
    let mut reloading =
        Reloading { path, running: config, shown, telemetry, client, engine: engine.clone() };
    let early = tokio::select! {
        () = ends.come() => None,
        ended = &mut front => Some(ended),
        () = reloading.watch(hangup) => None,
    };
    tracing::info!("ending; pods keep running");
    shutdown.cancel();
    // The front itself cuts off requests that take too long to end.
    let ended = match early {
        Some(ended) => ended,
        None => front.await,
    };
    streams.await.context("the streams' front died")?.context("serve streams")?;
    engine.shutdown().await;
    trimmer.await.context("the trimming task died")?;
    if let Some(numbers) = numbers {
        numbers.await.context("the task of metrics died")?;
    }
    ended.context("the CRI front died")
}

/// The signals that end the daemon.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn watch() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("watch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watch SIGINT")?,
        })
    }

    /// Resolves when one came.
    async fn come(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn open_engine(
    config: &Config,
    client: Client,
    engine: berth_engine::Config,
) -> Result<Engine> {
    let store = ImageStore::recover(&config.root.join("images.db"))?;
    let content = Content::open(config.root.join("content"))?;
    let snapshots = Snapshots::open(&config.root.join("snapshots"))?;
    let images = Images::new(store, content, snapshots, client, settings::images(config));
    Ok(Engine::open(engine, images).await?)
}

/// Gives freed memory back until `shutdown`.
async fn trim(shutdown: CancellationToken) {
    let mut passes = tokio::time::interval(TRIM_PERIOD);
    passes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(passes.tick()).await.is_some() {
        berth_sys::allocator::trim();
    }
}
