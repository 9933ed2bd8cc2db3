//! `berth-bench`: how dense and how fast a node's container runtime is.
//!
//! It talks to any runtime that answers the CRI, by its socket. Two runtimes are measured in
//! turn, round by round, so that what else the machine does falls on both. `README.md` beside
//! this crate says what each number means and how it comes about.
//!
//! | module | is |
//! |---|---|
//! | `options` | the command line |
//! | `target` | one runtime: its socket, what it says of itself, pods as kubelet makes them |
//! | `plan` | how much is measured, and the rounds in which targets take turns |
//! | `stats` | quantiles and ratios; pure |
//! | `report` | what was measured, as JSON, as a table, as charts |

#![allow(clippy::print_stdout, reason = "the tables are its output")]

mod options;
mod plan;
mod report;
mod stats;
mod target;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use crate::options::Options;

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
        options::Task::Who(common) => {
            for socket in std::iter::once(&common.socket).chain(&common.versus) {
                let mut cri = berth_testkit::Cri::connect(socket).await?;
                let version = target::Target::version(&mut cri, socket).await?;
                println!("{}: {} {}", socket.display(), version.name, version.version);
            }
            Ok(())
        }
    }
}
