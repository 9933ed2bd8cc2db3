//! A runtime that has whatever pods and containers a test says.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_nri::api::{Container, ContainerEviction, ContainerUpdate, PodSandbox};
use berth_nri::{Answer, Config, Nri, Runtime, Snapshot};

/// What a runtime has, and was asked.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) snapshot: Mutex<Snapshot>,
    pub(crate) updates: Mutex<Vec<ContainerUpdate>>,
    pub(crate) evictions: Mutex<Vec<ContainerEviction>>,
}

impl Runtime for Node {
    fn snapshot(&self) -> Answer<'_, Snapshot> {
        Box::pin(async { self.snapshot.lock().unwrap().clone() })
    }

    fn update(
        &self,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Answer<'_, Vec<ContainerUpdate>> {
        let unknown = updates.iter().filter(|update| update.container_id == "unknown");
        let failed = unknown.cloned().collect();
        self.updates.lock().unwrap().extend(updates);
        self.evictions.lock().unwrap().extend(evictions);
        Box::pin(async { failed })
    }
}

pub(crate) struct Test {
    pub(crate) nri: Nri,
    pub(crate) node: Arc<Node>,
    pub(crate) socket: PathBuf,
    _dir: tempfile::TempDir,
}

pub(crate) fn config(dir: &std::path::Path) -> Config {
    Config {
        socket: Some(dir.join("nri.sock")),
        plugins: dir.join("plugins"),
        configurations: dir.join("conf.d"),
        registration_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(2),
        runtime: ("berth".into(), "1.2.3".into()),
    }
}

pub(crate) async fn start() -> Test {
    start_with(|config| config).await
}

pub(crate) async fn start_with(change: impl Fn(Config) -> Config) -> Test {
    let dir = tempfile::tempdir().unwrap();
    let config = change(config(dir.path()));
    let socket = config.socket.clone().unwrap();
    let (nri, node) = (Nri::new(config), Arc::new(Node::default()));
    nri.start(node.clone()).await.unwrap();
    Test { nri, node, socket, _dir: dir }
}

pub(crate) fn pod(id: &str) -> PodSandbox {
    PodSandbox { id: id.into(), name: format!("{id}-name"), ..PodSandbox::default() }
}

pub(crate) fn container(id: &str) -> Container {
    Container { id: id.into(), pod_sandbox_id: "pod".into(), ..Container::default() }
}
