//! Random kills under load.
//!
//! ```text
//! clients   pods and images come and go; shims and first processes are killed, callers vanish
//! killer    SIGKILL to berthd, at any moment, also while it starts · gate · oracle · again
//! ```
//!
//! A verb that was cut off is tried again until it is answered, as kubelet does. After each
//! kill the killer waits until no verb is under way: then what the clients were told is
//! certain, and exactly that must be there.

mod client;
mod images;
mod oracle;
mod shared;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::task::block_in_place;

use crate::dump;
use crate::options::Options;
use crate::random::Random;
use crate::stage::Stage;
use crate::tally::{Tally, Times};
use shared::{Counts, Shared};

/// Clients that lead pods.
const CLIENTS: u64 = 5;
/// Clients that pull and remove images.
const PULLERS: u64 = 2;
/// Clients in all.
const STARTED: usize = 7;
/// Pause between two looks at clients that end.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest between two kills, milliseconds.
const QUIET: u64 = 350;
/// Longest until a daemon that starts is killed again, milliseconds.
const STARTING: u64 = 40;
/// How long verbs that are under way may take once a daemon serves.
const DRAIN: Duration = Duration::from_secs(120);
/// Nodes that may fail before nothing more is to be learnt.
const ENOUGH: usize = 5;

/// Kills the daemon at random moments, as often as `options` say.
pub(crate) async fn load(options: &Options) -> Result<Tally> {
    let mut tally = Tally::new("kills");
    let mut totals = Totals::default();
    while tally.rounds < options.kills && tally.failures.len() < ENOUGH && !options.expired() {
        let mut load = Load::begin(options, tally.rounds).await?;
        while tally.rounds < options.kills && !options.expired() {
            let done = load.round().await;
            if !tally.count(&format!("kill {}", tally.rounds), done) {
                let name = format!("kill-{}", tally.rounds);
                dump::keep(options, &name, load.stage.node.daemon().log())?;
                break;
            }
        }
        let failed = tally.failures.len();
        totals.add(&load);
        let ended = load.end(&mut tally).await;
        // A node that failed before is expected to be in disorder.
        if let (Err(error), true) = (ended, tally.failures.len() == failed) {
            tally.count("the end", Err(error));
        }
    }
    totals.tell(&mut tally);
    Ok(tally)
}

#[derive(Debug)]
struct Load {
    stage: Stage,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<()>>>,
    random: Random,
    ready: Times,
    kills: u64,
    starting: u64,
    /// Anonymous memory and descriptors of the daemon before the load.
    before: (u64, usize),
}

