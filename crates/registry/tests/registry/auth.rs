use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_model::{Digest, ErrorKind};
use berth_registry::{Auth, Error};

use crate::support::{Reply, Request, Server, all_of, blob, client};

const BODY: &str = "{}";
const PASSWORD: &str = "s3cret-password";

fn user() -> Auth {
    Auth::Basic { username: "user".into(), password: PASSWORD.into() }
}

fn basic_header() -> String {
    format!("Basic {}", STANDARD.encode(format!("user:{PASSWORD}")))
}

/// A registry with its token service on the same host, which gives `token-1`, `token-2`, …
/// and accepts the newest only.
async fn token_registry(
    accept: impl Fn(&Request) -> bool + Send + Sync + 'static,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Server {
    let given = Arc::new(AtomicUsize::new(0));
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            if !accept(request) {
                return Reply::status(401).body(r#"{"details":"incorrect username or password"}"#);
            }
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::ok(format!(r#"{{"token":"token-{number}","expires_in":300}}"#));
        }
        let newest = format!("Bearer token-{}", given.load(Ordering::SeqCst));
        if request.authorization() == Some(newest.as_str()) {
            return answer(request);
        }
        let host = request.header("host").unwrap();
        let scope = "repository:a/b:pull";
        Reply::status(401).header(
            "www-authenticate",
            format!(r#"Bearer realm="http://{host}/token",service="test",scope="{scope}""#),
        )
    })
    .await
}

fn authorizations(server: &Server) -> Vec<(String, Option<String>)> {
    let requests = server.requests();
    requests.iter().map(|it| (it.target.clone(), it.authorization().map(str::to_owned))).collect()
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_used_for_all_that_follows() {
    let server =
        token_registry(|request| request.authorization().is_none(), |_| Reply::manifest(BODY))
            .await;
    let repository = client().repository(&server.reference("a/b:t"), None);
    let digest = repository.resolve().await.unwrap().digest;
    repository.manifest(&digest).await.unwrap();
    repository.clone().manifest(&digest).await.unwrap();

    let token = Some("Bearer token-1".to_owned());
    let by_digest = format!("/v2/a/b/manifests/{digest}");
    let expected = [
        ("/v2/a/b/manifests/t".to_owned(), None),
        ("/token?service=test&scope=repository%3Aa%2Fb%3Apull".to_owned(), None),
        ("/v2/a/b/manifests/t".to_owned(), token.clone()),
        (by_digest.clone(), token.clone()),
        (by_digest, token),
    ];
    assert_eq!(authorizations(&server), expected);
}

#[tokio::test]
async fn the_password_goes_to_the_token_service_and_not_to_the_registry() {
    let server = token_registry(
        |request| request.authorization() == Some(&basic_header()),
        |_| Reply::manifest(BODY),
    )
    .await;
    client().repository(&server.reference("a/b:t"), Some(user())).resolve().await.unwrap();
    for (target, authorization) in authorizations(&server) {
        let with_password = authorization == Some(basic_header());
        assert_eq!(with_password, target.starts_with("/token"), "{target}");
    }
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_of_a_blob_is_renewed() {
    let (bytes, digest) = blob(100_000);
    let served = bytes.clone();
    let given = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request| {
        if request.target == "/token?scope=repository%3Aa%2Fb%3Apull" {
            let number = given.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::ok(format!(r#"{{"access_token":"token-{number}"}}"#));
        }
        let challenge =
            format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        match (request.authorization(), request.header("range")) {
            (Some("Bearer token-1"), None) => Reply::ok(served.clone()).cut_after(50_000),
            (Some("Bearer token-2"), Some(_)) => Reply::ranged(&served, request),
            _ => Reply::status(401).header("www-authenticate", challenge),
        }
    })
    .await;
    let repository = client().repository(&server.reference("a/b"), None);
    let mut blob = repository.blob(&digest, 100_000).await.unwrap();
    let mut found = Vec::new();
    while let Some(piece) = blob.next().await.unwrap() {
        found.extend_from_slice(&piece);
    }
    assert_eq!(Digest::of(&found), digest);
    let tokens = server.requests().iter().filter(|it| it.target.starts_with("/token")).count();
    assert_eq!(tokens, 2);
}

#[tokio::test]
async fn a_token_that_is_refused_at_once_is_not_renewed_for_ever() {
    let server = token_registry(|_| true, |_| Reply::status(401)).await;
    let repository = client().repository(&server.reference("a/b"), Some(user()));
    let error = repository.resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_wrong_password_is_a_refusal_in_the_services_words() {
    let server = token_registry(|_| false, |_| Reply::manifest(BODY)).await;
    let repository = client().repository(&server.reference("a/b"), Some(user()));
    let error = repository.resolve().await.unwrap_err();
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(server.requests().len(), 2, "not tried again");
}

#[tokio::test]
async fn basic_credentials_are_sent_only_when_asked_for() {
    let server = Server::start(|request| match request.authorization() {
        Some(header) if header == basic_header() => Reply::manifest(BODY),
        _ => Reply::status(401).header("www-authenticate", "Basic realm=\"test\""),
    })
    .await;
    let repository = client().repository(&server.reference("a:t"), Some(user()));
    repository.resolve().await.unwrap();
    repository.resolve().await.unwrap();
    let sent: Vec<_> = server.requests().iter().map(|it| it.authorization().is_some()).collect();
    assert_eq!(sent, [false, true, true]);

    let wrong = Auth::Basic { username: "user".into(), password: "wrong".into() };
    for (auth, requests) in [(Some(wrong), 2), (None, 1)] {
        let before = server.requests().len();
        let repository = client().repository(&server.reference("a:t"), auth);
        let error = repository.resolve().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(server.requests().len() - before, requests);
    }
}

#[tokio::test]
async fn an_identity_token_is_traded_in_the_body_of_a_post() {
    let server = token_registry(
        |request| {
            request.method == "POST"
                && request.authorization().is_none()
                && request.body
                    == "grant_type=refresh_token&client_id=berth&service=test\
                        &scope=repository%3Aa%2Fb%3Apull&refresh_token=id%2Btoken"
        },
        |_| Reply::manifest(BODY),
    )
    .await;
    let auth = Some(Auth::IdentityToken("id+token".into()));
    client().repository(&server.reference("a/b"), auth).resolve().await.unwrap();
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is_and_never_replaced() {
    let server = Server::start(|request| match request.authorization() {
        Some("Bearer registry-token") => Reply::manifest(BODY),
        _ => Reply::status(401).header("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/\""),
    })
    .await;
    let repository = |token: &str| {
        let auth = Some(Auth::RegistryToken(token.to_owned()));
        client().repository(&server.reference("a"), auth)
    };
    repository("registry-token").resolve().await.unwrap();
    assert_eq!(server.requests().len(), 1);
    let error = repository("old").resolve().await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let error = repository("two\nlines").resolve().await.unwrap_err();
    assert!(!all_of(&error).contains("lines"), "{error}");
}

#[tokio::test]
async fn a_token_service_that_makes_no_sense_is_a_typed_error() {
    for answer in ["", "[]", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":7}"#] {
        let server = token_registry_answering(Reply::ok(answer)).await;
        let repository = client().repository(&server.reference("a/b"), Some(user()));
        let error = repository.resolve().await.unwrap_err();
        assert!(matches!(error, Error::Challenge { .. }), "{answer}: {error}");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    let server = token_registry_answering(Reply::ok(vec![b' '; 2 << 20])).await;
    let error = client().repository(&server.reference("a"), None).resolve().await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_token_service_that_is_busy_is_asked_again() {
    let server = token_registry_answering(Reply::status(503)).await;
    let error = client().repository(&server.reference("a"), None).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(server.requests().len(), 10);
}

async fn token_registry_answering(token: Reply) -> Server {
    Server::start(move |request| match request.target.starts_with("/token") {
        true => token.clone(),
        false => Reply::status(401).header(
            "www-authenticate",
            format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap()),
        ),
    })
    .await
}
