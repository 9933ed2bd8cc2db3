//! `berth-paths`: instructions of library paths on the way of a start or a pull.
//!
//! Without arguments it runs itself under callgrind, once for each path, and prints as JSON
//! how many instructions each took. With the name of a path it takes that path: twice to
//! fill caches, then once inside [`collected_by_callgrind`], the only function whose
//! instructions callgrind collects.
//!
//! A crate of its own, since it is built with optimisation: it uses no more than what it
//! measures.

#![allow(clippy::print_stdout, reason = "the counts are its output")]

mod fixture;
mod paths;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::paths::{PATHS, Path};

/// Runs of each path; hash maps have other keys each time.
const RUNS: usize = 2;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let done = match argument.as_deref() {
        None => count_all(),
        Some(name) => take(name),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-paths: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn count_all() -> Result<()> {
    let mut counts = BTreeMap::new();
    for (name, _) in PATHS {
        let runs = (0..RUNS).map(|_| count(name)).collect::<Result<Vec<u64>>>();
        counts.insert(*name, runs.with_context(|| format!("count {name}"))?);
    }
    println!("{}", serde_json::to_string_pretty(&json!({"samples": {"instructions": counts}}))?);
    Ok(())
}

/// The instructions of one path.
fn count(name: &str) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*collected_by_callgrind*")
        .arg(std::env::current_exe().context("find this program")?)
        .arg(name)
        .output()
        .context("start valgrind (Debian package valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {}: {}", output.status, said.trim());
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.with_context(|| format!("valgrind collected nothing: {said}"))?;
    let count = count.trim().parse().with_context(|| format!("valgrind collected {count}"))?;
    ensure!(count > 0, "the path was not seen by valgrind");
    Ok(count)
}

fn take(name: &str) -> Result<()> {
    let Some((_, prepare)) = PATHS.iter().find(|(known, _)| *known == name) else {
        bail!("no path is called {name}");
    };
    let mut path = prepare()?;
    path()?;
    path()?;
    collected_by_callgrind(&mut path)
}

/// What callgrind collects; nothing else may be called like it.
#[inline(never)]
fn collected_by_callgrind(path: &mut Path) -> Result<()> {
    path()
}
