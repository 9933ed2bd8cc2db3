//! What the worker commits, and what must then be there.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use berth_metadata::{
    BlobRecord, ContainerRecord, Copies, Error, ImageStore, Lease, PodStore, SandboxPhase,
    SandboxRecord, SnapshotRecord,
};
use berth_model::container::{ContainerName, ContainerSpec, Timestamp};
use berth_model::image::ImageRecord;
use berth_model::sandbox::SandboxName;
use berth_model::{ChainId, ContainerId, ContainerState, Digest, SandboxId, SandboxSpec};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LAST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// Bytes of a large record: written four times it fills the log until SQLite writes that
/// back (1,000 pages).
const LARGE: usize = 1 << 20;

/// One commit.
#[derive(Clone, Debug)]
enum Step {
    /// The store is opened, having been closed if it was open.
    Open,
    /// The log is written back, as an operator may have it at any time.
    Checkpoint,
    PutSandbox(Box<SandboxRecord>),
    RemoveSandbox(SandboxId),
    PutContainer(Box<ContainerRecord>),
    RemoveContainer(ContainerId),
    Lease(SandboxId),
    Release(SandboxId),
    PutImage(Box<ImageRecord>),
    RemoveImage(Digest),
    /// An image, with a layer and the blob of the same digest.
    Forget(Digest, Digest),
    PutBlobs(Vec<BlobRecord>),
    PutSnapshot(SnapshotRecord),
}

/// All that a store holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    sandboxes: Vec<SandboxRecord>,
    containers: Vec<ContainerRecord>,
    leases: Vec<Lease>,
    images: Vec<ImageRecord>,
    blobs: Vec<BlobRecord>,
    snapshots: Vec<SnapshotRecord>,
}

#[derive(Debug)]
enum Store {
    Pods(PodStore),
    Images(ImageStore),
}

/// A sequence of commits.
pub(crate) struct Script {
    pub(crate) name: &'static str,
    pub(crate) pods: bool,
    /// It is for what happens when the log is full; each call of it is like many others.
    pub(crate) large: bool,
    steps: Vec<Step>,
}

impl Script {
    pub(crate) fn all() -> [Self; 4] {
        ["pods", "pods-large", "images", "images-large"].map(Self::named)
    }

