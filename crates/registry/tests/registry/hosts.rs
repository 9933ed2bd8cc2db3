use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_model::ErrorKind;
use berth_registry::{Auth, Blob, Client, Config, Distrusted, Error};
use tempfile::TempDir;

use crate::support::{Reply, Request, Server, all_of, blob, certificate, config};

const BODY: &str = "{}";

/// A directory that says who serves the images of `registry`.
fn certs_d(registry: &Server, text: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let own = format!("127.0.0.1_{}_", registry.address.port());
    fs::create_dir(root.path().join(&own)).unwrap();
    fs::write(root.path().join(own).join("hosts.toml"), text).unwrap();
    root
}

fn client(root: &Path) -> Client {
    // No authority is trusted but those that a file names.
    let certificate_authorities = Vec::new();
    let hosts = Some(root.to_owned());
    Client::new(Config { hosts, certificate_authorities, ..config() }).unwrap()
}

fn host(server: &Server) -> String {
    format!("[host.\"{}\"]\n", server.url(""))
}

fn targets(server: &Server) -> Vec<String> {
    server.requests().into_iter().map(|request| request.target).collect()
}

fn password(text: &str) -> Auth {
    Auth::Basic { username: "user".into(), password: text.into() }
}

/// Where nobody listens: its port was given back.
async fn dead() -> String {
    Server::start(|_| Reply::status(500)).await.url("")
}

