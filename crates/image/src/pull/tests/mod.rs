//! Pulls from a registry in this process.

mod documents;
mod failing;
mod full_disk;
mod joining;
mod mending;
mod pulling;
mod registry;
mod removing;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_content::Content;
use berth_metadata::ImageStore;
use berth_model::image::ImageRecord;
use berth_model::{ChainId, Digest, Reference};
use berth_registry::Client;
use berth_snapshot::Snapshots;
use tempfile::TempDir;

use crate::{Config, Error, Images, Platform, Recovered};
use registry::Registry;

/// Whether this process is root; says so when it is not.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A store of its own and a registry to pull from.
pub(super) struct Node {
    directory: TempDir,
    registry: Registry,
    pub(super) images: Images,
    /// What containers use, or why that is not known.
    in_use: Arc<Mutex<Result<HashSet<ChainId>, &'static str>>>,
}

fn config() -> Config {
    Config {
        platform: Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variants: vec![String::new(), "v1".to_owned()],
        },
        orphan_grace: Duration::from_millis(100),
        ..Config::default()
    }
}

fn open(root: &Path, config: Config) -> Images {
    Images::new(
        ImageStore::recover(&root.join("images.db")).unwrap(),
        Content::open(root.join("content")).unwrap(),
        Snapshots::open(&root.join("snapshots")).unwrap(),
        Client::new(berth_registry::Config {
            hosts: Some(root.join("certs.d")),
            ..berth_registry::Config::default()
        })
        .unwrap(),
        config,
    )
}

impl Node {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    /// With the grace that a daemon gives.
    pub(super) fn as_configured() -> Self {
        Self::with(Config { orphan_grace: Config::default().orphan_grace, ..config() })
    }

    fn with(config: Config) -> Self {
        Self::at(config, |_| {})
    }

    /// A node whose directory `prepare` is shown before anything is in it.
    fn at(config: Config, prepare: impl FnOnce(&Path)) -> Self {
        let directory = TempDir::new().unwrap();
        prepare(directory.path());
        let images = open(directory.path(), config);
        let in_use = Arc::new(Mutex::new(Ok(HashSet::new())));
        let node = Self { directory, registry: Registry::start(), images, in_use };
        node.watch_use();
        node
    }

    /// Has `mirror` asked before the registry.
    fn mirrored_by(&self, mirror: &Registry) {
        let certs = self.directory.path().join("certs.d");
        let own = certs.join(format!("127.0.0.1_{}_", self.registry.address.port()));
        fs::create_dir_all(&own).unwrap();
        let text = format!("[host.\"http://{}\"]\n", mirror.address);
        fs::write(own.join("hosts.toml"), text).unwrap();
    }

    fn watch_use(&self) {
        let in_use = self.in_use.clone();
        let told = move || in_use.lock().unwrap().clone().map_err(Into::into);
        assert!(self.images.0.in_use.set(Box::new(told)).is_ok());
    }

    /// The same directories, as a daemon finds them after its start.
    fn restart(&mut self) {
        self.images = open(self.directory.path(), config());
        self.watch_use();
    }

    /// Recovers while containers use `in_use`.
    async fn recover(&self, in_use: &[ChainId]) -> Recovered {
        *self.in_use.lock().unwrap() = Ok(in_use.iter().copied().collect());
        let recovered = self.images.recover(|| unreachable!("it is known already")).await;
        self.images.cleaned().await;
        recovered.unwrap()
    }

    pub(super) fn reference(&self, suffix: &str) -> Reference {
        format!("{}/r{suffix}", self.registry.address).parse().unwrap()
    }

    async fn pull(&self, suffix: &str) -> Result<ImageRecord, Error> {
        self.images.pull(&self.reference(suffix), None).await
    }

    /// Why pulling fails, as the pull itself said it.
    async fn failure(&self, suffix: &str) -> std::sync::Arc<Error> {
        match self.pull(suffix).await.unwrap_err() {
            Error::Shared(error) => error,
            other => panic!("not shared: {other}"),
        }
    }

    async fn remove(&self, name: &str, in_use: &[ChainId]) {
        *self.in_use.lock().unwrap() = Ok(in_use.iter().copied().collect());
        self.images.remove(name).await.unwrap();
        self.images.cleaned().await;
    }

    /// Reads a file of the image's merged layers.
    fn read(&self, image: &ImageRecord, path: &str) -> Option<String> {
        let view = self.images.snapshots().view(&image.chain).unwrap();
        let content = view.read_file(Path::new(path), 1 << 20).unwrap()?;
        Some(String::from_utf8(content).unwrap())
    }

    fn entries(&self, below: &str) -> usize {
        fs::read_dir(self.directory.path().join(below)).unwrap().count()
    }

    /// The file of a blob.
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.directory.path().join("content/blobs/sha256").join(digest.hex())
    }

    /// The directory of a committed layer.
    fn layer(&self, chain: &ChainId) -> PathBuf {
        let committed = self.directory.path().join("snapshots/committed");
        committed.join(fs::read_link(committed.join(chain.0.hex())).unwrap())
    }

    fn blobs(&self) -> usize {
        self.entries("content/blobs/sha256")
    }

    /// Nothing half-done is left.
    #[track_caller]
    fn assert_settled(&self) {
        for place in ["snapshots/ingest", "snapshots/trash", "content/ingest"] {
            assert_eq!(self.entries(place), 0, "{place}");
        }
        assert_eq!(self.entries("snapshots/l"), self.entries("snapshots/committed"));
    }
}
