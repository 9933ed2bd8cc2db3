//! What the caller wants a process's streams to be.
//!
//! Plain paths and `fifo://` are FIFOs, as containerd makes them; `file://` is appended
//! to; `cri-log://` is a CRI log that the shim writes; `hold:` is a pipe that the shim
//! keeps open; `drain:` is a pipe that the shim reads for who attaches; empty is
//! /dev/null.

use std::path::PathBuf;

use crate::error::Error;

/// The words of the request, which `State` repeats.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Uris {
    pub(crate) terminal: bool,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Where a process reads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Null,
    Hold,
    Fifo(PathBuf),
}

/// Where a process writes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Sink {
    Null,
    Drain,
    Fifo(PathBuf),
    File(PathBuf),
    CriLog(PathBuf),
}

impl Uris {
    pub(super) fn source(&self) -> Result<Source, Error> {
        match self.stdin.as_str() {
            "" => Ok(Source::Null),
            "hold:" => Ok(Source::Hold),
            uri => {
                let path = uri.strip_prefix("fifo://").unwrap_or(uri);
                Ok(Source::Fifo(absolute("stdin", uri, path)?))
            }
        }
    }

    /// Standard output and error; a terminal has no second stream.
    pub(super) fn sinks(&self) -> Result<(Sink, Sink), Error> {
        let stderr = if self.terminal { Sink::Null } else { sink("stderr", &self.stderr)? };
        let stdout = sink("stdout", &self.stdout)?;
        if let (Sink::CriLog(out), Sink::CriLog(err)) = (&stdout, &stderr)
            && out != err
        {
            return Err(Error::invalid("stderr", "both streams must have the same CRI log"));
        }
        Ok((stdout, stderr))
    }
}

fn sink(field: &'static str, uri: &str) -> Result<Sink, Error> {
    if uri.is_empty() {
        return Ok(Sink::Null);
    }
    if uri == "drain:" {
        return Ok(Sink::Drain);
    }
    match uri.split_once("://") {
        Some(("cri-log", path)) => Ok(Sink::CriLog(absolute(field, uri, path)?)),
        Some(("file", path)) => Ok(Sink::File(absolute(field, uri, path)?)),
        Some(("fifo", path)) => Ok(Sink::Fifo(absolute(field, uri, path)?)),
        Some(("binary", _)) => Err(Error::Unimplemented("a binary:// log driver")),
        _ => Ok(Sink::Fifo(absolute(field, uri, uri)?)),
    }
}

fn absolute(field: &'static str, uri: &str, path: &str) -> Result<PathBuf, Error> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    Err(Error::invalid(field, format!("{uri:?} is neither a known scheme nor an absolute path")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(stdin: &str, stdout: &str, stderr: &str) -> Uris {
        Uris { terminal: false, stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn every_form_has_its_meaning() {
        let sinks = |out, err| uris("", out, err).sinks().unwrap();
        let log = Sink::CriLog("/l/0.log".into());
        assert_eq!(sinks("cri-log:///l/0.log", "cri-log:///l/0.log"), (log.clone(), log));
        assert_eq!(sinks("/a", "fifo:///b"), (Sink::Fifo("/a".into()), Sink::Fifo("/b".into())));
        assert_eq!(sinks("", "file:///b"), (Sink::Null, Sink::File("/b".into())));
        assert_eq!(sinks("drain:", "drain:"), (Sink::Drain, Sink::Drain));
        assert_eq!(uris("", "", "").source().unwrap(), Source::Null);
        assert_eq!(uris("hold:", "", "").source().unwrap(), Source::Hold);
        assert_eq!(uris("/i", "", "").source().unwrap(), Source::Fifo("/i".into()));
    }

    #[test]
    fn a_terminal_ignores_its_second_stream() {
        let uris = Uris { terminal: true, ..uris("", "/a", "what?") };
        assert_eq!(uris.sinks().unwrap().1, Sink::Null);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        use berth_model::ErrorKind::{InvalidArgument, Unimplemented};
        for (stdout, stderr, kind) in [
            ("relative", "", InvalidArgument),
            ("cri-log://relative", "", InvalidArgument),
            ("http://example", "", InvalidArgument),
            ("binary:///logger", "", Unimplemented),
            ("cri-log:///a", "cri-log:///b", InvalidArgument),
        ] {
            assert_eq!(uris("", stdout, stderr).sinks().unwrap_err().kind(), kind, "{stdout}");
        }
        assert_eq!(uris("x", "", "").source().unwrap_err().kind(), InvalidArgument);
    }
}