impl Load {
    async fn begin(options: &Options, round: u64) -> Result<Self> {
        let stage = Stage::new().await?;
        let images = images::push(&stage.node, PULLERS)?;
        let (cri, image) = (stage.node.cri.clone(), stage.image.clone());
        let shared = Arc::new(Shared::new(cri, image, images, stage.node.dir().join("logs")));
        let seed = options.seed.wrapping_add(round);
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let shared = Arc::clone(&shared);
            let lead = async move || client::lead(&shared, seed, client).await;
            clients.push(spawn(lead)?);
        }
        for client in 0..PULLERS {
            let shared = Arc::clone(&shared);
            let lead = async move || images::lead(&shared, seed, client).await;
            clients.push(spawn(lead)?);
        }
        let before = oracle::size(&stage)?;
        let (random, ready) = (Random::new(seed, "killer"), Times::default());
        Ok(Self { stage, shared, clients, random, ready, kills: 0, starting: 0, before })
    }

    /// Kills the daemon, starts it, and asks the oracle.
    async fn round(&mut self) -> Result<()> {
        tokio::time::sleep(self.random.millis(QUIET)).await;
        self.kill()?;
        let log = self.stage.node.daemon().log().to_owned();
        std::fs::rename(&log, log.with_extension("old")).context("begin a new log")?;
        while self.random.chance(25) {
            block_in_place(|| self.stage.node.launch_daemon())?;
            tokio::time::sleep(self.random.millis(STARTING)).await;
            self.kill()?;
            self.starting += 1;
        }
        if self.random.chance(30) {
            tokio::time::sleep(self.random.millis(200)).await;
        }
        let begun = Instant::now();
        self.stage.node.start_daemon().await.context("start berthd again")?;
        self.ready.add(begun.elapsed());
        self.check().await
    }

    /// The daemon runs until it is killed here, and never ends by itself.
    fn kill(&mut self) -> Result<()> {
        let ended = self.stage.node.daemon_ended(Duration::ZERO)?;
        ensure!(ended.is_none(), "berthd ended by itself: {ended:?}");
        self.kills += 1;
        block_in_place(|| self.stage.node.kill_daemon())
    }

    async fn check(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let alone = tokio::time::timeout(DRAIN, shared.gate.write()).await;
        self.join()?;
        ensure!(shared.ends() || self.clients.len() == STARTED, "a client ended");
        let _alone = alone.context("a verb is under way for too long")?;
        oracle::check(&mut self.stage, &shared).await
    }

    /// Joins the clients that have ended.
    fn join(&mut self) -> Result<()> {
        while let Some(ended) = self.clients.iter().position(JoinHandle::is_finished) {
            let client = self.clients.swap_remove(ended);
            client.join().map_err(|_| anyhow!("a client panicked"))?.context("a client")?;
        }
        Ok(())
    }

    /// Clients end what they began; nothing may be left of it.
    async fn end(mut self, tally: &mut Tally) -> Result<()> {
        self.shared.end();
        let begun = Instant::now();
        while !self.clients.is_empty() {
            self.join()?;
            ensure!(begun.elapsed() < DRAIN, "a client hangs");
            tokio::time::sleep(PAUSE).await;
        }
        self.check().await.context("after the load")?;
        self.stage.check_images().await?;
        let (before, after) = (self.before, oracle::size(&self.stage)?);
        tally.fact(
            "berthd before and after the load",
            format!(
                "{} and {} KiB anonymous memory, {} and {} descriptors",
                before.0, after.0, before.1, after.1
            ),
        );
        self.stage.end().await
    }
}

/// Leads a client on a thread of its own.
fn spawn(
    lead: impl AsyncFnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = thread::Builder::new().name("client".into());
    thread.spawn(move || runtime.block_on(lead())).context("start a client")
}

/// Counts over all nodes.
#[derive(Debug, Default)]
struct Totals {
    counts: Vec<(&'static str, u64)>,
    loss_told: u64,
    ready: Times,
}

impl Totals {
    fn add(&mut self, load: &Load) {
        let read =
            |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        let Counts {
            pods,
            containers,
            lines,
            execs,
            pulls,
            cut_off,
            vanished,
            shims,
            inits,
            loss_told,
        } = &load.shared.counts;
        let counts = [
            ("kills of berthd", load.kills),
            ("of these while it started", load.starting),
            ("shims killed", read(shims)),
            ("first processes killed", read(inits)),
            ("calls cut off by a kill", read(cut_off)),
            ("calls whose client went away", read(vanished)),
            ("pods led", read(pods)),
            ("containers", read(containers)),
            ("log lines checked at the end of a container", read(lines)),
            ("commands run", read(execs)),
            ("pulls", read(pulls)),
        ];
        self.counts.resize(counts.len(), ("", 0));
        for (total, (what, count)) in self.counts.iter_mut().zip(counts) {
            *total = (what, total.1 + count);
        }
        self.loss_told = self.loss_told.max(read(loss_told));
        self.ready.merge(&load.ready);
    }

    fn tell(mut self, tally: &mut Tally) {
        for (what, count) in self.counts {
            tally.fact(what, count.to_string());
        }
        let told = format!("{} ms at most, with kills of berthd between", self.loss_told);
        tally.fact("a killed shim's containers told as ended after", told);
        tally.fact("berthd serves again after", self.ready.shown());
    }
}