async fn read(mut blob: Blob) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(piece) = blob.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_mirror_serves_all_of_a_pull_and_is_told_whose_images_it_serves() {
    let (bytes, digest) = blob(1000);
    let content = bytes.clone();
    let mirror = Server::start(move |request| match request.target.contains("/blobs/") {
        true => Reply::ok(content.clone()),
        false => Reply::manifest(BODY),
    })
    .await;
    let registry = Server::start(|_| Reply::status(500)).await;
    let root = certs_d(&registry, &host(&mirror));
    let repository = client(root.path()).repository(&registry.reference("a/b:t"), None);
    let manifest = repository.resolve().await.unwrap();
    repository.manifest(&manifest.digest).await.unwrap();
    assert_eq!(read(repository.blob(&digest, 1000).await.unwrap()).await.unwrap(), bytes);

    let port = registry.address.port();
    let expected = ["manifests/t".to_owned(), format!("manifests/{}", manifest.digest)];
    let expected = expected.into_iter().chain([format!("blobs/{digest}")]);
    let expected: Vec<_> =
        expected.map(|what| format!("/v2/a/b/{what}?ns=127.0.0.1:{port}")).collect();
    assert_eq!(targets(&mirror), expected);
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn the_next_host_is_asked_whatever_is_wrong_with_the_first() {
    let (bytes, digest) = blob(1000);
    for status in [400, 401, 403, 404, 429, 500, 503] {
        let mirror = Server::start(move |_| Reply::status(status)).await;
        let content = bytes.clone();
        let registry = Server::start(move |request| match request.target.contains("/blobs/") {
            true => Reply::ok(content.clone()),
            false => Reply::manifest(BODY),
        })
        .await;
        let root = certs_d(&registry, &format!("[host.\"{}\"]\n{}", dead().await, host(&mirror)));
        let repository = client(root.path()).repository(&registry.reference("a:t"), None);
        repository.resolve().await.unwrap();
        assert_eq!(read(repository.blob(&digest, 1000).await.unwrap()).await.unwrap(), bytes);
        assert_eq!(mirror.requests().len(), 1, "{status}: who failed is not asked again");
        assert_eq!(
            targets(&registry),
            ["/v2/a/manifests/t".to_owned(), format!("/v2/a/blobs/{digest}")]
        );
    }
}

#[tokio::test]
async fn a_mirror_with_other_bytes_than_the_digest_is_passed_over() {
    let mirror = Server::start(|_| Reply::manifest("{\"other\":1}")).await;
    let registry = Server::start(|_| Reply::manifest(BODY)).await;
    let root = certs_d(&registry, &host(&mirror));
    let digest = berth_model::Digest::of(BODY.as_bytes());
    let reference = registry.reference(&format!("a@{digest}"));
    let found = client(root.path()).repository(&reference, None).resolve().await.unwrap();
    assert_eq!(&*found.bytes, BODY.as_bytes());
    assert_eq!((mirror.requests().len(), registry.requests().len()), (1, 1));
}

#[tokio::test]
async fn the_rest_of_a_blob_comes_from_the_next_host() {
    let (bytes, digest) = blob(100_000);
    let (first, second) = (bytes.clone(), bytes.clone());
    let mirror = Server::start(move |_| Reply::ok(first.clone()).cut_after(60_000)).await;
    let registry = Server::start(move |request| Reply::ranged(&second, request)).await;
    let root = certs_d(&registry, &host(&mirror));
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    assert_eq!(read(repository.blob(&digest, 100_000).await.unwrap()).await.unwrap(), bytes);
    let range = registry.requests()[0].header("range").unwrap().to_owned();
    let start: usize =
        range.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap();
    assert!(start > 0 && start <= 60_000, "{range}");
    assert_eq!((mirror.requests().len(), registry.requests().len()), (1, 1));
}

/// teeth: crates/registry/src/fallback.rs: `hosts.retain(|host| !distrusted.contains(host));` → ``
#[tokio::test]
async fn who_has_other_bytes_for_a_blob_is_passed_over_for_it() {
    let (bytes, digest) = blob(1000);
    let mirror = Server::start(|_| Reply::ok(vec![b'x'; 1000])).await;
    let own = bytes.clone();
    let registry = Server::start(move |_| Reply::ok(own.clone())).await;
    let root = certs_d(&registry, &host(&mirror));
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    let mut liars = Distrusted::default();
    let mut seen = Vec::new();
    while let Some(mut blob) = repository.blob_of_others(&digest, 1000, &liars).await.unwrap() {
        let mut read = Vec::new();
        while let Some(piece) = blob.next().await.unwrap() {
            read.extend_from_slice(&piece);
        }
        assert!(liars.add(&blob, digest) && !liars.add(&blob, digest));
        seen.push(read);
    }
    assert_eq!(seen, [vec![b'x'; 1000], bytes]);
    assert_eq!((mirror.requests().len(), registry.requests().len()), (1, 1));
    // It may be right about another, and is asked last.
    read(repository.blob(&digest, 1000).await.unwrap()).await.unwrap();
    assert_eq!((mirror.requests().len(), registry.requests().len()), (1, 2));
}

/// teeth: crates/registry/src/blob.rs: `self.pause(Failure::last(error)).await?;` → `return Err(error);`
#[tokio::test]
async fn who_has_more_of_a_blob_than_there_is_is_passed_over() {
    let (bytes, digest) = blob(1000);
    let mirror = Server::start(|_| Reply::ok(vec![b'x'; 1001]).chunked()).await;
    let own = bytes.clone();
    let registry = Server::start(move |_| Reply::ok(own.clone())).await;
    let root = certs_d(&registry, &host(&mirror));
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    assert_eq!(read(repository.blob(&digest, 1000).await.unwrap()).await.unwrap(), bytes);
}

#[tokio::test]
async fn what_every_host_answered_is_told() {
    let mirror = Server::start(|_| Reply::status(418)).await;
    let registry = Server::start(|_| Reply::status(404)).await;
    let dead = dead().await;
    let root = certs_d(&registry, &format!("[host.\"{dead}\"]\n{}", host(&mirror)));
    let (_, digest) = blob(10);
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    let errors =
        [repository.resolve().await.unwrap_err(), repository.blob(&digest, 10).await.unwrap_err()];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotFound, "the registry's own: {error}");
        let text = error.to_string();
        for part in [
            "none of 3 hosts",
            dead.strip_prefix("http://").unwrap(),
            "418",
            &registry.address.to_string(),
            "does not exist",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[tokio::test]
async fn a_tag_is_asked_only_of_hosts_that_resolve() {
    let mirror = Server::start(|_| Reply::manifest(BODY)).await;
    let registry = Server::start(|_| Reply::manifest(BODY)).await;
    let root = certs_d(&registry, &format!("{}capabilities = [\"pull\"]\n", host(&mirror)));
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    let found = repository.resolve().await.unwrap();
    repository.manifest(&found.digest).await.unwrap();
    assert_eq!(targets(&registry), ["/v2/a/manifests/t"]);
    assert!(targets(&mirror)[0].contains("/manifests/sha256:"), "{:?}", targets(&mirror));

    let root = certs_d(&registry, "capabilities = [\"pull\"]\n");
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    let error = repository.resolve().await.unwrap_err();
    assert!(matches!(error, Error::NoHost(_)), "{error}");
}

/// Asks for basic authentication, and takes whatever comes.
fn wants_password(request: &Request) -> Reply {
    match request.authorization() {
        None => Reply::status(401).header("www-authenticate", "Basic realm=\"x\""),
        Some(_) => Reply::manifest(BODY),
    }
}

/// teeth: crates/registry/src/auth.rs: `host.is_registry.then(|| auth.clone())` → `Some(auth.clone())`
#[tokio::test]
async fn i7_a_mirror_does_not_get_the_registrys_credentials() {
    let mirror = Server::start(wants_password).await;
    let registry = Server::start(wants_password).await;
    let root = certs_d(&registry, &host(&mirror));
    let auth = Some(password("s3cret-password"));
    client(root.path()).repository(&registry.reference("a:t"), auth).resolve().await.unwrap();
    assert!(mirror.requests().iter().all(|request| request.authorization().is_none()));
    let shown = format!("Basic {}", STANDARD.encode("user:s3cret-password"));
    assert_eq!(registry.requests()[1].authorization(), Some(shown.as_str()));
}

#[tokio::test]
async fn i7_credentials_that_name_the_mirror_go_to_the_mirror_only() {
    let mirror = Server::start(wants_password).await;
    let registry = Server::start(wants_password).await;
    let root = certs_d(&registry, &host(&mirror));
    let auth = Auth::OfHost {
        host: mirror.address.to_string(),
        auth: Box::new(password("s3cret-password")),
    };
    let repository = |reference| client(root.path()).repository(&reference, Some(auth.clone()));
    repository(registry.reference("a:t")).resolve().await.unwrap();
    assert!(mirror.requests()[1].authorization().is_some());
    assert!(registry.requests().is_empty());

    // The same credentials for an image that no mirror of that name serves.
    let other = Server::start(wants_password).await;
    let error = repository(other.reference("a:t")).resolve().await.unwrap_err();
    assert!(other.requests().iter().all(|request| request.authorization().is_none()));
    assert!(!all_of(&error).contains("s3cret-password"));
}

/// teeth: crates/registry/src/hosts/mod.rs: `match same_origin(&self.base, uri) {` → `match true {`
#[tokio::test]
async fn i7_a_hosts_headers_follow_no_redirect_and_reach_no_other_host() {
    let storage = Server::start(|_| Reply::manifest(BODY)).await;
    let to = storage.url("/there");
    let mirror = Server::start(move |_| Reply::redirect(&to)).await;
    let registry = Server::start(|_| Reply::manifest(BODY)).await;
    let port = mirror.address.port();
    let text = format!(
        "{}[host.\"http://127.0.0.1:{port}\".header]\nx-own = \"s3cret-header\"\n",
        host(&mirror)
    );
    let root = certs_d(&registry, &text);
    let repository = client(root.path()).repository(&registry.reference("a:t"), None);
    repository.resolve().await.unwrap();
    assert_eq!(mirror.requests()[0].header("x-own"), Some("s3cret-header"));
    assert_eq!(storage.requests()[0].header("x-own"), None);
}

#[tokio::test]
async fn a_path_may_replace_the_interfaces_own() {
    let mirror = Server::start(|_| Reply::manifest(BODY)).await;
    let registry = Server::start(|_| Reply::status(500)).await;
    for (path, extra, expected) in [
        ("/mirror", "", "/mirror/v2/a/manifests/t"),
        ("/mirror", "override_path = true\n", "/mirror/a/manifests/t"),
        ("/", "override_path = true\n", "/a/manifests/t"),
    ] {
        let root = certs_d(&registry, &format!("[host.\"{}\"]\n{extra}", mirror.url(path)));
        let repository = client(root.path()).repository(&registry.reference("a:t"), None);
        repository.resolve().await.unwrap();
        let last = targets(&mirror).pop().unwrap();
        assert!(last.starts_with(&format!("{expected}?ns=")), "{last}");
    }
}

#[tokio::test]
async fn a_mirror_is_trusted_by_its_own_authority_or_by_order() {
    let mirror = Server::start_tls(|_| Reply::manifest(BODY)).await;
    let registry = Server::start(|_| Reply::status(500)).await;
    let own = format!("[host.\"https://{}\"]\n", mirror.address);
    let authority = certificate().authority.display();
    for (extra, works) in [
        (String::new(), false),
        (format!("ca = '{authority}'\n"), true),
        (format!("ca = ['{authority}']\ndial_timeout = \"2s\"\n"), true),
        ("skip_verify = true\n".to_owned(), true),
        ("skip_verify = false\n".to_owned(), false),
    ] {
        let root = certs_d(&registry, &format!("{own}{extra}"));
        let client = client(root.path());
        let repository = client.repository(&registry.reference("a:t"), None);
        assert_eq!(repository.resolve().await.is_ok(), works, "{extra}");
        // One that was made before does as well.
        let again = client.repository(&registry.reference("a:t"), None);
        assert_eq!(again.resolve().await.is_ok(), works, "{extra}");
    }
}

#[tokio::test]
async fn a_mirror_is_shown_the_clients_certificate_it_asks_for() {
    let mirror = Server::start_mutual(|_| Reply::manifest(BODY)).await;
    let registry = Server::start(|_| Reply::status(500)).await;
    let made = certificate();
    let (authority, cert, key) =
        (made.authority.display(), made.certificate.display(), made.key.display());
    let own = format!("[host.\"https://{}\"]\nca = '{authority}'\n", mirror.address);
    let both = tempfile::NamedTempFile::new().unwrap();
    let text = [&made.certificate, &made.key].map(|path| fs::read_to_string(path).unwrap());
    fs::write(both.path(), text.concat()).unwrap();
    for (extra, works) in [
        (String::new(), false),
        (format!("client = [['{cert}', '{key}']]\n"), true),
        (format!("client = '{}'\n", both.path().display()), true),
    ] {
        let root = certs_d(&registry, &format!("{own}{extra}"));
        let repository = client(root.path()).repository(&registry.reference("a:t"), None);
        assert_eq!(repository.resolve().await.is_ok(), works, "{extra}");
    }
}

#[tokio::test]
async fn a_file_that_makes_no_sense_fails_the_pull_with_its_line() {
    let registry = Server::start(|_| Reply::manifest(BODY)).await;
    for (text, expected) in [
        ("\nservr = \"x\"\n", "hosts.toml:2:1: unknown key"),
        ("ca = '/no/ca.pem'\n", "/no/ca.pem"),
    ] {
        let root = certs_d(&registry, text);
        let repository = client(root.path()).repository(&registry.reference("a:t"), None);
        let error = repository.resolve().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(registry.requests().is_empty(), "it was asked past its file");
}

#[tokio::test]
async fn a_changed_file_is_read_by_the_next_pull() {
    let mirror = Server::start(|_| Reply::manifest(BODY)).await;
    let registry = Server::start(|_| Reply::manifest(BODY)).await;
    let root = certs_d(&registry, "");
    let client = client(root.path());
    let resolve = || client.repository(&registry.reference("a:t"), None);
    resolve().resolve().await.unwrap();
    assert_eq!((mirror.requests().len(), registry.requests().len()), (0, 1));
    let own = format!("127.0.0.1_{}_/hosts.toml", registry.address.port());
    fs::write(root.path().join(own), host(&mirror)).unwrap();
    resolve().resolve().await.unwrap();
    assert_eq!((mirror.requests().len(), registry.requests().len()), (1, 1));
}

/// teeth: crates/registry/src/hosts/mod.rs: `&clients.others` → `&clients.own`
#[tokio::test]
async fn i7_what_a_host_is_trusted_with_and_shown_is_not_for_where_it_leads() {
    let made = certificate();
    let (authority, cert, key) =
        (made.authority.display(), made.certificate.display(), made.key.display());
    let registry = Server::start(|_| Reply::status(500)).await;
    let unverified = Server::start_tls(|_| Reply::manifest(BODY)).await;
    let mutual = Server::start_mutual(|_| Reply::manifest(BODY)).await;
    for (there, extra) in [
        (&unverified, "skip_verify = true\n".to_owned()),
        (&mutual, format!("ca = '{authority}'\nclient = [['{cert}', '{key}']]\n")),
    ] {
        let to = format!("https://{}/there", there.address);
        let mirror = Server::start_tls(move |_| Reply::redirect(&to)).await;
        let own = format!("[host.\"https://{}\"]\n{extra}", mirror.address);
        let root = certs_d(&registry, &own);
        let repository = client(root.path()).repository(&registry.reference("a:t"), None);
        repository.resolve().await.unwrap_err();
        assert_eq!(mirror.requests().len(), 1, "{extra}: it was not asked");
        assert!(there.requests().is_empty(), "{extra}: it was asked where the mirror leads");
    }
}