    pub(crate) fn named(name: &str) -> Self {
        match name {
            "pods" => Self { name: "pods", pods: true, large: false, steps: pods() },
            "pods-large" => {
                Self { name: "pods-large", pods: true, large: true, steps: large_pods() }
            }
            "images" => Self { name: "images", pods: false, large: false, steps: images() },
            "images-large" => {
                Self { name: "images-large", pods: false, large: true, steps: large_images() }
            }
            other => panic!("no script {other}"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Commits every step, telling of each; each is tried twice.
    pub(crate) fn perform(&self, path: &Path) {
        let mut store = None;
        for (number, step) in self.steps.iter().enumerate() {
            let tried = self.attempt(step, &mut store, path).or_else(|error| {
                tell(&error);
                self.attempt(step, &mut store, path)
            });
            if let Err(error) = tried {
                tell(&error);
                return;
            }
            println!("ok {number}");
            // A process sees what it has stored.
            let Some(open) = store.as_ref().filter(|_| number + 1 == self.len() || !self.large)
            else {
                continue;
            };
            let seen = open.state().or_else(|error| {
                tell(&error);
                open.state()
            });
            match seen {
                Ok(seen) => assert_eq!(seen, self.state(number + 1), "after step {number}"),
                Err(error) => return tell(&error),
            }
        }
        drop(store);
        println!("done");
    }

    /// Commits what is left of the script after `done` steps, undisturbed.
    pub(crate) fn finish(&self, path: &Path, done: usize) {
        let mut store = Some(self.open(path).unwrap());
        for step in self.steps.iter().skip(done) {
            self.attempt(step, &mut store, path).unwrap();
        }
    }

    /// What the file holds.
    pub(crate) fn read(&self, path: &Path) -> Result<State, Error> {
        self.open(path)?.state()
    }

    /// What there must be after `done` steps.
    pub(crate) fn state(&self, done: usize) -> State {
        let mut state = State::default();
        self.steps.iter().take(done).for_each(|step| state.apply(step));
        state
    }

    /// As berthd opens it: what is taken for damaged is set aside. Images are lost so, and
    /// pods made anew from their copies, which must not be needed for anything here.
    fn open(&self, path: &Path) -> Result<Store, Error> {
        Ok(match self.pods {
            true => Store::Pods(PodStore::recover(path, &copies(path))?.0),
            false => Store::Images(ImageStore::recover(path)?),
        })
    }

    /// Where the copy of each record that the script stores is kept, and the directories
    /// that are made for it.
    pub(crate) fn copied(&self, path: &Path) -> Vec<PathBuf> {
        let copies = copies(path);
        let dirs: BTreeSet<_> = self
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::PutSandbox(record) => Some(copies.sandboxes.join(record.id.as_str())),
                Step::PutContainer(record) => Some(copies.containers.join(record.id.as_str())),
                _ => None,
            })
            .collect();
        let files = |dir: &PathBuf| ["record.json", "record.new"].map(|name| dir.join(name));
        let files: Vec<_> = dirs.iter().flat_map(files).collect();
        let roots = [copies.sandboxes, copies.containers].into_iter().filter(|_| self.pods);
        roots.chain(dirs).chain(files).collect()
    }

    /// What the copies alone would make of a store that is lost.
    pub(crate) fn rebuilt(&self, path: &Path) -> Result<State, Error> {
        let (store, _) = PodStore::recover(&path.with_file_name("rebuilt.db"), &copies(path))?;
        Store::Pods(store).state()
    }

    fn attempt(&self, step: &Step, store: &mut Option<Store>, path: &Path) -> Result<(), Error> {
        if matches!(step, Step::Open) {
            *store = None;
            *store = Some(self.open(path)?);
            return Ok(());
        }
        if matches!(step, Step::Checkpoint) {
            // Whether it succeeds is the operator's business.
            let asked = rusqlite::Connection::open(path);
            asked.and_then(|sql| sql.execute_batch("PRAGMA wal_checkpoint(RESTART)")).ok();
            return Ok(());
        }
        match store {
            Some(Store::Pods(store)) => commit_pods(store, step),
            Some(Store::Images(store)) => commit_images(store, step),
            None => panic!("the script opens its store first"),
        }
    }
}

/// Beside the store, as nothing else is.
fn copies(path: &Path) -> Copies {
    let run = path.with_file_name("run");
    Copies { sandboxes: run.join("sandboxes"), containers: run.join("containers") }
}

fn commit_pods(store: &PodStore, step: &Step) -> Result<(), Error> {
    match step {
        Step::PutSandbox(record) => store.put_sandbox(record),
        Step::RemoveSandbox(id) => store.remove_sandbox(id).map(drop),
        Step::PutContainer(record) => store.put_container(record),
        Step::RemoveContainer(id) => store.remove_container(id).map(drop),
        Step::Lease(id) => store.lease_address(id, FIRST, LAST).map(drop),
        Step::Release(id) => store.release_sandbox(id).map(drop),
        other => panic!("{other:?} is not for pods"),
    }
}

fn commit_images(store: &ImageStore, step: &Step) -> Result<(), Error> {
    match step {
        Step::PutImage(record) => store.put_image(record),
        Step::RemoveImage(id) => store.remove_image(id).map(drop),
        Step::Forget(id, layer) => store.forget(Some(id), &[ChainId(*layer)], &[*layer]),
        Step::PutBlobs(blobs) => store.put_blobs(blobs),
        Step::PutSnapshot(record) => store.put_snapshot(record),
        other => panic!("{other:?} is not for images"),
    }
}

impl Store {
    fn state(&self) -> Result<State, Error> {
        let mut state = State::default();
        match self {
            Self::Pods(store) => {
                state.sandboxes = store.sandboxes()?;
                state.containers = store.containers()?;
                state.leases = store.leases()?;
            }
            Self::Images(store) => {
                state.images = store.images()?;
                state.blobs = store.blobs()?;
                state.snapshots = store.snapshots()?;
            }
        }
        state.sort();
        Ok(state)
    }
}

impl State {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Open | Step::Checkpoint => {}
            Step::PutSandbox(record) => {
                self.sandboxes.retain(|known| known.id != record.id);
                self.sandboxes.push((**record).clone());
            }
            Step::RemoveSandbox(id) => {
                self.sandboxes.retain(|known| known.id != *id);
                self.containers.retain(|known| known.sandbox != *id);
            }
            Step::PutContainer(record) => {
                self.containers.retain(|known| known.id != record.id);
                self.containers.push((**record).clone());
            }
            Step::RemoveContainer(id) => self.containers.retain(|known| known.id != *id),
            Step::Lease(id) => {
                let taken = u32::try_from(self.leases.len()).unwrap();
                let address = Ipv4Addr::from(u32::from(FIRST) + taken);
                self.leases.push(Lease { address, sandbox: id.clone() });
            }
            Step::Release(id) => self.leases.retain(|lease| lease.sandbox != *id),
            Step::PutImage(record) => {
                self.images.retain(|known| known.id != record.id);
                self.images.push((**record).clone());
            }
            Step::RemoveImage(id) => self.images.retain(|known| known.id != *id),
            Step::Forget(id, layer) => {
                self.images.retain(|known| known.id != *id);
                self.snapshots.retain(|known| known.chain.0 != *layer);
                self.blobs.retain(|known| known.digest != *layer);
            }
            Step::PutBlobs(blobs) => self.blobs.extend(blobs),
            Step::PutSnapshot(record) => self.snapshots.push(record.clone()),
        }
        self.sort();
    }

    /// What copies are kept of.
    pub(crate) fn copied(mut self) -> Self {
        self.sandboxes.retain(|record| record.phase != SandboxPhase::Creating);
        self.leases.clear();
        self
    }

    fn sort(&mut self) {
        self.sandboxes.sort_by(|a, b| a.id.cmp(&b.id));
        self.containers.sort_by(|a, b| a.id.cmp(&b.id));
        self.images.sort_by_key(|image| image.id.to_string());
        self.blobs.sort_by_key(|blob| blob.digest.to_string());
        self.snapshots.sort_by_key(|snapshot| snapshot.chain.0.to_string());
    }
}

