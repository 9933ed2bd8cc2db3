//! Numbers for Prometheus, taken from the spans and events that the libraries make anyway.
//!
//! ```text
//! span "cri.*"  ends ─▶ berth_request_duration_seconds{rpc, code}
//! span "pull.*" ends ─▶ berth_pull_phase_duration_seconds{phase}
//! event with counter.NAME = n ─▶ berth_NAME_total
//! event with rpc and code ─▶ the code of the request around it
//! what is counted when asked ─▶ Metrics::set
//! ```
//!
//! A daemon without an address for them has no such layer, and pays nothing.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// What the name of a field begins with whose value is added to a counter.
const COUNTER: &str = "counter.";
/// A request whose client went away, or waited no longer.
const DROPPED: &str = "Dropped";

type Labels<const N: usize> = [(&'static str, String); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, Buckets>;
type Count = Counter<u64, std::sync::atomic::AtomicU64>;

/// From half a millisecond to half a minute.
#[derive(Clone, Copy, Debug)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.0005, 2.0, 17))
    }
}

/// What is counted; clones share it.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    requests: Histograms<2>,
    phases: Histograms<1>,
    /// By the name that events have for them.
    counters: Vec<(&'static str, Count)>,
    sandboxes: Family<Labels<1>, Gauge<i64, AtomicI64>>,
    containers: Family<Labels<1>, Gauge<i64, AtomicI64>>,
    undo_unfinished: Gauge<i64, AtomicI64>,
    undo_failures: Count,
    undo_recovered: Count,
}

/// Numbers that are not counted as they arise: what is there when somebody asks.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Sandboxes, by state.
    pub sandboxes: Vec<(&'static str, usize)>,
    /// Containers, by state.
    pub containers: Vec<(&'static str, usize)>,
    /// Steps that could not be taken back yet.
    pub undo_unfinished: usize,
    /// Tries to take something back that failed, since the start.
    pub undo_failures: u64,
    /// Objects that were cleared later, since the start.
    pub undo_recovered: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing is counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("berth");
        let requests = Family::new_with_constructor(Buckets);
        let help = "How long requests took, in seconds";
        registry.register("request_duration_seconds", help, requests.clone());
        let phases = Family::new_with_constructor(Buckets);
        let help = "How long the phases of pulls took, in seconds";
        registry.register("pull_phase_duration_seconds", help, phases.clone());
        let mut counters = Vec::new();
        for (name, help) in [
            ("pull_bytes", "Bytes of layers that registries sent"),
            ("shim_deaths", "Shims that died under a sandbox"),
        ] {
            let counter = Count::default();
            registry.register(name, help, counter.clone());
            counters.push((name, counter));
        }
        let (sandboxes, containers) = (Family::default(), Family::default());
        registry.register("sandboxes", "Sandboxes by state", sandboxes.clone());
        registry.register("containers", "Containers by state", containers.clone());
        let (undo_unfinished, undo_failures) = (Gauge::default(), Count::default());
        let help = "Steps that could not be taken back yet";
        registry.register("undo_unfinished", help, undo_unfinished.clone());
        let help = "Tries to take something back that failed";
        registry.register("undo_failures", help, undo_failures.clone());
        let undo_recovered = Count::default();
        let help = "Objects whose leftovers were cleared later";
        registry.register("undo_recovered", help, undo_recovered.clone());
        Self(Arc::new(Inner {
            registry,
            requests,
            phases,
            counters,
            sandboxes,
            containers,
            undo_unfinished,
            undo_failures,
            undo_recovered,
        }))
    }

    /// What counts; wants no span or event but those that are counted.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        Counting(Arc::clone(&self.0)).with_filter(filter_fn(is_counted))
    }

    /// All numbers in the text format of Prometheus (OpenMetrics 1.0).
    ///
    /// # Errors
    /// As writing to a string: never.
    pub fn text(&self, present: &Present) -> Result<String, fmt::Error> {
        let Inner { sandboxes, containers, .. } = &*self.0;
        for (family, states) in [(sandboxes, &present.sandboxes), (containers, &present.containers)]
        {
            for (state, count) in states {
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                family.get_or_create(&[("state", (*state).to_owned())]).set(count);
            }
        }
        let unfinished = i64::try_from(present.undo_unfinished).unwrap_or(i64::MAX);
        self.0.undo_unfinished.set(unfinished);
        self.0.undo_failures.inner().store(present.undo_failures, Ordering::Relaxed);
        self.0.undo_recovered.inner().store(present.undo_recovered, Ordering::Relaxed);
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

fn is_counted(metadata: &Metadata<'_>) -> bool {
    if !metadata.target().starts_with("berth") {
        return false;
    }
    if metadata.is_span() {
        return *metadata.level() <= Level::DEBUG && kind(metadata.name()).is_some();
    }
    let is_of_use = |field: Field| field.name() == "rpc" || field.name().starts_with(COUNTER);
    metadata.fields().iter().any(is_of_use)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Request,
    Phase,
}

/// What the span called `name` measures, and what of.
fn kind(name: &'static str) -> Option<(Kind, &'static str)> {
    let request = name.strip_prefix("cri.").map(|rpc| (Kind::Request, rpc));
    request.or_else(|| name.strip_prefix("pull.").map(|phase| (Kind::Phase, phase)))
}

struct Counting(Arc<Inner>);

/// When a span began, and what its request was answered with.
struct Begun {
    at: Instant,
    code: Option<String>,
}

impl<S> Layer<S> for Counting
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Begun { at: Instant::now(), code: None });
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut found = Found::default();
        event.record(&mut found);
        for (name, by) in found.counts {
            if let Some((_, counter)) = self.0.counters.iter().find(|(known, _)| *known == name) {
                counter.inc_by(by);
            }
        }
        let Some(code) = found.code else { return };
        let around = context.event_scope(event).into_iter().flatten();
        let mut requests = around.filter(|span| span.name().starts_with("cri."));
        if let Some(span) = requests.next()
            && let Some(begun) = span.extensions_mut().get_mut::<Begun>()
        {
            begun.code = Some(code);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(begun) = span.extensions_mut().remove::<Begun>() else { return };
        let Some((kind, name)) = kind(span.name()) else { return };
        let (took, name) = (begun.at.elapsed().as_secs_f64(), name.to_owned());
        match kind {
            Kind::Request => {
                let code = begun.code.unwrap_or_else(|| DROPPED.to_owned());
                let labels = [("rpc", name), ("code", code)];
                self.0.requests.get_or_create(&labels).observe(took);
            }
            Kind::Phase => self.0.phases.get_or_create(&[("phase", name)]).observe(took),
        }
    }
}

