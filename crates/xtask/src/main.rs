//! `cargo xtask`: the tasks a developer or CI runs.
//!
//! | task | does |
//! |---|---|
//! | `demo` | builds release binaries and runs a pod end to end, narrated |
//! | `bench` | every benchmark, side by side with containerd: writes `benches/RESULTS.md` |
//! | `bench-check` | counted work against the budgets in `benches/budgets.toml` |
//! | `test` | format, tidy, clippy, unit and crate tests, budgets, the e2e suite, a little torture |
//! | `torture` | kills at every failpoint and at random, and faults of the stores, for hours |
//! | `tidy` | crate arrows, licences, doubled versions, file lengths, layout |
//! | `build [--release]` | `berthd`, the static shim and the demo client, in one folder |
//! | `build --previous` | the release before this tree, for the tests of upgrade |
//!
//! Invariants: nothing here is linked into the product; a task that installs
//! something says what and why first; a check that cannot run says so.

mod bench;
mod bench_check;
mod binaries;
mod demo;
mod host;
mod previous;
mod report;
mod run;
mod test;
mod tidy;
mod torture;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

tasks:
  demo [--keep]        build release binaries and run one pod end to end
  demo --end DIR       end what a kept demo left running
  demo --measure PODS  say how long pods take to come up and go down
  bench [OPTIONS]      measure everything beside containerd with runc and crun, and write
                       benches/RESULTS.md; --help says more
  bench-check [--update]
                       count the work of pods, images and library paths, and hold it
                       against benches/budgets.toml; or make what was counted the budgets
  test                 run every check and test
  torture [OPTIONS]    kill the daemon at every failpoint and at random; --help says more
  tidy                 check crate arrows, licences, doubled versions, lengths, layout
  build [--release]    build berthd, the static shim and the demo client
  build --previous     build the release before this tree, for the tests of upgrade
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["demo"] | ["demo", "--keep"] | ["demo", "--end" | "--measure", _] => {
            demo::demo(&arguments[1..])
        }
        ["bench", ..] => bench::bench(&arguments[1..]),
        ["test"] => test::test(),
        ["torture", "--help"] => {
            eprint!("{}", torture::USAGE);
            return ExitCode::SUCCESS;
        }
        ["torture", ..] => torture::torture(&arguments[1..]),
        ["bench-check"] => bench_check::bench_check(false),
        ["bench-check", "--update"] => bench_check::bench_check(true),
        ["tidy"] => tidy::tidy(),
        ["build"] => binaries::build(binaries::Profile::Dev).map(|built| built.announce()),
        ["build", "--release"] => {
            binaries::build(binaries::Profile::Release).map(|built| built.announce())
        }
        ["build", "--previous"] => previous::announce(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
