//! Rows and copies that do not agree: what a start makes of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use berth_metadata::{
    AttachmentRecord, ContainerRecord, Copies, PodStore, Pods, SandboxPhase, SandboxRecord,
};
use berth_model::container::{ContainerName, ContainerSpec, Timestamp};
use berth_model::sandbox::SandboxName;
use berth_model::{ContainerId, ContainerState, Digest, ErrorKind, SandboxId, SandboxSpec};
use tempfile::TempDir;

struct Node(TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn copies(&self) -> Copies {
        let below = |name: &str| self.0.path().join(name);
        Copies { sandboxes: below("sandboxes"), containers: below("containers") }
    }

    fn database(&self) -> PathBuf {
        self.0.path().join("pods.db")
    }

    fn open(&self) -> (PodStore, Pods) {
        PodStore::recover(&self.database(), &self.copies()).unwrap()
    }

    fn copy(&self, id: &str) -> PathBuf {
        let dirs = ["sandboxes", "containers"].map(|dir| self.0.path().join(dir).join(id));
        dirs.into_iter().find(|dir| dir.exists()).unwrap().join("record.json")
    }

    /// Puts the database back to what it is now, once `work` was done.
    fn losing(&self, work: impl FnOnce(&PodStore)) {
        let files = ["", "-wal", "-shm"].map(|suffix| {
            let path = self.0.path().join(format!("pods.db{suffix}"));
            (fs::read(&path), path)
        });
        let (store, _) = self.open();
        work(&store);
        drop(store);
        for (bytes, path) in files {
            match bytes {
                Ok(bytes) => fs::write(path, bytes).unwrap(),
                Err(_) => drop(fs::remove_file(path)),
            }
        }
    }
}

fn sandbox(id: &str) -> SandboxRecord {
    let name = SandboxName {
        name: format!("pod-{id}"),
        namespace: "default".into(),
        uid: "u".into(),
        attempt: 0,
    };
    SandboxRecord {
        limits: None,
        id: SandboxId::new(id).unwrap(),
        spec: SandboxSpec { name, ..SandboxSpec::default() },
        phase: SandboxPhase::Ready,
        created_at: Timestamp(1),
        boot_id: "boot".into(),
        runtime: "berth".into(),
        cgroup: format!("/berth/{id}"),
        owns_cgroup: true,
        shim: None,
        network: None,
    }
}

fn attached(mut sandbox: SandboxRecord, last: u8) -> SandboxRecord {
    sandbox.network = Some(AttachmentRecord {
        address: Ipv4Addr::new(10, 0, 0, last),
        prefix: 24,
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        mac: "02:00:0a:00:00:02".into(),
        host_interface: "veth".into(),
        host_index: 3,
        ports: Vec::new(),
    });
    sandbox
}

fn container(id: &str, sandbox: &str) -> ContainerRecord {
    let name = ContainerName { name: format!("name-{id}"), attempt: 0 };
    ContainerRecord {
        limits: None,
        changing: None,
        id: ContainerId::new(id).unwrap(),
        sandbox: SandboxId::new(sandbox).unwrap(),
        spec: ContainerSpec { name, ..ContainerSpec::default() },
        state: ContainerState::Created,
        created_at: Timestamp(1),
        image: Digest::of(b"config"),
        image_ref: "r.example/a:latest".into(),
        cgroup: format!("/berth/{sandbox}/{id}"),
        log_path: None,
        stop_signal: "SIGTERM".into(),
        user: (0, 0),
        groups: Vec::new(),
        chain: Vec::new(),
        volumes: Default::default(),
    }
}

fn running(mut container: ContainerRecord) -> ContainerRecord {
    container.state = ContainerState::Running { pid: 7, started_at: Timestamp(3) };
    container
}

