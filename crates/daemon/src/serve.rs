//! The life of the daemon: configuration to engine, engine to front, signal to end.

use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_content::Content;
use berth_engine::Engine;
use berth_image::Images;
use berth_metadata::ImageStore;
use berth_registry::{Client, Proxies};
use berth_snapshot::Snapshots;
use berth_streaming::Server;
use berth_telemetry::{Collector, Telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::directories::{PASSABLE, PRIVATE, make_own};
use crate::listen::listen;
use crate::lock::DirectoryLock;
use crate::{lock, notify, settings};

/// Two threads serve every client; what blocks goes to others, which end when idle.
const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 32;
/// How long blocking work may take after everything else has ended.
const DRAIN: Duration = Duration::from_secs(5);
/// How often freed memory is given back to the kernel.
const TRIM_PERIOD: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT. Pods keep running.
pub(crate) fn serve(config: Config) -> Result<()> {
    // Whoever starts more threads than there are processors would get an arena for each.
    let limited = berth_sys::allocator::limit_arenas(2);
    let telemetry = telemetry(&config)?;
    if !limited {
        tracing::debug!("the allocator keeps its own number of arenas");
    }
    // What may be wrong with them is found before anything is made.
    let plan = plan(config)?;
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
    let served = runtime.block_on(run(plan));
    runtime.shutdown_timeout(DRAIN);
    drop(locks);
    // The last spans may take a moment, in which another daemon may be starting.
    telemetry.shutdown();
    served
}

/// Logs, and traces if the environment names a collector. One that cannot be used is no
/// reason not to serve.
fn telemetry(config: &Config) -> Result<Telemetry> {
    let collector = Collector::from_environment("berthd", |name| std::env::var(name).ok());
    let exporting = collector.and_then(|found| found.map(Collector::start).transpose());
    let (exporting, failed) = match exporting {
        Ok(exporting) => (exporting, None),
        Err(error) => (None, Some(error)),
    };
    let (format, filter) = (config.log.format.parse()?, config.log.filter.parse()?);
    let telemetry = berth_telemetry::init(format, filter, exporting)?;
    if let Some(error) = failed {
        tracing::warn!(error = &error as &dyn std::error::Error, "traces are not exported");
    }
    Ok(telemetry)
}

/// What the daemon is made of that touches nothing yet.
struct Plan {
    config: Config,
    client: Client,
    engine: berth_engine::Config,
    streams: Server,
}

fn plan(config: Config) -> Result<Plan> {
    let proxies = Proxies::from_environment(|name| std::env::var(name).ok());
    let client = Client::new(settings::registry(&config, proxies)).context("environment")?;
    let engine = settings::engine(&config)?;
    let streams = Server::bind(settings::streaming(&config)?)?;
    Ok(Plan { config, client, engine, streams })
}

async fn run(plan: Plan) -> Result<()> {
    let Plan { config, client, engine, streams } = plan;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    // Whoever can connect can also end the daemon well: signals first, the socket then.
    let socket = config.socket();
    let listener = listen(&socket)?;
    let root = config.root.clone();
    // Whoever ends the daemon while it opens does not wait for that: it may be cut off at
    // any point, as a kill would.
    let engine = tokio::select! {
        opened = open_engine(&config, client, engine) => opened?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?);
    let stop = shutdown.clone().cancelled_owned();
    let urls = streams.urls();
    let mut front = tokio::spawn(berth_cri::serve(incoming, engine.clone(), urls, stop));
    let backend = berth_cri::StreamBackend::new(engine.clone());
    let streams = tokio::spawn(streams.serve(backend, shutdown.clone()));
    let trimmer = tokio::spawn(trim(shutdown.clone()));

    notify::notify(std::env::var_os("NOTIFY_SOCKET"), "READY=1\n").context("notify supervisor")?;
    tracing::info!(socket = %socket.display(), root = %root.display(), "ready");
    let early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut front => Some(ended),
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
    ended.context("the CRI front died")
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
