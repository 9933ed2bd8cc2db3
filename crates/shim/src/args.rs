//! The command line that containerd gives its shims (Go's `flag`: `-a b`, `-a=b`, `--a b`).

use std::path::PathBuf;

use crate::error::Error;

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// Fork a shim, and say where it listens.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Make the namespaces of a pod with users of its own, and hand them over.
    Namespaces,
    /// Say whether this kernel can do that.
    Probe,
    /// `-v`.
    Version,
    /// `-info`.
    Info,
}

/// The command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's gRPC address: part of the socket's name, otherwise not used.
    pub(crate) address: String,
    /// The bundle, where it is not the working directory.
    pub(crate) bundle: Option<PathBuf>,
    /// Whether its log tells how long things take, too.
    pub(crate) debug: bool,
}

impl Args {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut parsed = Self {
            action: Action::Start,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        let mut args = args.into_iter();
        let mut action = None;
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                action = Some(arg);
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" | "version" => return Ok(Self { action: Action::Version, ..parsed }),
                "info" => return Ok(Self { action: Action::Info, ..parsed }),
                "debug" => {
                    parsed.debug = value.is_none_or(|value| value != "false");
                    continue;
                }
                _ => {}
            }
            let value = value.or_else(|| args.next());
            let value =
                value.ok_or_else(|| Error::invalid("arguments", format!("{arg}: no value")))?;
            match name {
                "namespace" => parsed.namespace = value,
                "id" => parsed.id = value,
                "address" => parsed.address = value,
                "bundle" => parsed.bundle = Some(value.into()),
                "publish-binary" | "socket" | "debug-socket" => {}
                _ => return Err(Error::invalid("arguments", format!("unknown flag {arg}"))),
            }
        }
        parsed.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some("namespaces") => Action::Namespaces,
            Some("probe") => Action::Probe,
            other => {
                return Err(Error::invalid("arguments", format!("no start or delete: {other:?}")));
            }
        };
        if parsed.id.is_empty() || parsed.id.contains('/') || parsed.namespace.is_empty() {
            return Err(Error::invalid("arguments", "-id and -namespace are needed"));
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Error> {
        Args::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn containerds_command_lines_are_understood() {
        let args = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id a -debug start",
        )
        .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "a"));
        assert_eq!(args.address, "/run/c.sock");
        assert!(args.debug && !parse("-namespace n -id a -debug=false start").unwrap().debug);
        let args = parse("--namespace=n -id=a -bundle /b delete").unwrap();
        assert_eq!((args.action, args.bundle), (Action::Delete, Some("/b".into())));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-namespace n -info").unwrap().action, Action::Info);
    }

    #[test]
    fn other_command_lines_are_refused() {
        for bad in ["", "start", "-id a start", "-namespace n -id a", "-namespace n -id"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in ["-namespace n -id a stop", "-nonsense x start", "-namespace n -id ../a start"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
