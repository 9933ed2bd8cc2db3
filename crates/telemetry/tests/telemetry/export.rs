use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use berth_telemetry::{Collector, Exporting, continue_trace};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tracing_subscriber::layer::SubscriberExt as _;

/// For what must end, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Keeping(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Keeping {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Keeping {
    fn spans(&self) -> Vec<Span> {
        let kept = self.0.lock().unwrap();
        let scopes = kept.iter().flat_map(|it| &it.resource_spans).flat_map(|it| &it.scope_spans);
        scopes.flat_map(|it| it.spans.clone()).collect()
    }

    fn resource(&self, name: &str) -> String {
        let kept = self.0.lock().unwrap();
        let resource = kept[0].resource_spans[0].resource.clone().unwrap();
        let found = resource.attributes.into_iter().find(|it| it.key == name).unwrap();
        format!("{:?}", found.value)
    }
}

fn serve(runtime: &Runtime, keeping: Keeping) -> String {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(keeping))
        .serve_with_incoming(TcpListenerStream::new(listener));
    runtime.spawn(serving);
    format!("http://{address}")
}

fn exporting(endpoint: &str) -> Exporting {
    let endpoint = endpoint.to_owned();
    let variable =
        move |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    Collector::from_environment("tested", variable).unwrap().unwrap().start().unwrap()
}

fn within(exporting: &Exporting, work: impl FnOnce()) {
    let subscriber = tracing_subscriber::registry().with(exporting.layer());
    tracing::subscriber::with_default(subscriber, work);
}

#[test]
fn spans_reach_the_collector_below_the_one_that_the_client_named() {
    let (runtime, keeping) = (Runtime::new().unwrap(), Keeping::default());
    let exporting = exporting(&serve(&runtime, keeping.clone()));
    within(&exporting, || {
        let request = tracing::info_span!(target: "berth_test", "cri.test", "sandbox.id" = "s1");
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        continue_trace(&request, parent, None);
        request.in_scope(|| {
            drop(tracing::debug_span!(target: "berth_test", "phase").entered());
            drop(tracing::info_span!(target: "h2", "of a library").entered());
        });
        let unsampled = tracing::info_span!(target: "berth_test", "unsampled");
        continue_trace(&unsampled, &parent.replace("-01", "-00"), None);
        drop(unsampled.entered());
    });
    exporting.shutdown(DEADLINE);

    let spans = keeping.spans();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let span = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let request = span("cri.test");
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert!(request.attributes.iter().any(|it| it.key == "sandbox.id"));
    assert_eq!(span("phase").parent_span_id, request.span_id);
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert!(keeping.resource("service.name").contains("tested"));
}

/// Ends spans until the queue must be full many times over, and the export after that.
fn torment(endpoint: String) {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let exporting = exporting(&endpoint);
        within(&exporting, || {
            for _ in 0..20_000 {
                drop(tracing::info_span!(target: "berth_test", "many").entered());
            }
        });
        exporting.shutdown(Duration::from_millis(200));
        done.send(()).unwrap();
    });
    ended.recv_timeout(DEADLINE).expect("spans or the end waited for the collector");
}

#[test]
fn a_collector_that_hangs_or_is_away_holds_up_nobody() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    // The kernel accepts, and nobody answers.
    torment(address.clone());
    drop(listener);
    torment(address);
}
