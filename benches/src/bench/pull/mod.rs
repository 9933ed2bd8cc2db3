//! A large image: pulled onto a node that has nothing of it, asked for again, and removed.
//!
//! A pull that answers before its data is on disk has not finished, and a removal that
//! answers before its files are gone has not either. So `sync` after the pull is a row, and
//! the pull with it another; a removal is waited for until the disk has its files back, and
//! is on disk itself, and only then the next pull begins.

mod image;
mod removal;

use anyhow::{Context as _, Result, ensure};
use berth_testkit::Machine;
use berth_testkit::registry::Registry;
use clap::Args;
use nix::unistd::sync;
use tempfile::TempDir;

use crate::cpu::Reading;
use crate::plan::Plan;
use crate::pod::Clock;
use crate::quiet::Before;
use crate::report::{Bench, Better, Sheet};
use crate::session;
use crate::target::Target;

pub(crate) use image::make;

/// What `pull` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Image to pull instead of one that is made here; it must not be there yet.
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) large: Option<String>,
    /// Makes the image this many times smaller.
    #[arg(long, value_name = "TIMES", default_value_t = 1)]
    pub(crate) smaller: u32,
    /// Requests for the image when it is there, in each turn.
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub(crate) present: usize,
}

const WHAT: &str = "PullImage of a large image of which nothing is there, again when it is \
                    there, and RemoveImage";
const REPOSITORY: &str = "berth-bench-large";
const TAG: &str = "1";

/// Where the image comes from: its name for each target, and who serves it there.
#[derive(Debug)]
pub(crate) struct Source {
    references: Vec<String>,
    shape: String,
    /// Dropped in this order: what serves, where it lives, what it serves.
    _registries: Vec<Registry>,
    _machines: Vec<Machine>,
    _dir: Option<TempDir>,
}

impl Source {
    /// An image that some registry has.
    pub(crate) fn of(reference: &str, shape: &str, targets: &[Target]) -> Self {
        let references = targets.iter().map(|_| reference.to_owned()).collect();
        let (shape, none) = (shape.to_owned(), Vec::new());
        Self { references, shape, _registries: none, _machines: Vec::new(), _dir: None }
    }

    /// What `options` ask for; an image that is made here is served on the loopback of each
    /// target's network.
    pub(crate) fn new(options: &Options, targets: &[Target]) -> Result<Self> {
        if let Some(reference) = &options.large {
            return Ok(Self::of(reference, reference, targets));
        }
        let made = make(options.smaller)?;
        let dir = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
        let (mut registries, mut machines, mut references) = (Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            let machine = session::network_of(target)?;
            let registry = Registry::start(&machine, dir.path())?;
            if registries.is_empty() {
                registry.push(&machine, REPOSITORY, TAG, &made.image)?;
            }
            references.push(registry.reference(REPOSITORY, TAG));
            registries.push(registry);
            machines.push(machine);
        }
        let shape = made.shape();
        let dir = Some(dir);
        Ok(Self { references, shape, _registries: registries, _machines: machines, _dir: dir })
    }
}

/// Pulls and removes the image on all targets in turn: one pull in a turn, and
/// `plan.samples` requests when it is there.
pub(crate) async fn run(plan: &Plan, targets: &mut [Target], source: &Source) -> Result<Bench> {
    ensure!(plan.rounds > 0, "nothing to measure: no rounds");
    let mut bench = Bench::new("pull", WHAT);
    bench.setting("image", &source.shape);
    bench.setting("requests when present", plan.samples);
    bench.setting("rounds", plan.rounds);
    for (target, reference) in targets.iter_mut().zip(&source.references) {
        let there = target.cri.has_image(reference).await.context("ask for the image")?;
        ensure!(!there, "{}: {reference} is there already", target.name);
    }
    let measured = turns(plan, targets, source, &mut bench).await;
    for (target, reference) in targets.iter_mut().zip(&source.references) {
        // Gone already, unless a turn failed: then its error is what is to be told.
        target.cri.remove_image(reference).await.ok();
    }
    measured?;
    bench.note(
        "cold: the removal before has settled and the disk is synced; the registry is on \
         loopback, its blobs in the page cache",
    );
    bench.note(
        "`sync` is that of the whole machine; durable is the pull with the sync that follows; \
         CPU is processor time of the whole machine, registry included, until the sync has ended",
    );
    Ok(bench)
}

async fn turns(
    plan: &Plan,
    targets: &mut [Target],
    source: &Source,
    bench: &mut Bench,
) -> Result<()> {
    let mut sheet = Sheet::new(targets);
    for (target, reference) in targets.iter_mut().zip(&source.references) {
        for _ in 0..plan.warm_up {
            turn(target, reference, 0, 0.0).await?;
        }
    }
    for which in plan.turns(targets.len()) {
        let Before { busy: idle, .. } = plan.quiet().await?;
        let (target, reference) = (&mut targets[which.target], &source.references[which.target]);
        let turn = turn(target, reference, plan.samples, idle).await?;
        if let Some(left) = &turn.left {
            bench.note(format!("{}: {left}", target.name));
        }
        for (name, unit, samples) in turn.rows {
            sheet.add(which, (name, unit, Better::Lower), samples);
        }
    }
    bench.metrics = sheet.into_metrics();
    Ok(())
}

/// What a turn gave.
struct Turn {
    rows: Vec<(&'static str, &'static str, Vec<f64>)>,
    /// What a removal did not give back, in words.
    left: Option<String>,
}

async fn turn(target: &mut Target, image: &str, present: usize, idle: f64) -> Result<Turn> {
    let mut rows = Vec::new();
    let name = target.name.clone();
    let said = |verb: &str| format!("{name}: {verb} {image}");
    sync();
    let disk = removal::Disk::of(target).await?;
    let before = disk.space()?;

    let start = Reading::take()?;
    let mut clock = Clock::start();
    target.cri.pull(image).await.with_context(|| said("PullImage"))?;
    let pull = clock.lap().as_secs_f64() * 1e3;
    sync();
    let synced = clock.lap().as_secs_f64() * 1e3;
    let cpu = Reading::take()?.since(&start).beyond(idle) * 1e3;
    let taken = disk.space()?.since(&before);
    rows.push(("PullImage, cold", "ms", vec![pull]));
    rows.push(("sync after it", "ms", vec![synced]));
    rows.push(("durable: pull and sync", "ms", vec![pull + synced]));
    rows.push(("CPU of pull and sync", "ms CPU", vec![cpu]));
    rows.push(("disk used", "MiB", vec![taken.mebibytes()]));

    let mut asked = Vec::with_capacity(present);
    for _ in 0..present {
        let mut clock = Clock::start();
        target.cri.pull(image).await.with_context(|| said("PullImage, present,"))?;
        asked.push(clock.lap().as_secs_f64() * 1e3);
    }
    rows.push(("PullImage, present", "ms", asked));

    let start = Reading::take()?;
    let mut clock = Clock::start();
    target.cri.remove_image(image).await.with_context(|| said("RemoveImage"))?;
    let answered = clock.lap().as_secs_f64() * 1e3;
    let gone = disk.wait_for(&before, &taken).await?;
    let mut clock = Clock::start();
    sync();
    let removed = answered + (gone.after + clock.lap()).as_secs_f64() * 1e3;
    let cpu = Reading::take()?.since(&start).beyond(idle) * 1e3;
    rows.push(("RemoveImage", "ms", vec![answered]));
    rows.push(("removed: files gone and sync", "ms", vec![removed]));
    rows.push(("CPU of the removal", "ms CPU", vec![cpu]));
    disk.rest().await;
    Ok(Turn { rows, left: gone.left })
}
