//! The torture: the daemon is killed wherever it may be, and nothing is lost.
//!
//! `berth-torture --seed N` drives the real binaries of `BERTH_BIN_DIR`; `cargo xtask
//! test` and `cargo xtask torture` call it with few and with many rounds. The same seed
//! makes the same choices. What must hold after each round is in [`oracle::RULES`].

mod dump;
mod host;
mod load;
mod options;
mod oracle;
mod random;
mod scene;
mod stage;
mod sweep;
mod tally;
mod workload;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use options::Options;
use tally::Tally;

/// Clients, the killer, and what waits for the daemon.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = Options::parse(&arguments).and_then(|options| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(THREADS).enable_all().build()?.block_on(torture(options))
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("berth-torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing failed.
async fn torture(mut options: Options) -> Result<bool> {
    say(&format!("seed {}", options.seed));
    host::adopt_orphans()?;
    let mut tallies = Vec::new();
    if options.wants("failpoints") {
        options.begin();
        tallies.push(sweep::sweep(&options).await.context("sweep the failpoints")?);
    }
    if options.wants("kills") && options.kills > 0 {
        options.begin();
        tallies.push(load::load(&options).await.context("kill under load")?);
    }
    for tally in &tallies {
        say(&tally.line());
        for (what, value) in &tally.facts {
            say(&format!("{}: {what}: {value}", tally.kind));
        }
    }
    if let Some(file) = &options.summary {
        std::fs::write(file, summary(&options, &tallies)).context("write the summary")?;
    }
    Ok(tallies.iter().all(|tally| tally.failures.is_empty()))
}

fn summary(options: &Options, tallies: &[Tally]) -> String {
    let rules = oracle::RULES.iter().map(|rule| format!("- {rule};\n")).collect::<String>();
    let sections: Vec<_> = tallies.iter().map(Tally::section).collect();
    format!("Seed: {}\n\nAfter each round:\n\n{rules}\n{}", options.seed, sections.join("\n"))
}

#[allow(clippy::print_stdout, reason = "cargo xtask counts what is printed")]
fn say(line: &str) {
    println!("{line}");
}
