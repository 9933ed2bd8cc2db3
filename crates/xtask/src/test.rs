//! `cargo xtask test`: every check and test, cheap ones first.

use anyhow::Result;

use crate::previous::Previous;
use crate::report::Report;
use crate::{bench_check, binaries, host, previous, run, tidy, torture};

pub(crate) fn test() -> Result<()> {
    if !host::is_root() {
        eprintln!(
            "not root: tests that make namespaces, mounts, cgroups or links skip themselves, \
             and the e2e suite cannot run"
        );
    }
    host::install_packages()?;
    let mut report = Report::default();
    let done = steps(&mut report);
    report.sum_up();
    done
}

fn steps(report: &mut Report) -> Result<()> {
    report.step("format", run::cargo(["fmt", "--all", "--check"]))?;
    eprintln!("== tidy");
    tidy::tidy()?;
    let features = format!("--features={}", binaries::TEST_FEATURES);
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", &features];
    let mut command = run::cargo(clippy);
    command.args(["--", "-D", "warnings"]);
    report.step("clippy", command)?;
    let units = ["test", "--workspace", "--exclude", "berth-e2e", "--locked", "--no-fail-fast"];
    let mut command = run::cargo(units);
    command.arg(&features);
    // First: what both build is then of this tree.
    let previous = previous::build()?;
    let built = binaries::build(binaries::Profile::Dev)?;
    command.args(["--", "--show-output"]).env("BERTH_BIN_DIR", &built.folder);
    report.step("unit tests", command)?;
    report.step("bench-check", bench_check::command()?)?;
    if !host::is_root() {
        return Ok(());
    }
    let mut command = run::cargo(["test", "--package", "berth-e2e", "--locked", "--no-fail-fast"]);
    command.args(["--", "--show-output"]).env("BERTH_BIN_DIR", &built.folder);
    match &previous {
        Previous::Built(folder) => command.env(previous::FOLDER, folder),
        Previous::Unknown(reason) => command.env(previous::MISSING, reason),
    };
    report.step("e2e", command)?;
    report.step("torture", torture::small()?)
}
