//! A registry for tests: says what it has, counts what it is asked for, and waits or lies
//! when told to.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use berth_model::Digest;
use berth_registry::MediaType;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::tar::build::Tar;

pub(super) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(super) const PLAIN: &str = "application/vnd.docker.image.rootfs.diff.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

#[derive(Debug, Default)]
struct Shared {
    /// What is served, by path.
    files: Mutex<HashMap<String, (String, Vec<u8>)>>,
    /// Every request, in order.
    asked: Mutex<Vec<String>>,
    /// While true, blobs are not answered.
    held: Mutex<bool>,
    released: Condvar,
}

#[derive(Clone, Debug)]
pub(super) struct Registry {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Registry {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        // Lives as long as the test's process; so do its connections.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = own.clone();
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Self { address, shared }
    }

    pub(super) fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.put_lie(digest, bytes);
        digest
    }

    /// Serves `bytes` as the blob `digest`, whatever they are.
    pub(super) fn put_lie(&self, digest: Digest, bytes: &[u8]) {
        self.put(format!("/v2/r/blobs/{digest}"), "application/octet-stream", bytes);
    }

    /// Serves a manifest or index by its digest, and by `tag` if it is not empty.
    pub(super) fn put_manifest(&self, tag: &str, media_type: &str, document: &Value) -> Digest {
        let bytes = serde_json::to_vec(document).unwrap();
        let digest = Digest::of(&bytes);
        for name in [tag.to_owned(), digest.to_string()] {
            self.put(format!("/v2/r/manifests/{name}"), media_type, &bytes);
        }
        digest
    }

    fn put(&self, path: String, media_type: &str, bytes: &[u8]) {
        let served = (media_type.to_owned(), bytes.to_vec());
        self.shared.files.lock().unwrap().insert(path, served);
    }

    /// Requests since the last call, those for blobs and those for manifests.
    pub(super) fn asked(&self) -> (usize, usize) {
        let asked = std::mem::take(&mut *self.shared.asked.lock().unwrap());
        let count = |part| asked.iter().filter(|path| path.contains(part)).count();
        (count("/blobs/"), count("/manifests/"))
    }

    pub(super) fn hold(&self) {
        *self.shared.held.lock().unwrap() = true;
    }

    pub(super) fn release(&self) {
        *self.shared.held.lock().unwrap() = false;
        self.shared.released.notify_all();
    }
}

fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        let mut words = line.split_whitespace();
        let (method, path) =
            (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
        loop {
            line.clear();
            match reader.read_line(&mut line) {
                Ok(read) if read > 0 && line != "\r\n" => {}
                _ => break,
            }
        }
        line.clear();
        // A mirror is told whose images it is asked for.
        let path = path.split_once('?').map_or(path.clone(), |(path, _)| path.to_owned());
        shared.asked.lock().unwrap().push(path.clone());
        if path.contains("/blobs/") {
            let held = shared.held.lock().unwrap();
            drop(shared.released.wait_while(held, |held| *held).unwrap());
        }
        let found = shared.files.lock().unwrap().get(&path).cloned();
        let (status, (media_type, bytes)) = match found {
            Some(found) => ("200 OK", found),
            None => ("404 Not Found", ("application/json".to_owned(), b"{}".to_vec())),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        let body = if method == "HEAD" { &b""[..] } else { &bytes };
        let mut writer = stream;
        if writer.write_all(&[head.as_bytes(), body].concat()).is_err() {
            return;
        }
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer as it is served.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) media_type: &'static str,
    pub(super) blob: Vec<u8>,
    pub(super) diff_id: Digest,
}

impl Layer {
    pub(super) fn gzip(tar: Tar) -> Self {
        let plain = tar.finish();
        Self { media_type: GZIP, blob: gzip(&plain), diff_id: Digest::of(&plain) }
    }

    pub(super) fn plain(tar: Tar) -> Self {
        let blob = tar.finish();
        Self { media_type: PLAIN, diff_id: Digest::of(&blob), blob }
    }

    /// One file.
    pub(super) fn of(name: &str, content: &str) -> Self {
        Self::gzip(Tar::new().file(name, content.as_bytes()))
    }
}

/// A manifest with everything it names, for tests to bend before it is served.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) manifest: Value,
    pub(super) id: Digest,
}

impl Image {
    /// Puts config and layers into `registry`.
    pub(super) fn put(registry: &Registry, layers: &[Layer], note: &str) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"User": "1000:1000", "Env": [format!("NOTE={note}")]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let id = registry.put_blob(&config);
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                let digest = registry.put_blob(&layer.blob);
                descriptor(layer.media_type, digest, layer.blob.len())
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "config": descriptor(CONFIG, id, config.len()),
            "layers": descriptors,
        });
        Self { manifest, id }
    }

    /// Serves the manifest as `tag`.
    pub(super) fn tag(&self, registry: &Registry, tag: &str) -> Digest {
        registry.put_manifest(tag, MediaType::OciManifest.as_str(), &self.manifest)
    }

    pub(super) fn descriptor(&self) -> Value {
        let bytes = serde_json::to_vec(&self.manifest).unwrap();
        descriptor(MediaType::OciManifest.as_str(), Digest::of(&bytes), bytes.len())
    }
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

pub(super) fn index(manifests: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciIndex.as_str(),
        "manifests": manifests,
    })
}

pub(super) fn for_platform(mut descriptor: Value, architecture: &str, variant: &str) -> Value {
    let mut platform = json!({"os": "linux", "architecture": architecture});
    if !variant.is_empty() {
        platform["variant"] = variant.into();
    }
    descriptor["platform"] = platform;
    descriptor
}
