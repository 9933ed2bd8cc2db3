//! Both stores, with each of their system calls failing in turn.
//!
//! ```text
//! test ──strace──▶ worker: opens a store, commits a script, says "ok K" for each commit
//!        │  call N of kind S: EIO, or ENOSPC, or the process is killed there
//!        └▶ then the file is opened undisturbed: what was said to be stored is there,
//!           what was not is there whole or not at all, and every page is sound
//! ```
//!
//! A fault once: the worker tries again, and must get to its end. A fault that stays: the
//! worker gives up, with an error that says why.
//!
//! `cargo test` takes a sample, by a seed that it prints. `BERTH_SWEEP=all` takes every
//! call of every kind with every fault (of the scripts that fill the log, whose calls are
//! many and alike, 2,000), `BERTH_SWEEP=N` a sample of N for each script;
//! `BERTH_SWEEP_SEED` repeats one. A machine that does not let a process be traced is told
//! so, and nothing is shown there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the worker speaks so")]

mod cases;
mod script;
mod trace;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cases::{Case, Fault};
use script::{Script, State};

/// Cases of each script in `cargo test`; a script that fills the log has large records.
const SAMPLE: usize = 36;
const LARGE: usize = 12;
/// Cases of a script that fills the log, of all.
const LARGE_SAMPLE: usize = 2000;

/// What the worker is told: the script's name and the store's file.
const WORKER: &str = "BERTH_SWEEP_WORKER";

/// The process that a sweep disturbs; without one it does its work undisturbed.
#[test]
fn worker() {
    match std::env::var(WORKER) {
        Ok(asked) => {
            let (name, path) = asked.split_once(' ').unwrap();
            Script::named(name).perform(Path::new(path));
        }
        Err(_) => {
            for script in Script::all() {
                let dir = trace::directory();
                let path = dir.path().join("store.db");
                script.perform(&path);
                assert_eq!(script.read(&path).unwrap(), script.state(script.len()));
            }
        }
    }
}

/// teeth: crates/metadata/src/unread.rs: `Err(Error::Damaged { .. }) => {}` → `other => return other,`
#[test]
fn pods_db_keeps_what_it_acknowledged_whatever_call_fails() {
    sweep(Script::named("pods"));
    sweep(Script::named("pods-large"));
}

#[test]
fn images_db_keeps_what_it_acknowledged_whatever_call_fails() {
    sweep(Script::named("images"));
    sweep(Script::named("images-large"));
}

fn sweep(script: Script) {
    if let Err(reason) = trace::possible() {
        eprintln!("SKIPPED: the store sweep: {reason}");
        return;
    }
    let calls = cases::calls(&script);
    let all = cases::all(&calls);
    let chosen = chosen(&script, all);
    println!("{}: {} cases; calls: {calls:?}", script.name, chosen.len());
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = check(&script, case) {
                        failures.lock().unwrap().push(format!("{case}: {why}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        chosen.len(),
        failures.join("\n")
    );
}

fn chosen(script: &Script, mut all: Vec<Case>) -> Vec<Case> {
    let sample = match std::env::var("BERTH_SWEEP").unwrap_or_default().as_str() {
        "all" if !script.large => return all,
        "all" => LARGE_SAMPLE,
        "" if script.large => LARGE,
        "" => SAMPLE,
        number => number.parse().expect("BERTH_SWEEP is `all` or a number"),
    };
    let sample = sample.min(all.len());
    let seed = std::env::var("BERTH_SWEEP_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ now());
    println!("{}: BERTH_SWEEP_SEED={seed}", script.name);
    let mut random = seed;
    for at in 0..sample {
        let left = u64::try_from(all.len() - at).unwrap();
        let with = at + usize::try_from(splitmix(&mut random) % left).unwrap();
        all.swap(at, with);
    }
    all.truncate(sample);
    all
}

/// Different in each run.
fn now() -> u64 {
    let since = std::fs::metadata("/proc/self").and_then(|found| found.modified()).unwrap();
    let since = since.duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos() % u128::from(u64::MAX)).unwrap()
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One worker, disturbed once or from one call on, and what is left of its work.
fn check(script: &Script, case: &Case) -> Result<(), String> {
    let dir = trace::directory();
    let path = dir.path().join("store.db");
    let ran = trace::run(script, &path, Some(case));
    let said = cases::Said::of(&ran.stdout);
    if ran.stderr.contains("panicked") || ran.stdout.contains("panicked") {
        return Err(format!("a panic: {}\n{}", ran.stdout, ran.stderr));
    }
    match case.fault {
        Fault::Kill => {
            if ran.killed == said.done {
                return Err(format!("killed {}, and done {}", ran.killed, said.done));
            }
        }
        Fault::Once(_) if !said.done => {
            return Err(format!("it did not get to its end:\n{}", ran.stdout));
        }
        Fault::Once(_) | Fault::From(_) => {
            if !ran.success {
                return Err(format!("it failed: {}\n{}", ran.stdout, ran.stderr));
            }
        }
    }
    said.errors.iter().try_for_each(|error| case.suits(error))?;
    left_behind(script, &path, said.acknowledged, said.done)
}

/// Opens the file undisturbed.
fn left_behind(
    script: &Script,
    path: &Path,
    acknowledged: usize,
    done: bool,
) -> Result<(), String> {
    let found = script.read(path).map_err(|error| format!("it does not open: {error:?}"))?;
    let (before, after) = (script.state(acknowledged), script.state(acknowledged + 1));
    if found != before && (done || found != after) {
        return Err(format!("{acknowledged} commits were acknowledged, and there is {found:#?}"));
    }
    if script.pods {
        copied(script, path, found.clone().copied())?;
    }
    let sound = script::integrity(path);
    if sound != "ok" {
        return Err(format!("integrity check: {sound}"));
    }
    // The next daemon goes on from here.
    let expected = script.state(script.len());
    script.finish(path, if found == before { acknowledged } else { acknowledged + 1 });
    match script.read(path) {
        Ok(state) if state == expected => only_the_store(script, path),
        Ok(state) => Err(format!("the rest of the script led to {state:#?}")),
        Err(error) => Err(format!("it does not open again: {error:?}")),
    }
}

/// The copies of records alone must lead to `expected`.
fn copied(script: &Script, path: &Path, expected: State) -> Result<(), String> {
    match script.rebuilt(path) {
        Ok(rebuilt) if rebuilt == expected => {}
        other => return Err(format!("the copies would make {other:#?} of {expected:#?}")),
    }
    for suffix in ["", "-wal", "-shm"] {
        let file = path.with_file_name(format!("rebuilt.db{suffix}"));
        std::fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

/// Nothing but the database is beside a database that was closed, and what is kept for
/// its log: a log without a byte, and its index.
fn only_the_store(script: &Script, path: &Path) -> Result<(), String> {
    let own = path.file_name().unwrap().to_string_lossy();
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let length = entry.metadata().unwrap().len();
        if script.pods && name == "run" {
            continue;
        }
        match name.strip_prefix(&*own) {
            Some("" | "-shm") => {}
            Some("-wal") if length == 0 => {}
            _ => return Err(format!("left: {name} of {length} bytes")),
        }
    }
    Ok(())
}

#[test]
fn a_state_that_differs_is_told_from_one_that_does_not() {
    let script = Script::named("pods");
    let states: Vec<State> = (0..=script.len()).map(|done| script.state(done)).collect();
    // Opening again and writing the log back change nothing; all others do.
    let different = states.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(different + 3 >= script.len(), "{different} of {}", script.len());
}
