//! Where a request comes in and its answer goes out: one span, at most one log line.

use berth_model::ErrorKind;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span};

use crate::Error;
use crate::error::chain;

/// Opens the span of a request. What becomes known on the way is recorded into it.
macro_rules! request_span {
    ($level:ident, $name:literal) => {
        tracing::span!(
            tracing::Level::$level,
            $name,
            "sandbox.id" = tracing::field::Empty,
            "container.id" = tracing::field::Empty,
            "image.ref" = tracing::field::Empty,
            traceparent = tracing::field::Empty,
        )
    };
}
pub(crate) use request_span;

/// Does the work of one request in its span. A failure is logged here and nowhere else.
pub(crate) async fn answer<Q, A>(
    span: Span,
    request: Request<Q>,
    work: impl AsyncFnOnce(Q) -> Result<A, Error>,
) -> Result<Response<A>, Status> {
    if let Some(parent) = traceparent(request.metadata()) {
        span.record("traceparent", parent);
    }
    async move { work(request.into_inner()).await.map(Response::new).map_err(|error| log(&error)) }
        .instrument(span)
        .await
}

fn log(error: &Error) -> Status {
    let status = error.status();
    let (code, error) = (status.code(), (error.kind(), chain(error)));
    match error {
        (ErrorKind::Internal | ErrorKind::ResourceExhausted | ErrorKind::Unavailable, error) => {
            tracing::error!(?code, error, "request failed");
        }
        (_, error) => tracing::warn!(?code, error, "request refused"),
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

    #[tokio::test]
    async fn a_failed_request_becomes_a_status() {
        let span = request_span!(INFO, "cri.test");
        let result = answer(span, Request::new(7), async |seven: i32| {
            assert_eq!(seven, 7);
            Err::<(), _>(Error::Missing("config"))
        });
        let status = result.await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(status.message(), "config is missing");
    }
}