/// An error on one line: its variant, its kind, its text.
fn tell(error: &Error) {
    let debug = format!("{error:?}");
    let variant = debug.split([' ', '(', '{']).next().unwrap_or_default();
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    println!("error {variant} {:?} {error}: {cause}", error.kind());
}

/// What SQLite itself says of the file.
pub(crate) fn integrity(path: &Path) -> String {
    let sql = rusqlite::Connection::open(path).unwrap();
    sql.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

fn sandbox(id: &str, phase: SandboxPhase, padding: usize) -> Step {
    let name = SandboxName { name: id.into(), namespace: "n".into(), uid: "u".into(), attempt: 0 };
    let annotations = [("padding".to_owned(), "x".repeat(padding))].into();
    Step::PutSandbox(Box::new(SandboxRecord {
        limits: None,
        id: SandboxId::new(id).unwrap(),
        spec: SandboxSpec { name, annotations, ..SandboxSpec::default() },
        phase,
        created_at: Timestamp(1),
        boot_id: "boot".into(),
        runtime: "berth".into(),
        cgroup: format!("/berth/{id}"),
        owns_cgroup: true,
        shim: None,
        network: None,
    }))
}

fn container(id: &str, sandbox: &str, state: ContainerState) -> Step {
    let name = ContainerName { name: id.into(), attempt: 0 };
    Step::PutContainer(Box::new(ContainerRecord {
        limits: None,
        changing: None,
        id: ContainerId::new(id).unwrap(),
        sandbox: SandboxId::new(sandbox).unwrap(),
        spec: ContainerSpec { name, ..ContainerSpec::default() },
        state,
        created_at: Timestamp(1),
        image: Digest::of(b"config"),
        image_ref: "r.example/a:latest".into(),
        cgroup: format!("/berth/{sandbox}/{id}"),
        log_path: None,
        stop_signal: "SIGTERM".into(),
        user: (0, 0),
        groups: vec![],
        chain: vec![ChainId(Digest::of(b"layer"))],
        volumes: Default::default(),
    }))
}

fn pods() -> Vec<Step> {
    let id = |id: &str| SandboxId::new(id).unwrap();
    let running = ContainerState::Running { pid: 7, started_at: Timestamp(2) };
    vec![
        Step::Open,
        sandbox("s1", SandboxPhase::Creating, 10),
        Step::Lease(id("s1")),
        sandbox("s1", SandboxPhase::Ready, 10),
        container("c1", "s1", ContainerState::Created),
        container("c1", "s1", running.clone()),
        Step::Checkpoint,
        container("c0", "s1", ContainerState::Created),
        Step::Open,
        sandbox("s2", SandboxPhase::Ready, 10_000),
        Step::Lease(id("s2")),
        container("c2", "s1", running),
        Step::RemoveContainer(ContainerId::new("c1").unwrap()),
        // More than one row of more than one table.
        Step::RemoveSandbox(id("s1")),
        Step::Release(id("s2")),
        Step::RemoveSandbox(id("s2")),
        sandbox("s3", SandboxPhase::Ready, 10),
    ]
}

fn large_pods() -> Vec<Step> {
    let mut steps = vec![Step::Open];
    steps.extend((0..5).map(|n| sandbox("s1", SandboxPhase::Ready, LARGE + n)));
    // The log was written back: it begins anew.
    steps.push(sandbox("after", SandboxPhase::Ready, 10));
    steps.push(Step::RemoveSandbox(SandboxId::new("s1").unwrap()));
    steps
}

fn image(config: &str, tag: &str, padding: usize) -> Step {
    Step::PutImage(Box::new(ImageRecord {
        id: Digest::of(config.as_bytes()),
        tags: vec![format!("r.example/{tag}:1")],
        digests: vec![format!("r.example/{tag}@{}", Digest::of(config.as_bytes()))],
        manifest: Digest::of(b"manifest"),
        blobs: vec![Digest::of(b"layer")],
        chain: vec![ChainId(Digest::of(b"diff"))],
        size: 7,
        user: "x".repeat(padding),
        pulled_at: Timestamp(5),
    }))
}

fn layer(content: &str) -> [Step; 2] {
    let digest = Digest::of(content.as_bytes());
    [
        Step::PutBlobs(vec![
            BlobRecord { digest, size: 9 },
            BlobRecord { digest: Digest::of(&digest.to_string().into_bytes()), size: 3 },
        ]),
        Step::PutSnapshot(SnapshotRecord {
            chain: ChainId(digest),
            parent: None,
            bytes: 4096,
            inodes: 3,
            dir: format!("committed/{content}"),
        }),
    ]
}

fn images() -> Vec<Step> {
    let mut steps = vec![Step::Open];
    steps.extend(layer("one"));
    steps.push(image("a", "a", 1));
    steps.push(Step::Checkpoint);
    steps.push(image("d", "d", 1));
    steps.push(Step::Open);
    steps.extend(layer("two"));
    steps.push(image("b", "b", 10_000));
    steps.push(Step::RemoveImage(Digest::of(b"a")));
    steps.push(image("c", "c", 1));
    steps.push(Step::Forget(Digest::of(b"b"), Digest::of(b"two")));
    steps
}

fn large_images() -> Vec<Step> {
    let mut steps = vec![Step::Open];
    steps.extend((0..5).map(|n| image("i1", "i1", LARGE + n)));
    steps.push(image("after", "after", 1));
    steps.push(Step::RemoveImage(Digest::of(b"i1")));
    steps
}
