//! Spans to a collector of traces, by OTLP over gRPC.
//!
//! ```text
//! span ends ─▶ bounded queue ─▶ thread of batches ─▶ runtime of its own ─▶ collector
//!              full: dropped     each 5 s or 512      may hang as it likes
//! ```
//!
//! A request never waits for a collector: its spans are dropped when the queue is full.
//! Nothing of this exists unless the environment names a collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as Exporter};
use tokio::runtime::{Builder, Runtime};
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::Error;

/// Where spans go: what the environment says (OpenTelemetry's "Exporter Configuration").
/// Headers, timeouts, batches and sampling are read from there by the exporter itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Collector {
    endpoint: String,
    /// What the service calls itself, unless the environment does.
    service: Option<&'static str>,
}

impl Collector {
    /// The collector that `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` names, for a `service` of that name.
    ///
    /// # Errors
    /// [`Error::Environment`] if it is asked for in a way that is not spoken.
    pub fn from_environment(
        service: &'static str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Error> {
        let set = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let is = |name, value: &str| set(name).is_some_and(|it| it.eq_ignore_ascii_case(value));
        if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| set(name).map(|value| (name, value)))
        };
        let endpoint = first(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
        let Some((variable, endpoint)) = endpoint else { return Ok(None) };
        if endpoint.starts_with("https:") {
            let why = "traces are exported without TLS only, to a collector on the node";
            return Err(Error::Environment { variable, value: endpoint, why });
        }
        let protocol = first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        match protocol {
            Some((variable, value)) if value != "grpc" => {
                let why = "traces are exported by grpc only";
                return Err(Error::Environment { variable, value, why });
            }
            _ => {}
        }
        let attributes = set("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let named = set("OTEL_SERVICE_NAME").is_some()
            || attributes.split(',').any(|it| it.trim_start().starts_with("service.name="));
        Ok(Some(Self { endpoint, service: (!named).then_some(service) }))
    }

    /// Starts the export: two threads. A collector that is not there is no error.
    ///
    /// # Errors
    /// [`Error::Export`] or [`Error::Thread`].
    pub fn start(self) -> Result<Exporting, Error> {
        // A runtime of its own: a collector that is slow takes no thread from requests.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let entered = runtime.enter();
        let exporter =
            SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&self.endpoint)
                .build()
                .map_err(|source| Error::Export { endpoint: self.endpoint.clone(), source })?;
        drop(entered);
        let noting = Noting {
            inner: Arc::new(exporter),
            runtime: runtime.handle().clone(),
            endpoint: self.endpoint,
            failing: AtomicBool::new(false),
        };
        let mut resource = Resource::builder()
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if let Some(service) = self.service {
            resource = resource.with_service_name(service);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(noting)
            .with_resource(resource.build())
            .build();
        Ok(Exporting { provider, runtime: Some(runtime) })
    }
}

/// An export under way.
#[derive(Debug)]
pub struct Exporting {
    provider: SdkTracerProvider,
    runtime: Option<Runtime>,
}

impl Exporting {
    /// What takes the spans of this project, with their phases, whatever is logged.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let wanted = filter_fn(|metadata| {
            let most = if metadata.is_span() { Level::DEBUG } else { Level::INFO };
            metadata.target().starts_with("berth") && *metadata.level() <= most
        });
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("berth"))
            .with_location(false)
            .with_threads(false)
            .with_filter(wanted)
    }

    /// Sends what is left, within `limit`, and ends the export.
    pub fn shutdown(&self, limit: Duration) {
        // What was not sent by then is lost, as said when it began to fail.
        self.provider.shutdown_with_timeout(limit).ok();
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Says once that a collector does not take spans, and once that it does again.
#[derive(Debug)]
struct Noting {
    inner: Arc<SpanExporter>,
    /// Where connections and clocks are; the thread of batches has none.
    runtime: tokio::runtime::Handle,
    endpoint: String,
    failing: AtomicBool,
}

impl Exporter for Noting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (inner, count) = (Arc::clone(&self.inner), batch.len());
        let sent = self.runtime.spawn(async move { inner.export(batch).await }).await;
        let sent = sent.unwrap_or_else(|died| Err(OTelSdkError::InternalFailure(died.to_string())));
        let endpoint = &self.endpoint;
        match &sent {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(endpoint, "the collector takes traces again");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(endpoint, %error, spans = count, "traces are lost");
                }
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.set_resource(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Collector>, Error> {
        Collector::from_environment("berthd", |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_is_exported_unless_a_collector_is_named() {
        for off in [
            &[][..],
            &[("OTEL_SERVICE_NAME", "x")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1"), ("OTEL_SDK_DISABLED", "TRUE")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1"), ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(read(off).unwrap(), None, "{off:?}");
        }
        let both = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:1"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ];
        let found = read(&both).unwrap().unwrap();
        assert_eq!((found.endpoint.as_str(), found.service), ("http://traces:1", Some("berthd")));
        for own in [("OTEL_SERVICE_NAME", "x"), ("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=x")]
        {
            let found = read(&[both[0], own]).unwrap().unwrap();
            assert_eq!((found.endpoint.as_str(), found.service), ("http://general:1", None));
        }
    }

    #[test]
    fn what_is_not_spoken_is_refused_by_name() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1");
        for (variables, name) in [
            (&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")][..], "OTLP_PROTOCOL"),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:1")], "OTLP_ENDPOINT"),
        ] {
            let error = read(variables).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