#[test]
fn lost_rows_are_made_anew_and_old_ones_replaced() {
    let node = Node::new();
    let (store, found) = node.open();
    assert!(found.sandboxes.is_empty() && found.containers.is_empty());
    store.put_sandbox(&sandbox("a")).unwrap();
    store.put_container(&container("old", "a")).unwrap();
    drop(store);
    node.losing(|store| {
        store.put_container(&running(container("old", "a"))).unwrap();
        store.put_container(&container("lost", "a")).unwrap();
        store.put_sandbox(&attached(sandbox("b"), 9)).unwrap();
        let making = SandboxRecord { phase: SandboxPhase::Creating, ..sandbox("making") };
        store.put_sandbox(&making).unwrap();
    });
    let (store, found) = node.open();
    assert_eq!(found.sandboxes, [sandbox("a"), attached(sandbox("b"), 9)]);
    let expected = [running(container("old", "a")), container("lost", "a")];
    assert_eq!(found.containers.len(), 2);
    assert!(expected.iter().all(|container| found.containers.contains(container)));
    assert_eq!(store.containers().unwrap().len(), 2, "they are rows again");
    let leases = store.leases().unwrap();
    assert_eq!((leases.len(), leases[0].sandbox.as_str()), (1, "b"));
}

/// kubelet tries a sandbox that could not be made again under the same name.
#[test]
fn a_row_of_what_was_removed_since_takes_no_name_from_what_runs() {
    let node = Node::new();
    let named = |id: &str, created_at, name: &str| {
        let name = SandboxName { name: name.into(), ..sandbox(id).spec.name };
        let spec = SandboxSpec { name, ..SandboxSpec::default() };
        SandboxRecord { created_at: Timestamp(created_at), spec, ..sandbox(id) }
    };
    let failed = SandboxRecord { phase: SandboxPhase::Creating, ..named("failed", 1, "pod") };
    let (removed, kept) = (named("removed", 1, "other"), named("kept", 1, "kept"));
    let called = |id: &str, sandbox: &str, created_at| {
        let name = ContainerName { name: "main".into(), attempt: 0 };
        let spec = ContainerSpec { name, ..ContainerSpec::default() };
        ContainerRecord { spec, created_at: Timestamp(created_at), ..container(id, sandbox) }
    };
    let (store, _) = node.open();
    for sandbox in [&failed, &removed, &kept] {
        store.put_sandbox(sandbox).unwrap();
    }
    store.put_container(&called("in-removed", "removed", 1)).unwrap();
    store.put_container(&called("first", "kept", 1)).unwrap();
    drop(store);
    let runs = [kept.clone(), attached(named("second", 2, "pod"), 9), named("third", 3, "other")];
    let inside = [running(called("next", "kept", 2)), running(called("in-third", "third", 3))];
    node.losing(|store| {
        for gone in [&failed.id, &removed.id] {
            assert!(store.remove_sandbox(gone).unwrap());
        }
        assert!(store.remove_container(&ContainerId::new("first").unwrap()).unwrap());
        runs[1..].iter().for_each(|sandbox| store.put_sandbox(sandbox).unwrap());
        inside.iter().for_each(|container| store.put_container(container).unwrap());
    });
    for _ in 0..2 {
        let (store, found) = node.open();
        assert_eq!((&found.sandboxes[..], &found.containers[..]), (&runs[..], &inside[..]));
        assert_eq!(store.sandboxes().unwrap(), runs);
        assert_eq!(store.containers().unwrap(), inside);
    }
}

/// A version without copies removed one container and made another.
#[test]
fn a_copy_left_by_a_version_without_copies_takes_no_name_from_a_younger_row() {
    let node = Node::new();
    let name = ContainerName { name: "main".into(), attempt: 0 };
    let called = |id: &str, created_at| {
        let spec = ContainerSpec { name: name.clone(), ..ContainerSpec::default() };
        ContainerRecord { spec, created_at: Timestamp(created_at), ..container(id, "a") }
    };
    let (store, _) = node.open();
    store.put_sandbox(&sandbox("a")).unwrap();
    store.put_container(&called("old", 1)).unwrap();
    let copy = (node.copy("old"), fs::read(node.copy("old")).unwrap());
    store.remove_container(&ContainerId::new("old").unwrap()).unwrap();
    store.put_container(&called("new", 2)).unwrap();
    fs::remove_file(node.copy("new")).unwrap();
    fs::write(copy.0, copy.1).unwrap();
    drop(store);
    assert_eq!(node.open().1.containers, [called("new", 2)]);
    assert!(!node.copy("old").exists(), "nothing is left to come back");
}

