use std::time::{Duration, Instant};

use berth_model::{Digest, ErrorKind};
use berth_registry::{Client, Config, Error, MAX_MANIFEST_BYTES, MediaType};

use crate::support::{Reply, Server, client, config};

const BODY: &str = r#"{"schemaVersion":2}"#;

#[tokio::test]
async fn a_tag_is_resolved_and_its_digest_then_fetched() {
    let digest = Digest::of(BODY.as_bytes());
    let server = Server::start(move |request| match request.target.as_str() {
        "/v2/a/b/manifests/t" => Reply::manifest(BODY).header("docker-content-digest", digest),
        target if target == format!("/v2/a/b/manifests/{digest}") => {
            Reply::ok(BODY).header("content-type", MediaType::OciIndex)
        }
        _ => Reply::status(404),
    })
    .await;
    let repository = client().repository(&server.reference("a/b:t"), None);

    let manifest = repository.resolve().await.unwrap();
    assert_eq!((manifest.media_type, manifest.digest), (MediaType::OciManifest, digest));
    assert_eq!(manifest.bytes, BODY);
    assert_eq!(repository.manifest(&digest).await.unwrap().media_type, MediaType::OciIndex);

    let accept = server.requests()[0].header("accept").map(str::to_owned);
    assert_eq!(accept.as_deref(), Some(MediaType::OciIndex.as_str()), "one line each");
}

#[tokio::test]
async fn a_digest_wins_over_the_tag() {
    let digest = Digest::of(BODY.as_bytes());
    let server = Server::start(|_| Reply::manifest(BODY)).await;
    let reference = server.reference(&format!("a:t@{digest}"));
    client().repository(&reference, None).resolve().await.unwrap();
    assert_eq!(server.requests()[0].target, format!("/v2/a/manifests/{digest}"));
}

/// The error of resolving a tag that is answered so, and the number of requests.
async fn failure(answer: Reply) -> (Error, usize) {
    let server = Server::start(move |_| answer.clone()).await;
    let error = client().repository(&server.reference("a:t"), None).resolve().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("{}/a:t", server.address)), "{text} names no image");
    (error, server.requests().len())
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let other = Digest::of(b"other");
    let (error, requests) =
        failure(Reply::manifest(BODY).header("docker-content-digest", other)).await;
    let actual = Digest::of(BODY.as_bytes());
    assert!(error.to_string().contains(&other.to_string()), "{error}");
    assert!(error.to_string().contains(&actual.to_string()), "{error}");
    assert_eq!((error.kind(), requests), (ErrorKind::FailedPrecondition, 1));

    let server = Server::start(|_| Reply::manifest(BODY)).await;
    let repository = client().repository(&server.reference(&format!("a@{other}")), None);
    let error = repository.resolve().await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { expected, .. } if expected == other));
}

#[tokio::test]
async fn an_unknown_manifest_is_not_found() {
    let (error, requests) = failure(Reply::status(404)).await;
    assert_eq!((error.kind(), requests), (ErrorKind::NotFound, 1));
}

#[tokio::test]
async fn what_is_no_image_is_named_and_refused() {
    let schema_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let (error, _) = failure(Reply::ok(BODY).header("content-type", schema_1)).await;
    assert!(error.to_string().contains("schema 1"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unimplemented);

    let (error, _) = failure(Reply::ok(BODY).header("content-type", "text/html")).await;
    assert!(error.to_string().contains("text/html"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);

    let (error, _) = failure(Reply::ok(BODY)).await;
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_manifest_over_the_limit_is_not_read_to_its_end() {
    let limit = usize::try_from(MAX_MANIFEST_BYTES).unwrap();
    let fits = Server::start(move |_| Reply::manifest(vec![b' '; limit])).await;
    client().repository(&fits.reference("a"), None).resolve().await.unwrap();

    for reply in
        [Reply::manifest(vec![b' '; limit + 1]), Reply::manifest(vec![b' '; limit + 1]).chunked()]
    {
        let (error, requests) = failure(reply).await;
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        assert_eq!((error.kind(), requests), (ErrorKind::InvalidArgument, 1));
    }
}

#[tokio::test]
async fn a_failing_registry_is_asked_five_times() {
    for status in [408, 500, 502, 503, 504] {
        let (error, requests) = failure(Reply::status(status)).await;
        assert!(matches!(error, Error::Status { .. }), "{error}");
        assert_eq!(requests, 5, "{status}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    let (error, requests) = failure(Reply::status(429)).await;
    assert_eq!((error.kind(), requests), (ErrorKind::Unavailable, 5));
    let (error, requests) = failure(Reply::manifest(BODY).cut_after(3)).await;
    assert_eq!((error.kind(), requests), (ErrorKind::Unavailable, 5));
    let (error, requests) = failure(Reply::status(400)).await;
    assert_eq!((error.kind(), requests), (ErrorKind::Internal, 1));
}

#[tokio::test]
async fn a_registry_that_recovers_is_forgiven() {
    let server = Server::start(|request| match request.earlier {
        0 => Reply::status(503),
        1 => Reply::manifest(BODY).cut_after(5),
        2 => Reply::status(429),
        3 => Reply::manifest(BODY).hang_after(5),
        _ => Reply::manifest(BODY),
    })
    .await;
    let client =
        Client::new(Config { idle_timeout: Duration::from_millis(100), ..config() }).unwrap();
    let manifest = client.repository(&server.reference("a"), None).resolve().await.unwrap();
    assert_eq!(manifest.bytes, BODY);
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_the_longest_pause() {
    let server = Server::start(|request| match request.earlier {
        0 => Reply::status(429).header("retry-after", 1),
        _ => Reply::manifest(BODY),
    })
    .await;
    let start = Instant::now();
    client().repository(&server.reference("a"), None).resolve().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));

    let (error, requests) = failure(Reply::status(429).header("retry-after", 3600)).await;
    assert!(matches!(error, Error::Throttled(_)), "{error}");
    assert_eq!(requests, 1, "coming back early only prolongs it");
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let server = Server::start(|_| Reply::status(404)).await;
    let reference = server.reference("a");
    let host = server.address.to_string();
    drop(server);
    tokio::task::yield_now().await;
    let error = client().repository(&reference, None).resolve().await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&host), "{error}");
}

#[tokio::test]
async fn a_registry_that_never_answers_ends_in_its_deadline() {
    // The kernel accepts for a listener that never does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/a", listener.local_addr().unwrap()).parse().unwrap();
    let config = Config { response_timeout: Duration::from_millis(50), ..config() };
    let start = Instant::now();
    let error =
        Client::new(config).unwrap().repository(&reference, None).resolve().await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(start.elapsed() >= Duration::from_millis(250), "five attempts");
}

#[tokio::test]
async fn a_registrys_own_words_are_passed_on() {
    let body = r#"{"errors":[{"code":"DENIED","message":"pull\nrate exceeded"}]}"#;
    let (error, _) = failure(Reply::status(403).body(body)).await;
    assert!(error.to_string().ends_with(": pull rate exceeded"), "{error}");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}
