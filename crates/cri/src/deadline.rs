//! The deadline a client sets with its request (gRPC over HTTP/2, `grpc-timeout`).
//!
//! Whoever sets one expects `DEADLINE_EXCEEDED` from whichever side sees it pass first:
//! kubelet and its tests tell that code from `CANCELLED`, with which tonic's own server
//! answers. So the header is taken off before tonic sees it, and obeyed here.

use std::convert::Infallible;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service as _;

/// The header that carries it.
const HEADER: &str = "grpc-timeout";
/// Most digits it may have.
const MAX_DIGITS: usize = 8;

/// Answers `request` within its deadline, if it has one.
pub(crate) async fn answer(
    mut routes: Routes,
    mut request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let limit = match take(request.headers_mut()) {
        Ok(limit) => limit,
        Err(status) => return Ok(status.into_http()),
    };
    let answered = routes.call(request);
    let Some(limit) = limit else { return answered.await };
    match tokio::time::timeout(limit, answered).await {
        Ok(answered) => answered,
        Err(_) => {
            let problem = format!("the request took longer than the {limit:?} its client gave it");
            Ok(Status::deadline_exceeded(problem).into_http())
        }
    }
}

/// Takes the deadline out of the headers.
fn take(headers: &mut HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.remove(HEADER) else { return Ok(None) };
    let limit = value.to_str().ok().and_then(parse);
    let malformed = || Status::invalid_argument(format!("{HEADER}: {value:?} is not a timeout"));
    limit.map(Some).ok_or_else(malformed)
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !plain || digits.len() > MAX_DIGITS {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let good = [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("150m", Duration::from_millis(150)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ];
        for (text, limit) in good {
            assert_eq!(parse(text), Some(limit), "{text}");
        }
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1é", "1 S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    /// A service that never answers.
    #[derive(Clone)]
    struct Silent;

    impl tonic::server::NamedService for Silent {
        const NAME: &'static str = "silent";
    }

    impl tower_service::Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            assert!(!request.headers().contains_key(HEADER), "tonic would obey it too");
            std::future::pending()
        }
    }

    /// teeth: crates/cri/src/deadline.rs: `Status::deadline_exceeded(` → `Status::cancelled(`
    #[tokio::test]
    async fn a_deadline_that_passes_is_told_as_one() {
        let request = Request::builder().uri("/silent/Verb").header(HEADER, "1m");
        let routes = Routes::new(Silent).prepare();
        let answered = answer(routes, request.body(Body::empty()).unwrap()).await.unwrap();
        let status = Status::from_header_map(answered.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert!(status.message().contains("1ms"), "{status}");
    }

    #[test]
    fn a_malformed_timeout_is_refused_by_name() {
        let mut headers = HeaderMap::new();
        assert_eq!(take(&mut headers).unwrap(), None);
        headers.insert(HEADER, "soon".parse().unwrap());
        let refused = take(&mut headers).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("soon"), "{refused}");
    }
}
