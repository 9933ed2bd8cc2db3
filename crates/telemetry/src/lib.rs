//! Where logs and spans go: standard error, for people on a terminal and as JSON
//! otherwise; a collector of traces, if the environment names one; and numbers, if somebody
//! may ask for them.
//!
//! A span that ends is logged with its duration at the span's own level, so a filter of
//! `info` shows one line for each request that changes something, and `debug` the phases
//! of each as well. Set up by binaries only: libraries know `tracing`, but for the edge that
//! takes requests, which [continues](continue_trace) the traces of its clients.

mod export;
mod metrics;
mod parent;

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Registry, reload};

pub use export::{Collector, Exporting};
pub use metrics::{Metrics, Present};
pub use parent::continue_trace;

/// How long the last spans may take to their collector.
const FLUSH: Duration = Duration::from_secs(3);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Format {
    /// [`Format::Human`] on a terminal, [`Format::Json`] otherwise.
    #[default]
    Auto,
    /// One readable line, in colour on a terminal.
    Human,
    /// One JSON object a line, with the fields of the spans around it.
    Json,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(Error::Format(text.to_owned())),
        }
    }
}

/// What is logged: a level (`info`), or levels by target (`info,berth_engine=debug`).
#[derive(Clone, Debug)]
pub struct Filter(Targets);

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |source| Error::Filter { filter: text.to_owned(), source };
        for part in text.split(',') {
            // `Targets` takes a bare word that is no level for a target to be traced, and
            // nothing at all for silence.
            let level = match part.split_once('=') {
                Some((target, level)) if !target.is_empty() => level,
                Some(_) => return Err(refused(None)),
                None => part,
            };
            if level.is_empty() || level.parse::<LevelFilter>().is_err() {
                return Err(refused(None));
            }
        }
        Ok(Self(text.parse().map_err(|source| refused(Some(source)))?))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the name of a [`Format`].
    #[error("log format {0:?} is not auto, human or json")]
    Format(String),
    /// Not a [`Filter`].
    #[error("log filter {filter:?} is not a level, nor a list of target=level")]
    Filter {
        /// What was given.
        filter: String,
        /// Why it does not parse, where that says more.
        source: Option<ParseError>,
    },
    /// Something in this process has set up logging already.
    #[error("set up logging")]
    Init(#[source] TryInitError),
    /// The subscriber is gone.
    #[error("change the log filter")]
    Reload(#[source] reload::Error),
    /// What the environment says of a collector cannot be done.
    #[error("{variable} is {value:?}, but {why}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Threads for the export could not be started.
    #[error("start the export of traces")]
    Thread(#[source] io::Error),
    /// The collector's address, or what else the environment says of it, is unusable.
    #[error("export traces to {endpoint}")]
    Export {
        /// As it was given.
        endpoint: String,
        /// Why not.
        source: opentelemetry_otlp::ExporterBuildError,
    },
}

/// What was set up; it ends with the process.
#[derive(Debug)]
pub struct Telemetry {
    filter: reload::Handle<Targets, Registry>,
    exporting: Option<Exporting>,
}

impl Telemetry {
    /// Changes what is logged from now on.
    ///
    /// # Errors
    /// [`Error::Reload`].
    pub fn set_filter(&self, filter: Filter) -> Result<(), Error> {
        self.filter.reload(filter.0).map_err(Error::Reload)
    }

    /// Sends what spans are left to their collector, within three seconds. May block.
    pub fn shutdown(&self) {
        if let Some(exporting) = &self.exporting {
            exporting.shutdown(FLUSH);
        }
    }
}

/// Sends the logs and spans of this process to standard error, to `exporting`, and into
/// `metrics`. Call once, in `main`.
///
/// # Errors
/// [`Error::Init`].
pub fn init(
    format: Format,
    filter: Filter,
    exporting: Option<Exporting>,
    metrics: Option<&Metrics>,
) -> Result<Telemetry, Error> {
    let terminal = io::stderr().is_terminal();
    let human = match format {
        Format::Auto => terminal,
        Format::Human => true,
        Format::Json => false,
    };
    let (filter, handle) = reload::Layer::new(filter.0);
    let mut others: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
    others.extend(exporting.as_ref().map(|exporting| exporting.layer().boxed()));
    others.extend(metrics.map(|metrics| metrics.layer().boxed()));
    if others.is_empty() {
        // What is not logged is not even made then.
        Registry::default().with(filter).with(lines(human, terminal)).try_init()
    } else {
        others.push(lines(human, terminal).with_filter(filter).boxed());
        Registry::default().with(others).try_init()
    }
    .map_err(Error::Init)?;
    Ok(Telemetry { filter: handle, exporting })
}

/// What writes a line for each event, and for each span that ends.
fn lines<S>(human: bool, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(human && terminal);
    match human {
        true => lines.boxed(),
        false => lines.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_by_target() {
        assert!("info".parse::<Filter>().is_ok());
        assert!("warn,berth_engine=debug".parse::<Filter>().is_ok());
        assert!("warn,berth_engine::sandbox=off".parse::<Filter>().is_ok());
        for bad in ["", "infoo", "warning", "info,", "berth_engine", "=info", "a=b=info", "3x"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad:?}");
        }
        let error = "berth_engine=loud".parse::<Filter>().unwrap_err();
        assert!(error.to_string().contains("berth_engine=loud"), "{error}");
    }

    #[test]
    fn an_unknown_format_is_refused_by_name() {
        assert!("json".parse::<Format>().is_ok());
        let error = "xml".parse::<Format>().unwrap_err();
        assert!(error.to_string().contains("xml"), "{error}");
    }
}