#[test]
fn what_was_removed_stays_removed() {
    let node = Node::new();
    let (store, _) = node.open();
    store.put_sandbox(&sandbox("a")).unwrap();
    store.put_sandbox(&sandbox("b")).unwrap();
    store.put_container(&container("one", "a")).unwrap();
    store.put_container(&container("two", "b")).unwrap();
    assert!(store.remove_container(&ContainerId::new("one").unwrap()).unwrap());
    assert!(store.remove_sandbox(&SandboxId::new("b").unwrap()).unwrap());
    drop(store);
    fs::remove_file(node.database()).unwrap();
    let (_, found) = node.open();
    assert_eq!(found.sandboxes, [sandbox("a")]);
    assert!(found.containers.is_empty());
}

#[test]
fn a_copy_that_is_missing_or_behind_is_written_anew() {
    let node = Node::new();
    let (store, _) = node.open();
    store.put_sandbox(&sandbox("a")).unwrap();
    for id in ["gone", "behind", "torn"] {
        store.put_container(&container(id, "a")).unwrap();
    }
    let behind = fs::read(node.copy("behind")).unwrap();
    for id in ["gone", "behind", "torn"] {
        store.put_container(&running(container(id, "a"))).unwrap();
    }
    drop(store);
    fs::remove_dir_all(node.copy("gone").parent().unwrap()).unwrap();
    fs::write(node.copy("behind"), behind).unwrap();
    fs::write(node.copy("torn"), "{\"id\":\"to").unwrap();
    let (_, before) = node.open();
    fs::remove_file(node.database()).unwrap();
    let (_, found) = node.open();
    assert_eq!(found.containers.len(), 3);
    assert!(before.containers.iter().all(|container| found.containers.contains(container)));
    assert!(found.containers.iter().all(|container| container.state.name() == "running"));
}

#[test]
fn what_has_no_whole_copy_of_its_own_is_not_guessed() {
    let node = Node::new();
    let (store, _) = node.open();
    for id in ["whole", "torn", "cut", "moved", "plain"] {
        store.put_sandbox(&sandbox(id)).unwrap();
        store.put_container(&container(&format!("in-{id}"), id)).unwrap();
    }
    drop(store);
    fs::remove_file(node.database()).unwrap();
    let text = fs::read_to_string(node.copy("torn")).unwrap();
    fs::write(node.copy("torn"), text.replace("pod-torn", "pod-tron")).unwrap();
    fs::write(node.copy("cut"), &text[..text.len() / 2]).unwrap();
    fs::copy(node.copy("whole"), node.copy("moved")).unwrap();
    let plain = serde_json::to_string(&sandbox("plain")).unwrap();
    fs::write(node.copy("plain"), plain).unwrap();
    let (store, found) = node.open();
    assert_eq!(found.sandboxes, [sandbox("whole")]);
    assert_eq!(found.containers, [container("in-whole", "whole")]);
    assert_eq!(store.sandboxes().unwrap().len(), 1);
}

#[test]
fn an_address_that_two_claim_belongs_to_the_ready_one() {
    let node = Node::new();
    let (store, _) = node.open();
    let stopped = attached(sandbox("stopped"), 9);
    let stopped = SandboxRecord { phase: SandboxPhase::NotReady, ..stopped };
    store.put_sandbox(&stopped).unwrap();
    let range = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 9));
    store.lease_address(&stopped.id, range.0, range.1).unwrap();
    let ready = attached(sandbox("ready"), 9);
    store.put_sandbox(&ready).unwrap();
    drop(store);
    let (store, found) = node.open();
    let leases = store.leases().unwrap();
    assert_eq!((leases.len(), leases[0].sandbox.as_str()), (1, "ready"));
    for record in found.sandboxes {
        assert_eq!(record.network.is_some(), record.id == ready.id, "{}", record.id);
    }
}

#[test]
fn a_container_that_cannot_be_copied_is_not_made() {
    let node = Node::new();
    let (store, _) = node.open();
    store.put_sandbox(&sandbox("a")).unwrap();
    fs::create_dir_all(node.0.path().join("containers/c/record.json")).unwrap();
    let error = store.put_container(&container("c", "a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("record.json"), "{error}");
    assert!(store.containers().unwrap().is_empty());
    fs::remove_dir(node.0.path().join("containers/c/record.json")).unwrap();
    store.put_container(&container("c", "a")).unwrap();
}
