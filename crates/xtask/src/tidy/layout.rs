//! Where files lie and how long they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;

/// Lines a source file may have; the lint `too_many_lines` watches the functions.
const MAX_FILE_LINES: usize = 500;

/// What the top level holds beside dotfiles.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "crates",
    "deploy",
    "e2e",
    "proto",
];

pub(super) fn check(repository: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for path in tracked(repository)? {
        let top = path.split('/').next().unwrap_or_default();
        if !top.starts_with('.') && !TOP_LEVEL.contains(&top) {
            complaints.push(format!("{path}: the layout has no {top} at the top level"));
        }
        if !path.ends_with(".rs") {
            continue;
        }
        // A file that git still lists may have been removed from the work tree.
        let Ok(source) = fs::read_to_string(repository.join(&path)) else { continue };
        let lines = source.lines().count();
        if lines > MAX_FILE_LINES {
            complaints.push(format!("{path}: {lines} lines, the limit is {MAX_FILE_LINES}"));
        }
        if names_a_module(&path) && !source.trim_start().starts_with("//!") {
            complaints.push(format!("{path}: a crate root without a module doc"));
        }
    }
    Ok(complaints)
}

fn names_a_module(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")
}

/// The files git tracks or would track.
fn tracked(repository: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository);
    command.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listing = run::output(command).context("list the files of the repository")?;
    Ok(String::from_utf8_lossy(&listing).lines().map(str::to_owned).collect())
}
