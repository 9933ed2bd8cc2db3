//! Credentials go to the registry and to the token service it names, and nowhere else.

use std::io;
use std::sync::{Arc, Mutex};

use berth_model::ErrorKind;
use berth_registry::{Auth, Error, Repository};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::{Reply, Request, Server, all_of, blob, client};

const SECRETS: [&str; 4] =
    ["s3cret-password", "s3cret-identity", "s3cret-registry", "s3cret-token"];

fn every_auth() -> [Auth; 3] {
    [
        Auth::Basic { username: "user".into(), password: SECRETS[0].into() },
        Auth::IdentityToken(SECRETS[1].into()),
        Auth::RegistryToken(SECRETS[2].into()),
    ]
}

/// Somewhere else: it records all it gets, and answers as it is told.
async fn elsewhere(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Arc<Server> {
    Arc::new(Server::start(answer).await)
}

/// A registry that wants to know its client, by bearer or by basic, before it answers.
async fn registry(
    scheme: &'static str,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Server {
    Server::start(move |request| {
        if request.target.starts_with("/token") {
            return Reply::ok(format!(r#"{{"token":"{}"}}"#, SECRETS[3]));
        }
        if request.authorization().is_some() {
            return answer(request);
        }
        let host = request.header("host").unwrap();
        Reply::status(401)
            .header("www-authenticate", format!("{scheme} realm=\"http://{host}/token\""))
    })
    .await
}

fn check_learnt_nothing(elsewhere: &Server) {
    for request in elsewhere.requests() {
        assert_eq!(request.authorization(), None, "{request:?}");
        let everything = format!("{request:?}");
        assert!(!SECRETS.iter().any(|secret| everything.contains(secret)), "{everything}");
    }
}

async fn read_blob(repository: &Repository, size: usize, digest: berth_model::Digest) {
    let size = u64::try_from(size).unwrap();
    let mut blob = repository.blob(&digest, size).await.unwrap();
    let mut found = Vec::new();
    while let Some(piece) = blob.next().await.unwrap() {
        found.extend_from_slice(&piece);
    }
    assert_eq!(berth_model::Digest::of(&found), digest);
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_credentials() {
    let (bytes, digest) = blob(1000);
    for scheme in ["Bearer", "Basic"] {
        for auth in every_auth() {
            if scheme == "Basic" && matches!(auth, Auth::IdentityToken(_)) {
                continue;
            }
            let served = bytes.clone();
            let cdn = elsewhere(move |_| Reply::ok(served.clone())).await;
            let address = cdn.url("/x");
            let registry = registry(scheme, move |_| Reply::redirect(&address)).await;
            let repository = client().repository(&registry.reference("a"), Some(auth));
            read_blob(&repository, bytes.len(), digest).await;
            assert_eq!(cdn.requests().len(), 1);
            check_learnt_nothing(&cdn);
        }
    }
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_them() {
    let server = registry("Bearer", |request| match request.target.as_str() {
        "/v2/a/manifests/latest" => Reply::redirect("/v2/b/manifests/latest"),
        _ => Reply::manifest("{}"),
    })
    .await;
    client().repository(&server.reference("a"), None).resolve().await.unwrap();
    let last = server.requests().pop().unwrap();
    assert_eq!(last.target, "/v2/b/manifests/latest");
    assert!(last.authorization().is_some());
}

#[tokio::test]
async fn credentials_do_not_come_back_with_a_redirect_that_comes_back() {
    let back = Arc::new(Mutex::new(String::new()));
    let to = Arc::clone(&back);
    let middle = elsewhere(move |_| Reply::redirect(to.lock().unwrap().clone())).await;
    let away = middle.url("/x");
    let registry = Server::start(move |request| match request.target.as_str() {
        "/returned" => Reply::manifest("{}"),
        _ => Reply::redirect(&away),
    })
    .await;
    *back.lock().unwrap() = registry.url("/returned");
    let auth = Some(every_auth()[2].clone());
    client().repository(&registry.reference("a"), auth).resolve().await.unwrap();
    let sent: Vec<_> = registry.requests().iter().map(|it| it.authorization().is_some()).collect();
    assert_eq!(sent, [true, false]);
    check_learnt_nothing(&middle);
}

#[tokio::test]
async fn another_host_that_asks_for_credentials_gets_none() {
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"http://HOST/token\""] {
        let cdn = elsewhere(move |request| {
            let challenge = challenge.replace("HOST", request.header("host").unwrap());
            Reply::status(401).header("www-authenticate", challenge)
        })
        .await;
        for auth in every_auth() {
            let address = cdn.url("/x");
            let registry = Server::start(move |_| Reply::redirect(&address)).await;
            let repository = client().repository(&registry.reference("a"), Some(auth));
            let error = repository.resolve().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert_eq!(registry.requests().len(), 1);
        }
        assert_eq!(cdn.requests().len(), 3);
        check_learnt_nothing(&cdn);
    }
}

#[tokio::test]
async fn a_token_service_that_redirects_takes_no_secret_along() {
    let other = elsewhere(|_| Reply::ok(r#"{"token":"t"}"#)).await;
    for auth in every_auth() {
        let address = other.url("/token");
        let registry = Server::start(move |request| {
            let host = request.header("host").unwrap();
            match (request.target.starts_with("/token"), request.authorization()) {
                (true, _) => Reply::redirect(&address),
                (false, Some(_)) => Reply::manifest("{}"),
                (false, None) => Reply::status(401)
                    .header("www-authenticate", format!("Bearer realm=\"http://{host}/token\"")),
            }
        })
        .await;
        let repository = client().repository(&registry.reference("a"), Some(auth.clone()));
        let resolved = repository.resolve().await;
        assert_eq!(resolved.is_err(), matches!(auth, Auth::IdentityToken(_)), "{auth:?}");
    }
    check_learnt_nothing(&other);
}

#[tokio::test]
async fn a_redirect_without_tls_leads_to_no_host_that_is_not_configured() {
    for location in
        ["http://192.0.2.1/x", "http://r.example/x", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/x"]
    {
        let registry = Server::start(move |_| Reply::redirect(location)).await;
        let repository = client().repository(&registry.reference("a"), None);
        let error = repository.resolve().await.unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{location}: {error}");
        assert_eq!(registry.requests().len(), 1, "{location}");
    }
}

#[tokio::test]
async fn a_loop_of_redirects_ends_after_five() {
    let registry = Server::start(|request| Reply::redirect(&request.target)).await;
    let repository = client().repository(&registry.reference("a"), None);
    let error = repository.resolve().await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(registry.requests().len(), 6);
}

/// Everything that is logged, by whatever test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_registry_that_repeats_secrets_gets_them_into_no_error_and_no_log() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    // For all threads: with a scoped one, which call sites are enabled depends on which
    // test reaches them first.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    for scheme in ["Bearer", "Basic"] {
        for status in [400, 401, 403, 404, 429, 500] {
            for auth in every_auth() {
                // It says all that it was told.
                let registry = registry(scheme, move |request| {
                    let words =
                        format!("{} {}", request.authorization().unwrap(), SECRETS.join(" "));
                    let body = format!(r#"{{"errors":[{{"code":"X","message":"{words}"}}]}}"#);
                    Reply::status(status).header("x-repeated", words).body(body)
                })
                .await;
                let repository = client().repository(&registry.reference("a"), Some(auth.clone()));
                let error = repository.resolve().await.unwrap_err();
                let shown = format!("{repository:?} {auth:?} {}", all_of(&error));
                assert!(!SECRETS.iter().any(|secret| shown.contains(secret)), "{shown}");
            }
        }
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("registry request is tried again"), "retries are logged");
    assert!(!log.contains("s3cret"), "{log}");
    assert!(!log.contains("dXNlcjpzM2NyZXQtcGFzc3dvcmQ"), "base64: {log}");
}
