//! `berth-counted`: work that does not depend on the machine's mood, counted.
//!
//! | module | is |
//! |---|---|
//! | `cycle` | pods and images that come and go on a node of its own |
//! | `tracer` | `strace`, attached to the daemon and to whatever that spawns |
//! | `trace` | what it wrote, as calls with the role of who made them; pure |
//! | `kinds` | calls by kind, without those that are chance; pure |
//!
//! The worker of `cargo xtask bench-check`, which holds the counts against
//! `budgets.toml`. It prints samples as JSON and judges nothing.

#![allow(clippy::print_stdout, reason = "the counts are its output")]

mod cycle;
mod kinds;
mod trace;
mod tracer;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-counted: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Counts the work of pods and images, and prints it as JSON.
#[derive(Debug, Parser)]
#[command(name = "berth-counted", version)]
struct Options {
    /// Where to keep the traces, one file of each step.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn run(options: Options) -> Result<()> {
    if let Some(dir) = &options.keep {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let counted = runtime.block_on(cycle::count(options.keep))?;
    println!("{}", serde_json::to_string_pretty(&counted)?);
    Ok(())
}
