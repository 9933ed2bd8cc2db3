//! Runs the steps of a long task and sums up what they did.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// What test runners said, added up over all steps.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: usize,
    failed: usize,
    skipped: Vec<String>,
    steps: Vec<Step>,
}

/// What one step did.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) took: Duration,
}

impl Report {
    /// Runs one step. Its output goes to a file; a person sees results and failures.
    pub(crate) fn step(&mut self, name: &str, mut command: Command) -> Result<()> {
        eprintln!("== {name}: {}", run::shown(&command));
        let log = log_path(name)?;
        let mut file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let (started, before) = (Instant::now(), (self.passed, self.failed));
        command.stdout(Stdio::piped()).stderr(file.try_clone()?);
        let mut child =
            command.spawn().with_context(|| format!("start `{}`", run::shown(&command)))?;
        let stdout = child.stdout.take().expect("standard output was piped");
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("read the step's output")?;
            let text = String::from_utf8_lossy(&line);
            self.count(&text);
            writeln!(file, "{text}").with_context(|| format!("write {}", log.display()))?;
        }
        let status = child.wait().context("wait for the step")?;
        let took = started.elapsed();
        let (passed, failed) = (self.passed - before.0, self.failed - before.1);
        self.steps.push(Step { name: name.to_owned(), passed, failed, took });
        if status.success() {
            eprintln!("   ok, {:.1} s", took.as_secs_f64());
            return Ok(());
        }
        let all = fs::read_to_string(&log).unwrap_or_default();
        eprintln!("{}", failures(&all).unwrap_or(all));
        bail!("step {name} failed: {status}; its whole output: {}", log.display());
    }

    /// The steps that were run.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Reads one line of a test runner's output.
    fn count(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let before = result.split(word).next().unwrap_or_default().trim_end();
                before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            self.passed += number(" passed");
            self.failed += number(" failed");
        } else if let Some(reason) = line.trim().strip_prefix("skipped: ") {
            self.skipped.push(reason.to_owned());
        }
    }

    /// Says what was done; the last line is for machines.
    pub(crate) fn sum_up(&self) {
        eprintln!("\nsteps:");
        for step in &self.steps {
            eprintln!("  {:<14} {:>7.1} s", step.name, step.took.as_secs_f64());
        }
        if !self.skipped.is_empty() {
            eprintln!("skipped, and why:");
            for reason in &self.skipped {
                eprintln!("  {reason}");
            }
        }
        eprintln!("{}", self.closing_line());
    }

    fn closing_line(&self) -> String {
        // A test that skips itself counts as passed for its runner.
        let passed = self.passed.saturating_sub(self.skipped.len());
        format!("{passed} passed, {} failed, {} skipped", self.failed, self.skipped.len())
    }
}

/// What tests that failed said, of the output of test runners; `None` if none failed: then
/// something else did, and everything may say why.
fn failures(output: &str) -> Option<String> {
    let mut told = String::new();
    let (mut binary, mut within) = ("", false);
    for line in output.lines() {
        if line.trim_start().starts_with("Running ") {
            binary = line;
        } else if line == "failures:" && !within {
            within = true;
            told.push_str(binary);
            told.push('\n');
        }
        if within {
            told.push_str(line);
            told.push('\n');
        }
        within &= !line.starts_with("test result: ");
    }
    (!told.is_empty()).then_some(told)
}

fn log_path(step: &str) -> Result<PathBuf> {
    let folder = run::target().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder.join(format!("{}.log", step.replace(' ', "-"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_is_told() {
        let passed = "     Running tests/a.rs (a)\ntest a ... ok\n\nsuccesses:\n    a\n\n\
                      test result: ok. 1 passed; 0 failed\n";
        let failed = "     Running tests/b.rs (b)\ntest b ... FAILED\n\nfailures:\n\n\
                      ---- b stdout ----\nwhy\n\nfailures:\n    b\n\n\
                      test result: FAILED. 0 passed; 1 failed\n";
        assert_eq!(failures(passed), None);
        let told = failures(&[passed, failed, passed].concat()).unwrap();
        assert!(told.starts_with("     Running tests/b.rs (b)\nfailures:\n"), "{told}");
        assert!(told.contains("why") && told.ends_with("1 failed\n"), "{told}");
        assert!(!told.contains("successes"), "{told}");
    }

    #[test]
    fn results_and_reasons_are_added_up() {
        let mut report = Report::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored",
            "skipped: cgroup v2: no controllers here",
            "running 5 tests",
        ] {
            report.count(line);
        }
        assert_eq!(report.closing_line(), "14 passed, 2 failed, 1 skipped");
    }
}
