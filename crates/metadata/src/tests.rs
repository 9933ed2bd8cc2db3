//! What both stores promise, on real files.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use berth_model::container::{ContainerName, ContainerSpec, Timestamp};
use berth_model::image::ImageRecord;
use berth_model::sandbox::SandboxName;
use berth_model::{
    ChainId, ContainerId, ContainerState, Digest, ErrorKind, SandboxId, SandboxSpec,
};
use tempfile::TempDir;

use crate::*;

fn image(config: &str, tags: &[&str]) -> ImageRecord {
    ImageRecord {
        id: Digest::of(config.as_bytes()),
        tags: tags.iter().map(ToString::to_string).collect(),
        digests: vec![format!("r.example/{config}@{}", Digest::of(b"manifest"))],
        manifest: Digest::of(b"manifest"),
        blobs: vec![Digest::of(b"layer")],
        chain: vec![ChainId(Digest::of(b"diff"))],
        size: 7,
        user: "nobody".into(),
        pulled_at: Timestamp(5),
    }
}

fn sandbox(id: &str, attempt: u32) -> SandboxRecord {
    SandboxRecord {
        limits: None,
        id: SandboxId::new(id).unwrap(),
        spec: SandboxSpec {
            name: SandboxName {
                name: "pod".into(),
                namespace: "default".into(),
                uid: "u".into(),
                attempt,
            },
            ..SandboxSpec::default()
        },
        phase: SandboxPhase::Creating,
        created_at: Timestamp(i64::from(attempt)),
        boot_id: "boot".into(),
        runtime: "berth".into(),
        cgroup: format!("/berth/{id}"),
        owns_cgroup: true,
        shim: None,
        network: None,
    }
}

fn container(id: &str, sandbox: &str, name: &str) -> ContainerRecord {
    ContainerRecord {
        limits: None,
        changing: None,
        id: ContainerId::new(id).unwrap(),
        sandbox: SandboxId::new(sandbox).unwrap(),
        spec: ContainerSpec {
            name: ContainerName { name: name.into(), attempt: 0 },
            ..ContainerSpec::default()
        },
        state: ContainerState::Created,
        created_at: Timestamp(1),
        image: Digest::of(b"config"),
        image_ref: "r.example/a:latest".into(),
        cgroup: format!("/berth/{sandbox}/{id}"),
        log_path: Some(PathBuf::from("/var/log/pods/a.log")),
        stop_signal: "SIGTERM".into(),
        user: (0, 0),
        groups: vec![1],
        chain: Vec::new(),
        volumes: Default::default(),
    }
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store.db")
    }

    fn images(&self) -> ImageStore {
        ImageStore::open(&self.path()).unwrap()
    }

    fn pods(&self) -> PodStore {
        PodStore::open(&self.path()).unwrap()
    }
}

fn overwrite_pages(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    assert!(bytes.len() > 8192, "there is more than the first page to damage");
    for byte in &mut bytes[4096..] {
        *byte = 0xa5;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_stored_is_there_after_a_reopen() {
    let files = Files::new();
    let stored = image("a", &["r.example/a:latest"]);
    let snapshot = SnapshotRecord {
        chain: ChainId(Digest::of(b"two")),
        parent: Some(ChainId(Digest::of(b"one"))),
        bytes: 4096,
        inodes: 3,
        dir: "committed/two".into(),
    };
    {
        let store = files.images();
        store.put_image(&stored).unwrap();
        store.put_snapshot(&snapshot).unwrap();
        store.put_blob(&Digest::of(b"layer"), 9).unwrap();
    }
    let store = files.images();
    assert_eq!(store.images().unwrap(), vec![stored.clone()]);
    assert_eq!(store.image_by_id(&stored.id).unwrap(), Some(stored.clone()));
    assert_eq!(store.image_by_tag(&stored.digests[0]).unwrap(), Some(stored));
    assert_eq!(store.snapshots().unwrap(), vec![snapshot.clone()]);
    assert_eq!(store.snapshot(&snapshot.chain).unwrap(), Some(snapshot.clone()));
    assert_eq!(store.blob(&Digest::of(b"layer")).unwrap().map(|blob| blob.size), Some(9));
}

/// teeth: crates/metadata/src/images.rs: `images.into_iter().chain(chains).chain(blobs)` → `images.into_iter().chain(chains)`
#[test]
fn an_image_and_hundreds_of_its_layers_and_blobs_are_forgotten_and_no_others() {
    let files = Files::new();
    let store = files.images();
    let (gone, kept) = (image("a", &["r.example/a:1"]), image("b", &["r.example/b:1"]));
    let digests: Vec<_> = (0..200).map(|n: u32| Digest::of(&n.to_le_bytes())).collect();
    let chains: Vec<_> = digests.iter().copied().map(ChainId).collect();
    store.put_image(&gone).unwrap();
    store.put_image(&kept).unwrap();
    for chain in &chains {
        let (parent, dir) = (None, format!("committed/{}", chain.0));
        let snapshot = SnapshotRecord { chain: *chain, parent, bytes: 1, inodes: 1, dir };
        store.put_snapshot(&snapshot).unwrap();
        store.put_blob(&chain.0, 9).unwrap();
    }
    store.forget(Some(&gone.id), &chains[1..], &digests[..199]).unwrap();
    assert_eq!(store.images().unwrap(), [kept]);
    let layers: Vec<_> = store.snapshots().unwrap().into_iter().map(|row| row.chain).collect();
    assert_eq!(layers, chains[..1]);
    let blobs: Vec<_> = store.blobs().unwrap().into_iter().map(|row| row.digest).collect();
    assert_eq!(blobs, digests[199..]);
    // What is forgotten already is none the worse for it.
    store.forget(Some(&gone.id), &chains, &digests).unwrap();
    assert!(store.snapshots().unwrap().is_empty() && store.blobs().unwrap().is_empty());
}

#[test]
fn a_tag_belongs_to_the_image_that_took_it_last() {
    let files = Files::new();
    let store = files.images();
    let (old, new) =
        (image("old", &["r.example/a:1", "r.example/a:2"]), image("new", &["r.example/a:1"]));
    store.put_image(&old).unwrap();
    store.put_image(&new).unwrap();
    assert_eq!(store.image_by_tag("r.example/a:1").unwrap().map(|image| image.id), Some(new.id));
    let left = store.image_by_id(&old.id).unwrap().unwrap();
    assert_eq!(left.tags, ["r.example/a:2"]);
    assert!(store.untag("r.example/a:2").unwrap());
    assert!(store.image_by_id(&old.id).unwrap().unwrap().tags.is_empty());
}

#[test]
fn names_of_two_pulls_of_one_image_add_up() {
    let files = Files::new();
    let store = files.images();
    store.put_image(&image("a", &["r.example/a:1"])).unwrap();
    store.put_image(&image("a", &["r.example/a:2"])).unwrap();
    let found = store.images().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].tags, ["r.example/a:1", "r.example/a:2"]);
}

