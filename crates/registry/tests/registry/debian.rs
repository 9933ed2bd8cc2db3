//! Against the registry that Debian packages (distribution 2.8).

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use berth_model::{Digest, ErrorKind, Reference};
use berth_registry::MediaType;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::client::legacy::Client as Http;
use hyper_util::rt::TokioExecutor;

use crate::support::{blob, client};

const PROGRAM: &str = "/usr/bin/docker-registry";

/// Killed and waited for when it is dropped.
struct Registry {
    process: Child,
    address: SocketAddr,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Registry {
    fn start(directory: &Path) -> Self {
        let config = directory.join("config.yml");
        let storage = directory.join("storage");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n  secret: test\n",
                storage.display()
            ),
        )
        .unwrap();
        let mut process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let after = line.split("listening on ").nth(1)?;
                after.split(['"', ',']).next()?.trim().parse().ok()
            })
            .expect("the registry says where it listens");
        // Its log must not fill the pipe and stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }

    async fn push(&self, method: Method, path: &str, media_type: &str, body: Vec<u8>) -> String {
        let uri = match path.starts_with("http") {
            true => path.to_owned(),
            false => format!("http://{}/v2/{path}", self.address),
        };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", media_type)
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let response = Http::builder(TokioExecutor::new()).build_http().request(request).await;
        let response = response.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        assert_ne!(response.status(), StatusCode::OK, "something was made");
        response.headers()["location"].to_str().unwrap().to_owned()
    }

    async fn push_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let upload = self.push(Method::POST, "a/b/blobs/uploads/", "text/plain", Vec::new()).await;
        let upload = format!("{upload}&digest={digest}");
        self.push(Method::PUT, &upload, "application/octet-stream", bytes.to_vec()).await;
        digest
    }
}

#[tokio::test]
async fn an_image_is_resolved_and_read_from_debians_registry() {
    if !Path::new(PROGRAM).exists() {
        eprintln!("skipped: needs {PROGRAM} (package docker-registry)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start(directory.path());
    let (layer, _) = blob(3_000_000);
    let (layer_digest, config) =
        (registry.push_blob(&layer).await, registry.push_blob(b"{}").await);
    let media_type = MediaType::OciManifest.as_str();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":{}}}]}}"#,
        layer.len()
    );
    registry.push(Method::PUT, "a/b/manifests/t", media_type, manifest.clone().into()).await;

    let reference =
        |tail: &str| -> Reference { format!("{}/a/b{tail}", registry.address).parse().unwrap() };
    let repository = client().repository(&reference(":t"), None);
    let resolved = repository.resolve().await.unwrap();
    assert_eq!(
        (resolved.media_type, &*resolved.bytes),
        (MediaType::OciManifest, manifest.as_bytes())
    );
    assert_eq!(repository.manifest(&resolved.digest).await.unwrap(), resolved);

    let mut blob =
        repository.blob(&layer_digest, u64::try_from(layer.len()).unwrap()).await.unwrap();
    let mut found = Vec::new();
    while let Some(piece) = blob.next().await.unwrap() {
        found.extend_from_slice(&piece);
    }
    assert_eq!(Digest::of(&found), layer_digest);

    let absent = client().repository(&reference(":absent"), None).resolve().await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound, "{absent}");
    let absent = repository.blob(&Digest::of(b"absent"), 6).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound, "{absent}");
}
