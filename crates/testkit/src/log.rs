//! Container logs in CRI format: `RFC3339Nano stdout|stderr P|F text`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// One line of a log file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// When it was written.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the text goes on in the next line of the same stream.
    pub partial: bool,
    /// The text, without its line feed.
    pub text: String,
}

/// Reads a whole log; a line that breaks the format is an error.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = std::fs::read(path).with_context(|| format!("read log {}", path.display()))?;
    parse(&String::from_utf8_lossy(&bytes))
}

/// The text of one stream with its partial lines joined.
#[must_use]
pub fn text(lines: &[Line], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if !line.partial {
            text.push('\n');
        }
    }
    text
}

/// Parses the text of a log, which ends with a whole line.
pub fn parse(log: &str) -> Result<Vec<Line>> {
    if !log.is_empty() && !log.ends_with('\n') {
        bail!("the log ends in a torn line");
    }
    log.lines().map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<Line> {
    let mut parts = line.splitn(4, ' ');
    let mut next = || parts.next().with_context(|| format!("not a CRI log line: {line:?}"));
    let (time, stream, tag, text) = (next()?, next()?, next()?, next()?);
    if !matches!(stream, "stdout" | "stderr") || !matches!(tag, "P" | "F") || !is_rfc3339(time) {
        bail!("not a CRI log line: {line:?}");
    }
    Ok(Line {
        time: time.to_owned(),
        stream: stream.to_owned(),
        partial: tag == "P",
        text: text.to_owned(),
    })
}

fn is_rfc3339(time: &str) -> bool {
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let zone = shape.trim_end_matches('0').ends_with(['Z', ':', '+', '-']) || shape.ends_with('Z');
    shape.starts_with("0000-00-00T00:00:00") && zone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_lines_are_joined() {
        let log = "2026-01-02T03:04:05.000000001Z stdout P ab\n\
                   2026-01-02T03:04:05.000000002Z stderr F x\n\
                   2026-01-02T03:04:05.000000003Z stdout F c d\n";
        let lines = parse(log).unwrap();
        assert_eq!(text(&lines, "stdout"), "abc d\n");
        assert_eq!(text(&lines, "stderr"), "x\n");
    }

    #[test]
    fn what_is_no_log_line_is_refused() {
        for bad in
            ["hello\n", "2026-01-02T03:04:05Z stdin F x\n", "2026-01-02T03:04:05Z stdout F x"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