#[test]
fn removing_an_image_removes_its_names() {
    let files = Files::new();
    let store = files.images();
    let stored = image("a", &["r.example/a:1"]);
    store.put_image(&stored).unwrap();
    assert_eq!(store.remove_image(&stored.id).unwrap(), Some(stored.clone()));
    assert_eq!(store.image_by_tag("r.example/a:1").unwrap(), None);
    assert_eq!(store.remove_image(&stored.id).unwrap(), None);
}

#[test]
fn sandboxes_and_containers_survive_a_reopen() {
    let files = Files::new();
    let mut ready = sandbox("s1", 0);
    let running = container("c1", "s1", "main");
    {
        let store = files.pods();
        store.put_sandbox(&ready).unwrap();
        ready.phase = SandboxPhase::Ready;
        ready.shim = Some(ShimRecord {
            address: "unix:///run/a".into(),
            version: 3,
            pid: 5,
            started_ticks: 6,
        });
        store.put_sandbox(&ready).unwrap();
        store.put_container(&running).unwrap();
    }
    let store = files.pods();
    assert_eq!(store.sandboxes().unwrap(), vec![ready.clone()]);
    assert_eq!(store.containers().unwrap(), vec![running]);
    assert!(store.remove_sandbox(&ready.id).unwrap());
    assert!(store.containers().unwrap().is_empty());
    assert!(!store.remove_sandbox(&ready.id).unwrap());
}

#[test]
fn a_second_object_cannot_take_a_name() {
    let files = Files::new();
    let store = files.pods();
    store.put_sandbox(&sandbox("s1", 0)).unwrap();
    let error = store.put_sandbox(&sandbox("s2", 0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    store.put_sandbox(&sandbox("s2", 1)).unwrap();
    store.put_container(&container("c1", "s1", "main")).unwrap();
    let error = store.put_container(&container("c2", "s1", "main")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    store.put_container(&container("c2", "s2", "main")).unwrap();
}

#[test]
fn a_container_needs_its_sandbox() {
    let files = Files::new();
    assert!(files.pods().put_container(&container("c1", "gone", "main")).is_err());
}

#[test]
fn an_address_has_one_owner_until_it_is_released() {
    let files = Files::new();
    let (first, last) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 4));
    let owner = |n: u32| SandboxId::new(format!("s{n}")).unwrap();
    let store = files.pods();
    let leased: Vec<_> =
        (0..3).map(|n| store.lease_address(&owner(n), first, last).unwrap()).collect();
    assert_eq!(leased, [first, Ipv4Addr::new(10, 0, 0, 3), last]);
    let full = store.lease_address(&owner(9), first, last).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::ResourceExhausted, "{full}");

    drop(store);
    let store = files.pods();
    assert_eq!(store.leases().unwrap().len(), 3, "leases survive a restart");
    assert!(!store.release_address(&owner(0), leased[1]).unwrap(), "it is another's");
    assert!(store.release_address(&owner(1), leased[1]).unwrap());
    assert!(!store.release_address(&owner(1), leased[1]).unwrap());
    assert_eq!(store.lease_address(&owner(9), first, last).unwrap(), leased[1]);
    assert_eq!(store.release_sandbox(&owner(0)).unwrap(), 1);
    let left: Vec<_> = store.leases().unwrap().into_iter().map(|lease| lease.sandbox).collect();
    assert_eq!(left, [owner(9), owner(2)]);
}

