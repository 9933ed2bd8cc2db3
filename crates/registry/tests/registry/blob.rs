use std::time::{Duration, Instant};

use berth_model::{Digest, ErrorKind};
use berth_registry::{Client, Config, Error};

use crate::support::{Reply, Request, Server, blob, client, config};

const KIB: usize = 1024;

async fn read(
    client: Client,
    server: &Server,
    digest: &Digest,
    size: usize,
) -> Result<Vec<u8>, Error> {
    let repository = client.repository(&server.reference("a/b:t"), None);
    let mut blob = repository.blob(digest, u64::try_from(size).unwrap()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = blob.next().await? {
        assert!(!piece.is_empty());
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// A blob of 300 KiB comes whole through whatever `answer` does with it; the ranges asked.
async fn check(
    config: Config,
    answer: impl Fn(&[u8], &Request) -> Reply + Send + Sync + 'static,
) -> Vec<Option<String>> {
    let (bytes, digest) = blob(300 * KIB);
    let served = bytes.clone();
    let server = Server::start(move |request| answer(&served, request)).await;
    let found = read(Client::new(config).unwrap(), &server, &digest, bytes.len()).await;
    assert_eq!(Digest::of(&found.unwrap()), digest);
    let requests = server.requests();
    assert!(requests.iter().all(|it| it.target == format!("/v2/a/b/blobs/{digest}")));
    requests.iter().map(|it| it.header("range").map(str::to_owned)).collect()
}

async fn failure(
    size: usize,
    answer: impl Fn(&[u8], &Request) -> Reply + Send + Sync + 'static,
) -> (Error, usize) {
    let (bytes, digest) = blob(300 * KIB);
    let server = Server::start(move |request| answer(&bytes, request)).await;
    let config = Config { idle_timeout: Duration::from_millis(50), ..config() };
    let error = read(Client::new(config).unwrap(), &server, &digest, size).await.unwrap_err();
    assert!(error.to_string().contains(&digest.to_string()), "{error} names no blob");
    assert!(error.to_string().contains(&server.address.to_string()), "{error} names no host");
    (error, server.requests().len())
}

#[tokio::test]
async fn a_blob_comes_whole_in_one_request() {
    assert_eq!(check(config(), |bytes, _| Reply::ok(bytes)).await, [None]);
    assert_eq!(check(config(), |bytes, _| Reply::ok(bytes).chunked()).await, [None]);
}

#[tokio::test]
async fn an_empty_blob_needs_no_request() {
    let server = Server::start(|_| Reply::status(500)).await;
    assert_eq!(read(client(), &server, &Digest::of(b""), 0).await.unwrap(), b"");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_broken_transfer_asks_for_the_rest_in_a_closed_range() {
    let ranges = check(config(), |bytes, request| match request.header("range") {
        None => Reply::ok(bytes).cut_after(100 * KIB),
        Some(range) if range.starts_with("bytes=102400-") => {
            Reply::ranged(bytes, request).cut_after(50 * KIB)
        }
        Some(_) => Reply::ranged(bytes, request),
    })
    .await;
    let expected = [None, Some("bytes=102400-307199"), Some("bytes=153600-307199")];
    assert_eq!(ranges.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_read_from_the_start() {
    let ranges = check(config(), |bytes, request| match request.header("range") {
        None => Reply::ok(bytes).cut_after(100 * KIB),
        Some(_) => Reply::ok(bytes),
    })
    .await;
    assert_eq!(ranges.len(), 2);
}

#[tokio::test]
async fn a_registry_that_answers_ranges_wrongly_is_asked_for_none() {
    let wrong: [fn(&[u8]) -> Reply; 4] = [
        |_| Reply::status(416),
        |_| Reply::status(206),
        |bytes| {
            Reply::status(206).body(bytes).header("content-range", "bytes 307199-307199/307200")
        },
        |bytes| Reply::status(206).body(bytes).header("content-range", "x"),
    ];
    for wrong in wrong {
        let ranges = check(config(), move |bytes, request| match request.header("range") {
            Some(_) => wrong(bytes),
            None if request.earlier == 0 => Reply::ok(bytes).cut_after(100 * KIB),
            None => Reply::ok(bytes),
        })
        .await;
        assert_eq!(ranges.last(), Some(&None));
    }
}

#[tokio::test]
async fn a_part_that_starts_too_early_is_cut_to_fit() {
    check(config(), |bytes, request| match request.header("range") {
        None => Reply::ok(bytes).cut_after(100 * KIB),
        Some(_) => Reply::status(206)
            .body(&bytes[1000..])
            .header("content-range", "bytes 1000-307199/307200"),
    })
    .await;
}

#[tokio::test]
async fn errors_in_the_middle_are_overcome() {
    check(config(), |bytes, request| match (request.header("range"), request.earlier) {
        (None, 0) => Reply::status(503),
        (None, 1) => Reply::status(429),
        (None, _) => Reply::ok(bytes).cut_after(100 * KIB),
        (Some(_), 3) => Reply::status(502),
        (Some(_), _) => Reply::ranged(bytes, request),
    })
    .await;
}

#[tokio::test]
async fn a_silent_transfer_is_replaced() {
    let config = Config { idle_timeout: Duration::from_millis(100), ..config() };
    let ranges = check(config, |bytes, request| match request.header("range") {
        None => Reply::ok(bytes).hang_after(100 * KIB),
        Some(_) => Reply::ranged(bytes, request),
    })
    .await;
    assert_eq!(ranges[1].as_deref(), Some("bytes=102400-307199"));
}

#[tokio::test]
async fn a_trickle_is_as_good_as_silence() {
    let start = Instant::now();
    let (error, requests) = failure(300 * KIB, |bytes, _| {
        Reply::ok(bytes).trickle_after(100, Duration::from_millis(5))
    })
    .await;
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert_eq!((error.kind(), requests), (ErrorKind::DeadlineExceeded, 5));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_slow_reader_is_no_stall() {
    let (bytes, digest) = blob(2048 * KIB);
    let served = bytes.clone();
    let server = Server::start(move |_| Reply::ok(served.clone())).await;
    let config = Config { idle_timeout: Duration::from_millis(50), ..config() };
    let repository = Client::new(config).unwrap().repository(&server.reference("a"), None);
    let mut blob = repository.blob(&digest, u64::try_from(bytes.len()).unwrap()).await.unwrap();
    let mut found = Vec::new();
    while let Some(piece) = blob.next().await.unwrap() {
        if found.len() < 512 * KIB {
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        found.extend_from_slice(&piece);
    }
    assert_eq!(Digest::of(&found), digest);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_transfer_that_always_breaks_at_once_fails_after_five_attempts() {
    let (error, requests) = failure(300 * KIB, |bytes, request| {
        let reply = Reply::ranged(bytes, request);
        reply.cut_after(1)
    })
    .await;
    assert!(matches!(error, Error::Broken { .. }), "{error}");
    assert_eq!((error.kind(), requests), (ErrorKind::Unavailable, 5));
}

#[tokio::test]
async fn a_transfer_that_breaks_often_but_gets_on_succeeds() {
    const MIB: usize = 1024 * KIB;
    let (bytes, digest) = blob(36 * MIB);
    let served = bytes.clone();
    let server =
        Server::start(move |request| Reply::ranged(&served, request).cut_after(9 * MIB / 2)).await;
    let found = read(client(), &server, &digest, bytes.len()).await.unwrap();
    assert_eq!(Digest::of(&found), digest);
    assert_eq!(server.requests().len(), 8);
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused() {
    let (error, requests) = failure(300 * KIB + 1, |bytes, _| Reply::ok(bytes)).await;
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    assert_eq!((error.kind(), requests), (ErrorKind::FailedPrecondition, 1));

    let (error, requests) = failure(1000, |bytes, _| Reply::ok(bytes).chunked()).await;
    assert!(matches!(error, Error::TooLarge { limit: 1000, .. }), "{error}");
    assert_eq!(requests, 1);

    // Too short, but without a length that would say so before.
    let (error, requests) = failure(300 * KIB + 1, |bytes, _| Reply::ok(bytes).chunked()).await;
    assert_eq!((error.kind(), requests), (ErrorKind::Unavailable, 5));
}

#[tokio::test]
async fn an_unknown_blob_is_not_found() {
    let (error, requests) = failure(10, |_, _| Reply::status(404)).await;
    assert_eq!((error.kind(), requests), (ErrorKind::NotFound, 1));
}
