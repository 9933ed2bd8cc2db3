//! What containers run, and what their logs must then hold.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use berth_testkit::log;

/// A numbered line a container writes.
const LINE: &str = "line ";

/// Writes `lines` numbered lines, `pause` apart, and ends with `code`.
pub(crate) fn counter(lines: u64, pause: &str, code: i32) -> String {
    let pause = if pause.is_empty() { String::new() } else { format!("sleep {pause};") };
    format!(
        "i=0; while [ $i -lt {lines} ]; do echo {LINE}$i; i=$((i+1)); {pause} done; exit {code}"
    )
}

/// Writes numbered lines until it is told to end, and then ends with `code`.
pub(crate) fn server(pause: &str, code: i32) -> String {
    format!(
        "trap 'exit {code}' TERM; i=0; while true; do echo {LINE}$i; i=$((i+1)); sleep {pause}; done"
    )
}

/// Writes numbered lines until it is killed.
pub(crate) fn deaf(pause: &str) -> String {
    format!("trap '' TERM; i=0; while true; do echo {LINE}$i; i=$((i+1)); sleep {pause}; done")
}

/// Waits until the file `go` appears, then writes `lines` numbered lines and ends.
pub(crate) fn waiting(go: &str, lines: u64, code: i32) -> String {
    format!("while [ ! -e {go} ]; do sleep 0.01; done; {}", counter(lines, "", code))
}

/// A log whose lines are numbered without gap, repetition or tear, as far as it was read.
#[derive(Debug)]
pub(crate) struct Numbered {
    path: PathBuf,
    offset: usize,
    lines: u64,
}

impl Numbered {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, lines: 0 }
    }

    /// Reads on to the last whole line; the number of lines there are.
    pub(crate) fn advance(&mut self) -> Result<u64> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.with_context(|| format!("read {}", self.path.display()))?,
        };
        let new = bytes.get(self.offset..).context("a log became shorter")?;
        let end = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let text = std::str::from_utf8(&new[..end]).context("a log is not text")?;
        for line in log::parse(text).with_context(|| format!("in {}", self.path.display()))? {
            let number = line.text.strip_prefix(LINE).and_then(|number| number.parse().ok());
            if number != Some(self.lines) || line.partial || line.stream != "stdout" {
                bail!("{}: line {} is {line:?}", self.path.display(), self.lines);
            }
            self.lines += 1;
        }
        self.offset += end;
        Ok(self.lines)
    }

    /// Reads to the end of a log that nobody writes any more; the number of its lines.
    pub(crate) fn finish(&mut self) -> Result<u64> {
        let lines = self.advance()?;
        let size = fs::metadata(&self.path).map_or(0, |found| found.len());
        let read = u64::try_from(self.offset)?;
        ensure!(size == read, "{} ends in a torn line", self.path.display());
        Ok(lines)
    }

    /// The log's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str) -> Result<u64> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, content).unwrap();
        Numbered::new(path).finish()
    }

    #[test]
    fn a_gap_a_repetition_and_a_tear_are_found() {
        let line = |n: u32| format!("2026-01-02T03:04:05.000000001Z stdout F line {n}\n");
        assert_eq!(check(&(line(0) + &line(1))).unwrap(), 2);
        assert!(check(&(line(0) + &line(2))).is_err());
        assert!(check(&(line(0) + &line(0))).is_err());
        assert!(check(&line(1)).is_err());
        assert!(check(line(0).trim_end()).is_err());
        assert!(check("line 0\n").is_err());
    }

    #[test]
    fn a_log_is_read_on_from_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Numbered::new(path.clone());
        assert_eq!(log.advance().unwrap(), 0);
        let line = |n: u32| format!("2026-01-02T03:04:05.000000001Z stdout F line {n}\n");
        fs::write(&path, line(0) + "2026-01").unwrap();
        assert_eq!(log.advance().unwrap(), 1);
        assert!(log.finish().is_err());
        fs::write(&path, line(0) + &line(1)).unwrap();
        assert_eq!(log.finish().unwrap(), 2);
    }
}