#[test]
fn an_address_given_back_rests_while_others_are_free() {
    let files = Files::new();
    let (first, last) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 9));
    let owner = SandboxId::new("s").unwrap();
    let store = files.pods();
    let one = store.lease_address(&owner, first, last).unwrap();
    store.release_address(&owner, one).unwrap();
    assert_ne!(store.lease_address(&owner, first, last).unwrap(), one);
}

#[test]
fn a_newer_file_is_refused_and_left_as_it_is() {
    let files = Files::new();
    drop(files.pods());
    let sql = rusqlite::Connection::open(files.path()).unwrap();
    sql.pragma_update(None, "user_version", 99).unwrap();
    sql.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).unwrap();
    drop(sql);
    let before = fs::read(files.path()).unwrap();
    let error = PodStore::open(&files.path()).unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 99, known: 1, .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert_eq!(fs::read(files.path()).unwrap(), before);
}

#[test]
fn a_damaged_file_is_a_typed_error() {
    let files = Files::new();
    fs::write(files.path(), vec![b'x'; 20_000]).unwrap();
    let error = ImageStore::open(&files.path()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
}

#[test]
fn overwritten_pages_are_found_when_the_file_is_opened() {
    let files = Files::new();
    {
        let store = files.pods();
        for n in 0..50 {
            store.put_sandbox(&sandbox(&format!("s{n}"), n)).unwrap();
        }
    }
    overwrite_pages(&files.path());
    let error = PodStore::open(&files.path()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[test]
fn statistics_that_an_operator_had_taken_are_no_damage() {
    let files = Files::new();
    files.pods().put_sandbox(&sandbox("s1", 0)).unwrap();
    rusqlite::Connection::open(files.path()).unwrap().execute_batch("ANALYZE").unwrap();
    assert_eq!(files.pods().sandboxes().unwrap(), vec![sandbox("s1", 0)]);
}

#[test]
fn a_record_nobody_wrote_is_named() {
    let files = Files::new();
    let store = files.pods();
    store.put_sandbox(&sandbox("s1", 0)).unwrap();
    let sql = rusqlite::Connection::open(files.path()).unwrap();
    sql.execute("UPDATE sandboxes SET record = '{}'", []).unwrap();
    let error = store.sandboxes().unwrap_err();
    assert!(matches!(&error, Error::Record { key, .. } if key == "s1"), "{error:?}");
}

#[test]
fn a_full_disk_is_said_so() {
    let files = Files::new();
    let store = files.pods();
    store.put_sandbox(&sandbox("s0", 0)).unwrap();
    store.limit_pages_for_test(4);
    let mut filled = None;
    for n in 1..200 {
        if let Err(error) = store.put_sandbox(&sandbox(&format!("s{n}"), n)) {
            filled = Some(error);
            break;
        }
    }
    let error = filled.expect("a store of four pages fills up");
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(!store.sandboxes().unwrap().is_empty(), "reading goes on");
}

/// A database whose last change by rollback journal was interrupted: `-journal` holds what
/// must be put back.
fn interrupt(path: &Path) {
    let mut sql = rusqlite::Connection::open(path).unwrap();
    sql.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).unwrap();
    sql.pragma_update(None, "cache_size", 1).unwrap();
    let change = sql.transaction().unwrap();
    // More than the cache holds, so that the file is written before the commit.
    change.execute_batch("CREATE TABLE filler (x); CREATE INDEX other ON filler (x)").unwrap();
    for _ in 0..50 {
        change.execute("INSERT INTO filler VALUES (randomblob(5000))", []).unwrap();
    }
    let journal = path.with_file_name("store.db-journal");
    let left = [path, &journal].map(|file| fs::read(file).unwrap());
    drop(change);
    drop(sql);
    fs::write(path, &left[0]).unwrap();
    fs::write(journal, &left[1]).unwrap();
}

/// teeth: crates/metadata/src/database.rs: `== Some(ErrorCode::ReadOnly)` → `== None`
#[test]
fn a_file_whose_making_was_interrupted_is_opened() {
    let files = Files::new();
    files.pods().put_sandbox(&sandbox("s1", 0)).unwrap();
    interrupt(&files.path());
    assert_eq!(files.pods().sandboxes().unwrap(), vec![sandbox("s1", 0)]);
    assert!(!files.dir.path().join("store.db-journal").exists());
}

#[test]
fn a_newer_file_whose_last_change_was_interrupted_is_refused() {
    let files = Files::new();
    drop(files.pods());
    let sql = rusqlite::Connection::open(files.path()).unwrap();
    sql.pragma_update(None, "user_version", 99).unwrap();
    drop(sql);
    interrupt(&files.path());
    let error = PodStore::open(&files.path()).unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 99, .. }), "{error:?}");
}