/// What of an event is counted.
#[derive(Default)]
struct Found {
    counts: Vec<(&'static str, u64)>,
    code: Option<String>,
}

impl Visit for Found {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if let Some(name) = field.name().strip_prefix(COUNTER) {
            self.counts.push((name, value));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if let Ok(value) = u64::try_from(value) {
            self.record_u64(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "code" {
            self.code = Some(format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::{debug_span, info, info_span, trace};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Debug)]
    enum Code {
        Ok,
        NotFound,
    }

    #[test]
    fn what_libraries_say_is_counted() {
        let metrics = Metrics::new();
        let subscriber = tracing_subscriber::registry().with(metrics.layer());
        tracing::subscriber::with_default(subscriber, || {
            for code in [Code::Ok, Code::NotFound, Code::Ok] {
                info_span!("cri.start").in_scope(|| {
                    debug_span!("pull.unpack").in_scope(|| info!(counter.pull_bytes = 7_u64));
                    debug_span!("of no use").in_scope(|| trace!(rpc = "cri.start", ?code));
                });
            }
            drop(info_span!("cri.start").entered());
            info!(counter.unheard_of = 1, counter.shim_deaths = 1, code = 5);
            drop(info_span!(target: "other", "cri.foreign").entered());
        });
        let present = Present {
            sandboxes: vec![("ready", 3), ("not_ready", 0)],
            undo_failures: 4,
            ..Present::default()
        };
        let text = metrics.text(&present).unwrap();
        for line in [
            "berth_request_duration_seconds_count{rpc=\"start\",code=\"Ok\"} 2",
            "berth_request_duration_seconds_count{rpc=\"start\",code=\"NotFound\"} 1",
            "berth_request_duration_seconds_count{rpc=\"start\",code=\"Dropped\"} 1",
            "berth_pull_phase_duration_seconds_count{phase=\"unpack\"} 3",
            "berth_pull_bytes_total 21",
            "berth_shim_deaths_total 1",
            "berth_sandboxes{state=\"ready\"} 3",
            "berth_sandboxes{state=\"not_ready\"} 0",
            "berth_undo_failures_total 4",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(!text.contains("foreign"), "{text}");
    }
}
