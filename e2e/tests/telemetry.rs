//! What the daemon tells of itself: traces to a collector, and numbers.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_api::v1;
use berth_testkit::{Node, NodeOptions, cri};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// On the node's own loopback, where nothing else listens.
const COLLECTOR: &str = "127.0.0.1:4317";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Keeps the spans that it is sent.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|it| it.scope_spans);
        if let Ok(mut kept) = self.0.lock() {
            kept.extend(scopes.flat_map(|it| it.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// teeth: crates/daemon/src/serve.rs: `    telemetry.shutdown();` → ``
#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_client_goes_on_in_the_daemon_and_is_sent_before_it_ends() -> Result<()> {
    let environment =
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), format!("http://{COLLECTOR}"))];
    // Nobody listens yet: the daemon starts and serves all the same.
    let mut node =
        Node::start_with(NodeOptions { environment, quiet: true, ..Default::default() }).await?;
    node.cri.runtime.version(v1::VersionRequest::default()).await?;

    let listener = node.machine.run(|| Ok(TcpListener::bind(COLLECTOR)?))?;
    listener.set_nonblocking(true)?;
    let collector = Collector::default();
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()))
        .serve_with_incoming(TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?));
    let serving = tokio::spawn(serving);

    let config = Some(node.sandbox_config("traced"));
    let mut request = Request::new(v1::RunPodSandboxRequest { config, ..Default::default() });
    let parent = format!("00-{TRACE}-{PARENT}-01").parse()?;
    request.metadata_mut().insert("traceparent", parent);
    let id = node.cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    node.cri.remove_sandbox(&id).await?;
    node.terminate_daemon()?;
    serving.abort();

    let spans = collector.0.lock().ok().context("the collector panicked")?.clone();
    let named = |name: &str| spans.iter().find(|span| span.name == name);
    let run = named("cri.run_pod_sandbox").context("the request has no span")?;
    assert_eq!(hex(&run.trace_id), TRACE);
    assert_eq!(hex(&run.parent_span_id), PARENT);
    assert!(run.attributes.iter().any(|it| it.key == "sandbox.id"), "{run:?}");
    let below = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).count();
    assert!(below > 1, "the phases of the request are missing: {spans:?}");
    let own = named("cri.stop_pod_sandbox").context("the other request has no span")?;
    assert_ne!(hex(&own.trace_id), TRACE, "it came without a trace");
    node.start_daemon().await?;
    node.assert_clean().await
}

/// Asks for `path` at `address` inside the node; the whole answer.
fn scrape(node: &Node, address: &'static str, path: &'static str) -> Result<String> {
    node.machine.run(move || {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_served_on_the_loopback_when_they_are_configured() -> Result<()> {
    const ADDRESS: &str = "127.0.0.1:9500";
    let config = format!("[metrics]\naddress = '{ADDRESS}'\n");
    // What is logged is another matter: at `info` the polls are not.
    let options = NodeOptions { config, quiet: true, ..Default::default() };
    let mut node = Node::start_with(options).await?;
    let image = node.busybox().await?;
    let pod = node.pod("counted").await?;
    let sleep = cri::container_config("sleep", &image, &["sleep", "100"]);
    node.run(&pod, &sleep).await?;
    node.cri.runtime.list_containers(v1::ListContainersRequest::default()).await?;
    let missing = v1::StartContainerRequest { container_id: "0".repeat(64) };
    node.cri.runtime.start_container(missing).await.err().context("it was started")?;
    let shim = node.shim_pid(&pod.id).await?;
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;

    let wanted = [
        "berth_request_duration_seconds_count{rpc=\"run_pod_sandbox\",code=\"Ok\"} 1",
        "berth_request_duration_seconds_count{rpc=\"list_containers\",code=\"Ok\"} 1",
        "berth_request_duration_seconds_count{rpc=\"start_container\",code=\"NotFound\"} 1",
        "berth_pull_phase_duration_seconds_count{phase=\"unpack\"} 1",
        "berth_sandboxes{state=\"not_ready\"} 1",
        "berth_containers{state=\"exited\"} 1",
        "berth_shim_deaths_total 1",
        "berth_undo_failures_total 0",
    ];
    let deadline = Instant::now() + Duration::from_secs(30);
    // The death of the shim is noticed by and by.
    let answer = loop {
        let answer = scrape(&node, ADDRESS, "/metrics")?;
        if wanted.iter().all(|line| answer.lines().any(|it| it == *line)) {
            break answer;
        }
        if Instant::now() > deadline {
            anyhow::bail!("of {wanted:#?} something is missing:\n{answer}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let bytes = answer.lines().find_map(|line| line.strip_prefix("berth_pull_bytes_total "));
    assert!(bytes.context("no bytes")?.parse::<u64>()? > 100_000, "{answer}");
    assert!(scrape(&node, ADDRESS, "/")?.starts_with("HTTP/1.1 404 "));
    node.cri.remove_sandbox(&pod.id).await?;
    node.assert_clean().await
}
