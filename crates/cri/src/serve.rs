//! The gRPC server.

use std::time::Duration;

use berth_api::v1::image_service_server::ImageServiceServer;
use berth_api::v1::runtime_service_server::RuntimeServiceServer;
use berth_engine::Engine;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::Error;
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

/// Answers CRI requests from `incoming` until `shutdown` is ready and requests in flight
/// are answered, but not longer than five seconds after it.
///
/// # Errors
///
/// [`Error::Serve`] when the server cannot be set up.
pub async fn serve(
    incoming: UnixListenerStream,
    engine: Engine,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let service = Service::new(engine.clone());
    let (drain, draining) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(
            RuntimeServiceServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(ImageServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(incoming, async {
            // An error means that `drain` was dropped with this future's owner.
            _ = draining.await;
        });
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.map_err(Error::Serve),
        () = shutdown => {}
    }
    // A stream without an end would keep the server to the last moment.
    engine.end_events();
    // The receiver lives as long as `server`.
    _ = drain.send(());
    match tokio::time::timeout(DRAIN, server).await {
        Ok(ended) => ended.map_err(Error::Serve),
        Err(_) => {
            tracing::warn!(limit = ?DRAIN, "requests in flight were cut off");
            Ok(())
        }
    }
}
