//! `berth-bench compare`: every benchmark, side by side with the peers that are installed,
//! and what came of it as a page for people.
//!
//! | module | is |
//! |---|---|
//! | `steps` | the benchmarks, in the order in which they run, and how much of each |
//! | `goals` | the numbers that Berth is to hold |
//! | `page` | `RESULTS.md`: goals, where Berth is slower, and all tables and charts |
//!
//! A step that fails is told, in the page as well, and the others still run. Whatever
//! happens, the runtimes that were started are ended with all that they made.

mod goals;
mod page;
mod steps;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use berth_testkit::image::busybox;
use clap::Args;

use crate::facts::Facts;
use crate::interrupt::Interrupts;
use crate::peers::{Kind, Peer, Store, find};
use crate::phases;
use crate::report::{self, Report};
use crate::session::{Session, Wanted};

use self::page::Page;
use self::steps::{Scale, Step};

/// What `compare` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// A smoke run: everything is done, and next to nothing of it.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these runtimes: `berth`, `runc`, `crun` (the latter two under containerd).
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Only these steps.
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    pub(crate) steps: Vec<String>,
    /// Longest wait for a quiet machine before a turn, seconds; 0 does not wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) patience: u64,
    /// Folder for `RESULTS.md` and its charts.
    #[arg(long, value_name = "DIR", default_value = "benches")]
    pub(crate) into: PathBuf,
    /// Where to write everything that was measured, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What tables call ours.
const BERTH: &str = "berth";

/// The runtimes that are measured, and what is to be known of them.
struct Field {
    store: Store,
    peers: Vec<Peer>,
    /// What was looked for and is not here.
    missing: Vec<String>,
}

/// Measures everything, and writes the page.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let steps = steps::chosen(&options.steps)?;
    let mut interrupts = Interrupts::listen()?;
    let mut field = Field { store: Store::new()?, peers: Vec::new(), missing: Vec::new() };
    let started = interrupts.unless(field.start(&options.only)).await;
    let measured = match started {
        Ok(()) => measure(&field, options, &steps).await,
        Err(error) => Err(error),
    };
    let ended = field.end().await;
    let mut page = measured?;
    if options.steps.is_empty() && page.report.targets.iter().any(|target| target.name == BERTH) {
        eprintln!("phases");
        let pods = if options.quick { 2 } else { 40 };
        match interrupts.unless(phases::in_words(pods, &page::charts(&options.into)?)).await {
            Ok(told) => page.phases = Some(told),
            Err(error) => page.failures.push(("phases".to_owned(), format!("{error:#}"))),
        }
    }
    page.write(&options.into)?;
    eprintln!("wrote {}", options.into.join(page::FILE).display());
    ended?;
    ensure!(page.failures.is_empty(), "steps failed: {}", page.failed());
    Ok(())
}

impl Field {
    /// Starts what is wanted and installed.
    async fn start(&mut self, only: &[String]) -> Result<()> {
        for kind in Kind::chosen(only)? {
            if let Some(missing) = missing(kind) {
                eprintln!("{}: {missing}", kind.name());
                self.missing.push(format!("{}: {missing}", kind.name()));
                continue;
            }
            eprintln!("starting {}", kind.name());
            let peer = Peer::start(kind, &self.store).await;
            self.peers.push(peer.with_context(|| format!("start {}", kind.name()))?);
        }
        self.missing.push(match find("crio") {
            None => "CRI-O: not found".to_owned(),
            Some(path) => format!(
                "CRI-O: found as {}, but not started here; measure one that runs with --socket",
                path.display()
            ),
        });
        ensure!(!self.peers.is_empty(), "nothing to measure");
        Ok(())
    }

    /// Ends all; the first error is told when all were.
    async fn end(self) -> Result<()> {
        let mut ended = Ok(());
        for peer in self.peers {
            let name = peer.kind.name();
            if let Err(error) = peer.end().await {
                eprintln!("end {name}: {error:#}");
                ended = Err(error.context(format!("end {name}")));
            }
        }
        ended
    }
}

/// What is not installed of what `kind` needs.
fn missing(kind: Kind) -> Option<String> {
    let Kind::Containerd(oci) = kind else { return None };
    let programs = ["containerd", "containerd-shim-runc-v2", oci.program(), "iptables"];
    let absent: Vec<_> = programs.into_iter().filter(|program| find(program).is_none()).collect();
    (!absent.is_empty()).then(|| format!("not found: {}", absent.join(", ")))
}

async fn measure(field: &Field, options: &Options, steps: &[Step]) -> Result<Page> {
    let image = field.store.push("busybox", &busybox()?)?;
    let wanted = |peer: &Peer| Wanted {
        name: Some(peer.kind.name().to_owned()),
        socket: peer.socket().to_owned(),
        handler: String::new(),
    };
    let wanted: Vec<_> = field.peers.iter().map(wanted).collect();
    let mut session = Session::open(&wanted, Some(&image), "/berth-bench").await?;
    let mut page = Page::new(Report::new(Facts::gather()?, &session.targets), options.quick);
    page.who(field);
    let done = all(&mut session, field, options, steps, &mut page).await;
    let closed = session.close().await;
    done?;
    closed?;
    Ok(page)
}

/// Does all steps, one after another.
async fn all(
    session: &mut Session,
    field: &Field,
    options: &Options,
    steps: &[Step],
    page: &mut Page,
) -> Result<()> {
    let begun = Instant::now();
    for (number, step) in steps.iter().enumerate() {
        let scale = Scale { quick: options.quick, patience: page.patience(options.patience) };
        let (name, count, so_far) = (step.name(), steps.len(), begun.elapsed().as_secs());
        eprintln!("[{so_far:>4} s] {name} ({} of {count})", number + 1);
        match step.run(session, &field.store, scale).await {
            Ok(bench) => {
                eprintln!("{}", report::table(&bench));
                page.report.benches.push(bench);
            }
            Err(error) if session.was_interrupted() => return Err(error),
            Err(error) => {
                eprintln!("{name} failed: {error:#}");
                page.failures.push((name.to_owned(), format!("{error:#}")));
                session.remove_pods().await.context("remove the pods of a step that failed")?;
            }
        }
        if let Some(file) = &options.json {
            page.report.write(file)?;
        }
    }
    page.took = begun.elapsed();
    if page.report.benches.is_empty() {
        bail!("no step has measured anything: {}", page.failed());
    }
    Ok(())
}
