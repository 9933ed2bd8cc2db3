//! Where a request comes in and its answer goes out: one span, at most one log line.

use berth_model::ErrorKind;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument as _, Span};

use crate::Error;

/// The span of a request, and its name: a span below the level that is logged has none.
#[derive(Debug)]
pub(crate) struct RequestSpan {
    pub(crate) name: &'static str,
    pub(crate) span: Span,
}

/// Opens the span of a request. What becomes known on the way is recorded into it.
///
/// What a client asks again and again, probes included, is `DEBUG`; what changes something
/// is `INFO`.
macro_rules! request_span {
    ($level:ident, $name:literal) => {
        $crate::edge::RequestSpan {
            name: $name,
            span: tracing::span!(
                tracing::Level::$level,
                $name,
                "sandbox.id" = tracing::field::Empty,
                "container.id" = tracing::field::Empty,
                "image.ref" = tracing::field::Empty,
                traceparent = tracing::field::Empty,
            ),
        }
    };
}
pub(crate) use request_span;

/// Does the work of one request in its span. A failure is logged here and nowhere else.
pub(crate) async fn answer<Q, A>(
    RequestSpan { name, span }: RequestSpan,
    request: Request<Q>,
    work: impl AsyncFnOnce(Q) -> Result<A, Error>,
) -> Result<Response<A>, Status> {
    if let Some(parent) = traceparent(request.metadata()) {
        span.record("traceparent", parent);
        let state = request.metadata().get("tracestate").and_then(|state| state.to_str().ok());
        berth_telemetry::continue_trace(&span, parent, state);
    }
    async move {
        let answered = work(request.into_inner()).await.map_err(|error| log(name, &error))?;
        tracing::trace!(rpc = name, code = ?Code::Ok, "request answered");
        Ok(Response::new(answered))
    }
    .instrument(span)
    .await
}

fn log(rpc: &'static str, error: &Error) -> Status {
    let status = error.status();
    let (code, kind, error) = (status.code(), error.kind(), berth_model::chain(error));
    match kind {
        ErrorKind::Internal | ErrorKind::ResourceExhausted | ErrorKind::Unavailable => {
            tracing::error!(rpc, ?code, error, "request failed");
        }
        // kubelet tries what may not be there before each of its periodic lists.
        ErrorKind::Unimplemented => tracing::debug!(rpc, ?code, error, "request refused"),
        _ => tracing::warn!(rpc, ?code, error, "request refused"),
    }
    status
}

/// The caller's place in its trace (W3C Trace Context, "traceparent Header").
fn traceparent(metadata: &MetadataMap) -> Option<&str> {
    let text = metadata.get("traceparent")?.to_str().ok()?;
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = text.split('-');
    let valid = parts.next().is_some_and(|version| version == "00")
        && parts.next().is_some_and(|trace| hex(trace, 32))
        && parts.next().is_some_and(|parent| hex(parent, 16))
        && parts.next().is_some_and(|flags| hex(flags, 2))
        && parts.next().is_none();
    valid.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_only_when_it_is_one() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("traceparent", text.parse().unwrap());
            traceparent(&metadata).map(str::to_owned)
        };
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(read(good).as_deref(), Some(good));
        for bad in ["", "00", &good[..54], &format!("{good}-00"), &good.replace("00-", "ff-")] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(traceparent(&MetadataMap::new()), None);
    }

    #[test]
    fn a_failed_request_becomes_a_status() {
        logged(async {
            let span = request_span!(INFO, "cri.test");
            let result = answer(span, Request::new(7), async |seven: i32| {
                assert_eq!(seven, 7);
                Err::<(), _>(Error::Missing("config"))
            });
            let status = result.await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert_eq!(status.message(), "config is missing");
        });
    }

    /// Whether anybody listens to a place in the code is remembered for all threads: the
    /// tests that pass the same places do so one after the other.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// What is logged at `info` while `work` runs.
    fn logged(work: impl Future<Output = ()>) -> String {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (reader, writer) = std::io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(std::sync::Mutex::new(writer))
            .finish();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tracing::subscriber::with_default(subscriber, || runtime.block_on(work));
        std::io::read_to_string(reader).unwrap()
    }

    /// teeth: crates/cri/src/edge.rs: `tracing::warn!(rpc, ` → `tracing::warn!(`
    #[test]
    fn a_failure_of_what_is_not_logged_otherwise_is_logged_with_the_name_of_its_rpc() {
        let text = logged(async {
            let span = request_span!(DEBUG, "cri.list_tests");
            let failed =
                answer(span, Request::new(()), async |()| Err::<(), _>(Error::Missing("filter")));
            failed.await.unwrap_err();
        });
        assert!(text.contains("cri.list_tests"), "{text}");
        assert!(text.contains("filter is missing"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn what_a_client_tries_each_second_says_nothing() {
        let text = logged(async {
            let span = request_span!(DEBUG, "cri.list_tests");
            answer(span, Request::new(()), async |()| Ok(())).await.unwrap();
            let span = request_span!(DEBUG, "cri.checkpoint_tests");
            let off =
                answer(span, Request::new(()), async |()| Err::<(), _>(Error::CheckpointsOff));
            off.await.unwrap_err();
        });
        assert_eq!(text, "");
    }
}
