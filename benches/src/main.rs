//! `berth-bench`: how dense and how fast a node's container runtime is.
//!
//! It talks to any runtime that answers the CRI, by its socket. Two runtimes are measured in
//! turn, round by round, so that what else the machine does falls on both. `README.md` beside
//! this crate says what each number means and how it comes about.
//!
//! | module | is |
//! |---|---|
//! | `options` | the command line |
//! | `session`, `interrupt` | a run: targets, images, and the removal of all that was made |
//! | `target`, `pod` | one runtime; pods as kubelet makes them, and how long verbs take |
//! | `peers` | runtimes that this program starts itself, to measure them side by side |
//! | `plan`, `quiet` | the rounds in which targets take turns; waiting for a quiet machine |
//! | `cpu`, `cgroups`, `settle` | what the whole machine used, and until when |
//! | `bench` | the benchmarks over the CRI |
//! | `measure` | a runtime's processes: whose they are, what they hold and do |
//! | `compare` | all of them, side by side with the peers, and the page that says so |
//! | `oci` | OCI runtimes by themselves, without a CRI |
//! | `phases` | where each millisecond of a pod goes, from Berth's own spans |
//! | `processes` | processes by what they were started with |
//! | `facts` | what machine it was |
//! | `stats` | quantiles and ratios; pure |
//! | `report` | what was measured, as JSON, as a table, as charts |

#![allow(clippy::print_stdout, reason = "the tables are its output")]

mod bench;
mod cgroups;
mod compare;
mod cpu;
mod facts;
mod interrupt;
mod measure;
mod oci;
mod options;
mod peers;
mod phases;
mod plan;
mod pod;
mod processes;
mod quiet;
mod report;
mod session;
mod settle;
mod stats;
mod target;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser as _;

use crate::bench::{churn, density, idle, lists};
use crate::facts::Facts;
use crate::options::{Common, Options, Task};
use crate::plan::Plan;
use crate::report::{Bench, Report};
use crate::session::{Session, Wanted};
use crate::target::Target;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let done =
        runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(options)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<()> {
    match options.task {
        Task::Who(common) => who(&common).await,
        Task::Start { common, options } => {
            let plan = Plan::new(&common, options.pods, options.warm_up);
            let pause = Duration::from_millis(options.pause);
            one(&common, &plan, async |plan, targets| {
                targets.iter_mut().for_each(|target| target.host_network = options.host_network);
                bench::start::run(plan, targets, pause).await
            })
            .await
        }
        Task::Exec { common, options } => {
            let plan = Plan::new(&common, options.commands, options.warm_up);
            one(&common, &plan, bench::exec::run).await
        }
        Task::Density { common, options } => {
            let plan = Plan::new(&common, options.pods, 0);
            one(&common, &plan, async |plan, targets| density::run(plan, targets, &options).await)
                .await
        }
        Task::Idle { common, options } => {
            let plan = Plan::new(&common, 1, 0);
            one(&common, &plan, async |plan, targets| idle::run(plan, targets, &options).await)
                .await
        }
        Task::Lists { common, options } => {
            let plan = Plan::new(&common, options.times, options.warm_up);
            one(&common, &plan, async |plan, targets| lists::run(plan, targets, &options).await)
                .await
        }
        Task::Churn { common, options } => {
            let plan = Plan::new(&common, options.pods, options.warm_up);
            one(&common, &plan, async |plan, targets| churn::run(plan, targets, &options).await)
                .await
        }
        Task::Oci(options) => oci(&options).await,
        Task::Phases(options) => phases::run(options).await,
        Task::Show { file, charts } => {
            let report = Report::read(&file)?;
            println!("{}", report.machine.line());
            show(None, charts.as_deref(), &report)
        }
        Task::Pull { common, options } => {
            let plan = Plan::new(&common, options.present, 1);
            one(&common, &plan, async |plan, targets| {
                let source = bench::pull::Source::new(&options, targets)?;
                bench::pull::run(plan, targets, &source).await
            })
            .await
        }
        Task::Peers(options) => peers::serve(&options).await,
        Task::Compare(options) => compare::run(&options).await,
    }
}

async fn oci(options: &oci::Options) -> Result<()> {
    let plan = Plan::of(options.rounds, options.patience, options.containers, options.warm_up);
    Report::writable(options.json.as_deref())?;
    let facts = Facts::gather()?;
    println!("{}", facts.line());
    let (bench, runtimes) = oci::run(&plan, &options.runtime).await?;
    let mut report = Report::of(facts, runtimes);
    report.benches.push(bench);
    show(options.json.as_deref(), options.charts.as_deref(), &report)
}

async fn who(common: &Common) -> Result<()> {
    for wanted in Wanted::of(common) {
        let mut cri = berth_testkit::Cri::connect(&wanted.socket).await?;
        let version = Target::version(&mut cri, &wanted.socket).await?;
        println!("{}: {} {}", wanted.socket.display(), version.name, version.version);
    }
    Ok(())
}

/// Runs one benchmark, shows it and keeps it; whatever happens, what it made is removed.
async fn one(
    common: &Common,
    plan: &Plan,
    bench: impl AsyncFnOnce(&Plan, &mut [Target]) -> Result<Bench>,
) -> Result<()> {
    Report::writable(common.json.as_deref())?;
    let image = common.image.as_deref();
    let mut session = Session::open(&Wanted::of(common), image, &common.cgroup_parent).await?;
    let measured = async {
        let mut report = Report::new(Facts::gather()?, &session.targets);
        println!("{}", report.machine.line());
        report.benches.push(session.measure(plan, bench).await?);
        Ok(report)
    };
    let measured: Result<Report> = measured.await;
    let closed = session.close().await;
    let report = measured?;
    show(common.json.as_deref(), common.charts.as_deref(), &report)?;
    closed
}

fn show(json: Option<&Path>, charts: Option<&Path>, report: &Report) -> Result<()> {
    for target in &report.targets {
        println!("{}: {} {}", target.name, target.runtime.name, target.runtime.version);
    }
    for bench in &report.benches {
        println!("\n{}", report::table(bench));
        for chart in charts.map_or(Ok(Vec::new()), |dir| report::chart::draw(bench, dir))? {
            println!("drew {}", chart.display());
        }
    }
    json.map_or(Ok(()), |file| report.write(file))
}
