//! The JSON file of a run: everything that was measured, every sample.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Bench;
use crate::facts::Facts;
use crate::target::{Target, Version};

/// What `format` says; raised when a field changes its meaning.
const FORMAT: u32 = 1;

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    format: u32,
    pub(crate) machine: Facts,
    pub(crate) targets: Vec<Measured>,
    pub(crate) benches: Vec<Bench>,
}

/// A runtime that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// As series name it.
    pub(crate) name: String,
    /// The runtime handler that was asked for; empty is its default.
    pub(crate) handler: String,
    pub(crate) runtime: Version,
}

impl Report {
    /// A report of `targets` without any benchmark yet.
    pub(crate) fn new(machine: Facts, targets: &[Target]) -> Self {
        let measured = |target: &Target| Measured {
            name: target.name.clone(),
            handler: target.handler.clone(),
            runtime: target.version.clone(),
        };
        Self::of(machine, targets.iter().map(measured).collect())
    }

    /// The same, of what has no socket.
    pub(crate) fn of(machine: Facts, targets: Vec<Measured>) -> Self {
        Self { format: FORMAT, machine, targets, benches: Vec::new() }
    }

    /// Writes the report to `file`.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("write the report as JSON")?;
        text.push(b'\n');
        fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }

    /// Fails when `file` cannot be written: to be known before hours of measuring.
    pub(crate) fn writable(file: Option<&Path>) -> Result<()> {
        let Some(file) = file else { return Ok(()) };
        let opened = fs::OpenOptions::new().append(true).create(true).open(file);
        opened.map(drop).with_context(|| format!("open {} to write", file.display()))
    }

    /// Reads a report that was written before.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let report: Self =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
        let format = report.format;
        ensure!(format == FORMAT, "{} has format {format}, not {FORMAT}", file.display());
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written_unless_its_format_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("report.json");
        let mut report = Report::new(Facts::gather().unwrap(), &[]);
        report.benches.push(Bench::new("start", "one pod at a time"));
        assert!(Report::writable(Some(&dir.path().join("missing/report.json"))).is_err());
        Report::writable(Some(&file)).unwrap();
        report.write(&file).unwrap();
        // What was there stays until there is something to take its place.
        Report::writable(Some(&file)).unwrap();
        assert_eq!(Report::read(&file).unwrap().benches[0].name, "start");
        report.format = FORMAT + 1;
        report.write(&file).unwrap();
        assert!(Report::read(&file).unwrap_err().to_string().contains("format"));
    }
}
