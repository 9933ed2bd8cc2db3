//! The gRPC server: connections, their limits, and their end.

use std::io;
use std::time::Duration;

use berth_api::v1::image_service_server::ImageServiceServer;
use berth_api::v1::runtime_service_server::RuntimeServiceServer;
use berth_engine::Engine;
use berth_streaming::Urls;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::service::Routes;

use crate::deadline;
use crate::service::Service;

/// Largest message either way: kubelet's own limit.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Most requests in flight on one connection.
const MAX_STREAMS: u32 = 1000;
/// Longest header list, bytes.
const MAX_HEADER_BYTES: u32 = 32 << 10;
/// How much a client may send, on one connection or in one request, before it is read.
const WINDOW_BYTES: u32 = 1 << 20;
/// How long requests in flight may take once the daemon is to end. Their work goes on in
/// the engine where it outlives its client.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: out of descriptors, the next try would
/// fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers CRI requests from `incoming`, and shows `config`, which is JSON, until `shutdown` is ready and requests in flight
/// are answered, but not longer than five seconds after it.
pub async fn serve(
    mut incoming: UnixListenerStream,
    engine: Engine,
    urls: Urls,
    config: watch::Receiver<String>,
    shutdown: impl Future<Output = ()>,
) {
    let routes = routes(Service::new(engine.clone(), urls, config));
    let (connections, stop) = (TaskTracker::new(), CancellationToken::new());
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Some(Ok(stream)) if is_roots(&stream) => {
                connections.spawn(converse(stream, routes.clone(), stop.clone()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => refused(&error).await,
            None => break,
        }
    }
    drop(incoming);
    // A stream without an end would keep its connection to the last moment.
    engine.end_events();
    stop.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!(limit = ?DRAIN, "requests in flight were cut off");
    }
}

fn routes(service: Service) -> Routes {
    let runtime =
        RuntimeServiceServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let image = ImageServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Routes::new(runtime).add_service(image).prepare()
}

async fn refused(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Whether root connected, who alone may open the socket: it may have been made anybody's.
fn is_roots(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "a client other than root is refused"
            );
            false
        }
        Err(error) => {
            tracing::debug!(%error, "a client is gone already");
            false
        }
    }
}

/// Serves one connection to its end; after `stop` it takes no further request.
async fn converse(stream: UnixStream, routes: Routes, stop: CancellationToken) {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let answer = service_fn(move |request: http::Request<Incoming>| {
        deadline::answer(routes.clone(), request.map(Body::new))
    });
    let connection = http.serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that goes away in the middle of a frame is nothing to warn of.
        tracing::debug!(%error, "a connection ended badly");
    }
}
