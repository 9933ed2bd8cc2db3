//! The demo: a pod from a registry image, end to end through the CRI, narrated.
//!
//! `berth-demo` runs it and cleans up; `--keep` leaves daemon, registry and pod running
//! and says how to reach and how to end them; `--end DIR` ends what was kept; `--measure
//! PODS` says how long pods take, `--measure-restart PODS` how long a restart of the daemon.

#![allow(clippy::print_stdout, reason = "the demo talks to a person")]

mod end;
mod measure;
mod narrator;
mod restart;
mod story;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str =
    "usage: berth-demo [--keep | --end DIR | --measure PODS | --measure-restart PODS]";

fn main() -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let told = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run()));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => story::tell(false).await,
        ["--keep"] => story::tell(true).await,
        ["--end", dir] => end::end(Path::new(dir)).await,
        ["--measure", pods] => measure::measure(measure::pods(pods)?).await,
        ["--measure-restart", pods] => restart::measure(measure::pods(pods)?).await,
        _ => bail!("{USAGE}"),
    }
}
