//! A large image: pulled onto a node that has nothing of it, asked for again, and removed.
//!
//! A pull that answers before its data is on disk has not finished, and a removal that
//! answers before its files are gone has not either. So `sync` after the pull is a row, and
//! the pull with it another; a removal is waited for until the disk has its files and its
//! space back, and is on disk itself, and only then the next pull begins.

mod image;
mod removal;

use anyhow::{Context as _, Result, bail, ensure};
use berth_api::v1;
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
use crate::settle;
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
const IMAGE: &str = "large";
const TAG: &str = "1";

/// Where the image comes from: its name for each target, and who serves it there.
#[derive(Debug)]
pub(crate) struct Source {
    references: Vec<String>,
    shape: String,
    /// The image's id, if it is known before it is pulled.
    id: Option<String>,
    /// Dropped in this order: what serves, where it lives, what it serves.
    _registries: Vec<Registry>,
    _machines: Vec<Machine>,
    _dir: Option<TempDir>,
}

impl Source {
    /// An image that some registry has.
    pub(crate) fn of(reference: &str, shape: &str, id: Option<String>, targets: &[Target]) -> Self {
        let references = targets.iter().map(|_| reference.to_owned()).collect();
        let (shape, none) = (shape.to_owned(), Vec::new());
        Self { references, shape, id, _registries: none, _machines: Vec::new(), _dir: None }
    }

    /// What `options` ask for; an image that is made here is served on the loopback of each
    /// target's network.
    pub(crate) fn new(options: &Options, targets: &[Target]) -> Result<Self> {
        if let Some(reference) = &options.large {
            return Ok(Self::of(reference, reference, None, targets));
        }
        let made = make(options.smaller)?;
        let dir = session::directory()?;
        let (mut registries, mut machines, mut references) = (Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            let machine = session::network_of(target)?;
            let registry = Registry::start(&machine, dir.path())?;
            let repository = session::repository(&target.run, IMAGE);
            if registries.is_empty() {
                registry.push(&machine, &repository, TAG, &made.image)?;
            }
            references.push(registry.reference(&repository, TAG));
            registries.push(registry);
            machines.push(machine);
        }
        let (shape, id, dir) = (made.shape(), Some(made.image.id.to_string()), Some(dir));
        Ok(Self { references, shape, id, _registries: registries, _machines: machines, _dir: dir })
    }

    /// Refuses a target that has the image, by whatever name: its pull would not be cold.
    async fn must_not_be_on(&self, target: &mut Target, reference: &str) -> Result<()> {
        let said = || format!("{}: ask for {reference}", target.name);
        let there = target.cri.has_image(reference).await.with_context(said)?;
        ensure!(!there, "{}: {reference} is there already", target.name);
        let listed = target.cri.image.list_images(v1::ListImagesRequest::default()).await;
        let listed = listed.with_context(|| format!("{}: ListImages", target.name))?.into_inner();
        let found = listed
            .images
            .iter()
            .find(|image| self.id.as_ref().is_some_and(|id| same(id, &image.id)));
        if let Some(found) = found {
            let (name, id, tags) = (&target.name, &found.id, found.repo_tags.join(", "));
            bail!("{name}: the image is there already, as {id} ({tags}); remove it first");
        }
        Ok(())
    }
}

/// Whether ids name the same image: CRI-O leaves the algorithm out.
fn same(one: &str, other: &str) -> bool {
    let digits = |id: &str| id.rsplit(':').next().unwrap_or_default().to_owned();
    digits(one) == digits(other)
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
        source.must_not_be_on(target, reference).await?;
        // From now on it is ours, also if this run is interrupted.
        target.images.push(reference.clone());
    }
    let measured = turns(plan, targets, source, &mut bench).await;
    for (target, reference) in targets.iter_mut().zip(&source.references) {
        // Gone already, unless a turn failed: then its error is what is to be told. What stays
        // is tried again when the run ends.
        target.cri.remove_image(reference).await.ok();
    }
    measured?;
    bench.note(
        "cold: the removal before has settled and the disk is synced; the registry is on \
         loopback, its blobs in the page cache",
    );
    bench.note(
        "`sync` is that of the whole machine; durable is the pull with the sync that follows; \
         CPU is processor time of the whole machine, registry included, until the sync has ended and \
         the machine rests",
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
            source.must_not_be_on(target, reference).await?;
        }
    }
    for which in plan.turns(targets.len()) {
        let Before { idle, quiet, .. } = plan.quiet().await?;
        if !quiet {
            bench.note("CPU means nothing here: turns began on a machine that was not quiet");
        }
        let (target, reference) = (&mut targets[which.target], &source.references[which.target]);
        let turn = turn(target, reference, plan.samples, idle).await?;
        for note in turn.notes {
            bench.note(format!("{}: {note}", target.name));
        }
        source.must_not_be_on(target, reference).await?;
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
    /// What a reader must know.
    notes: Vec<String>,
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
    let at_once = disk.space()?.since(&before);
    let mut notes: Vec<String> = settle::rest(idle).await?.into_iter().collect();
    let cpu = Reading::take()?.since(&start).beyond(idle) * 1e3;
    // Others may give files back meanwhile, and a runtime may unpack later.
    let taken = disk.space()?.since(&before).or_more(&at_once);
    if taken.mebibytes() < 1.0 {
        notes.push(
            "no disk was used that can be told: others freed more, removed means nothing"
                .to_owned(),
        );
    }
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
    notes.extend(settle::rest(idle).await?);
    let cpu = Reading::take()?.since(&start).beyond(idle) * 1e3;
    rows.push(("RemoveImage", "ms", vec![answered]));
    rows.push(("removed: files and space back, and sync", "ms", vec![removed]));
    rows.push(("CPU of the removal", "ms CPU", vec![cpu]));
    disk.rest().await;
    notes.extend(gone.left);
    Ok(Turn { rows, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_with_and_without_its_algorithm() {
        assert!(same("sha256:01ab", "01ab"));
        assert!(same("sha256:01ab", "sha256:01ab"));
        assert!(!same("sha256:01ab", "sha256:01ac"));
    }
}
