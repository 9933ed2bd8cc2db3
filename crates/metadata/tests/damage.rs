//! Damaged stores: thousands of random damages to each kind of file, and after each the
//! store is what it was, or says what is wrong. Nothing panics, nothing wrong is believed.
//!
//! `BERTH_ROUNDS` says how many damages of each store (as a multiple of its pages at
//! least), `BERTH_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use berth_metadata::{
    AttachmentRecord, BlobRecord, ContainerRecord, Copies, Error, ImageStore, PodStore, Pods,
    SandboxPhase, SandboxRecord, ShimRecord, SnapshotRecord,
};
use berth_model::container::{ContainerName, ContainerSpec, Exit, ExitReason, Timestamp};
use berth_model::image::ImageRecord;
use berth_model::sandbox::SandboxName;
use berth_model::{ChainId, ContainerId, ContainerState, Digest, SandboxId, SandboxSpec};
use tempfile::TempDir;

const PAGE: usize = 4096;
const ROUNDS: usize = 400;
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LAST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);

/// xorshift64*: a run is repeated by its seed.
struct Random(u64);

impl Random {
    fn start(test: &str) -> Self {
        let seed = std::env::var("BERTH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(test)).max(1);
        eprintln!("{test}: BERTH_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }
}

fn rounds() -> usize {
    std::env::var("BERTH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// Files as they are on disk, to be put down again and again.
struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    fn read(dir: &Path, name: &str) -> Self {
        let companions = ["", "-wal", "-shm"].map(|suffix| format!("{name}{suffix}"));
        // The log of a store that was closed has no byte to be damaged.
        let read = |name: String| {
            let bytes = fs::read(dir.join(&name)).ok()?;
            (!bytes.is_empty()).then_some((name, bytes))
        };
        Self(companions.into_iter().filter_map(read).collect())
    }

    fn write(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, bytes) in &self.0 {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn damaged(&self, which: usize, how: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut files = self.0.clone();
        how(&mut files[which].1);
        Self(files)
    }
}

/// Does one damage; the first rounds meet every page.
fn damage(bytes: &mut Vec<u8>, round: usize, random: &mut Random) -> String {
    let pages = bytes.len().div_ceil(PAGE).max(1);
    let page = if round < 2 * pages { round % pages } else { random.below(pages) };
    let span = (page * PAGE)..bytes.len().min((page + 1) * PAGE);
    let kind = random.below(8);
    match kind {
        0 => bytes[span.clone()].fill(0),
        1 => bytes[span.clone()].iter_mut().for_each(|byte| *byte = random.byte()),
        2 => bytes.truncate(span.start + random.below(span.len())),
        3 => bytes.truncate(span.start),
        4 => {
            let other = random.below(pages) * PAGE;
            for at in span.clone() {
                let from = (other + at % PAGE).min(bytes.len() - 1);
                bytes[at] = bytes[from];
            }
        }
        5 => bytes.extend((0..random.below(2 * PAGE)).map(|_| random.byte())),
        many => {
            let flips = if many == 6 { 1 } else { 1 + random.below(40) };
            for _ in 0..flips {
                let at = span.start + random.below(span.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
    }
    format!("round {round}, page {page} of {pages}, kind {kind}")
}

fn is_typed(error: &Error) -> bool {
    let typed =
        matches!(error, Error::Damaged { .. } | Error::Record { .. } | Error::NewerSchema { .. });
    typed && !error.to_string().is_empty()
}

fn sandbox(number: u32) -> SandboxRecord {
    let name = SandboxName {
        name: format!("pod-{number}"),
        namespace: "default".into(),
        uid: format!("uid-{number}"),
        attempt: number % 3,
    };
    let annotations = (0..10).map(|n| (format!("key-{n}"), "value ".repeat(20))).collect();
    SandboxRecord {
        limits: None,
        id: SandboxId::new(format!("{number:064x}")).unwrap(),
        spec: SandboxSpec { name, annotations, ..SandboxSpec::default() },
        phase: SandboxPhase::Ready,
        created_at: Timestamp(i64::from(number) + 1),
        boot_id: "boot".into(),
        runtime: "berth".into(),
        cgroup: format!("/berth/{number:064x}"),
        owns_cgroup: true,
        shim: Some(ShimRecord {
            address: format!("unix:///run/berth/s/{number:020x}"),
            version: 3,
            pid: number,
            started_ticks: 6,
        }),
        network: None,
    }
}

fn container(number: u32, sandbox: &SandboxRecord) -> ContainerRecord {
    let command = vec!["sh".to_owned(), "-c".to_owned(), "true; ".repeat(60)];
    let name = ContainerName { name: format!("c-{number}"), attempt: 0 };
    ContainerRecord {
        limits: None,
        changing: None,
        id: ContainerId::new(format!("{:064x}", number + 1000)).unwrap(),
        sandbox: sandbox.id.clone(),
        spec: ContainerSpec { name, command, ..ContainerSpec::default() },
        state: ContainerState::Created,
        created_at: Timestamp(i64::from(number) + 1),
        image: Digest::of(b"config"),
        image_ref: "r.example/a:latest".into(),
        cgroup: format!("/berth/{}/{number}", sandbox.id),
        log_path: Some(PathBuf::from("/var/log/pods/a.log")),
        stop_signal: "SIGTERM".into(),
        user: (0, 0),
        groups: vec![1],
        chain: vec![ChainId(Digest::of(b"layer"))],
        volumes: Default::default(),
    }
}

/// A store with pods in every state, reached step by step as drivers do.
fn populate(store: &PodStore, pods: u32) -> Pods {
    let mut all = Pods::default();
    for number in 0..pods {
        let mut record = sandbox(number);
        record.phase = SandboxPhase::Creating;
        store.put_sandbox(&record).unwrap();
        let address = store.lease_address(&record.id, FIRST, LAST).unwrap();
        record.network = Some(AttachmentRecord {
            address,
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            mac: "02:00:0a:00:00:02".into(),
            host_interface: format!("veth{number}"),
            host_index: number,
            ports: Vec::new(),
        });
        record.phase = SandboxPhase::Ready;
        store.put_sandbox(&record).unwrap();
        for member in 0..2 {
            let mut container = container(number * 2 + member, &record);
            store.put_container(&container).unwrap();
            if number % 3 > 0 {
                let started_at = Timestamp(7);
                container.state = ContainerState::Running { pid: number + 10, started_at };
                store.put_container(&container).unwrap();
            }
            if number % 3 > 1 {
                let exit = Exit {
                    code: 3,
                    at: Timestamp(9),
                    reason: ExitReason::Error,
                    message: String::new(),
                };
                container.state = ContainerState::Exited { started_at: Timestamp(7), exit };
                store.put_container(&container).unwrap();
            }
            all.containers.push(container);
        }
        if number % 4 == 3 {
            record.phase = SandboxPhase::NotReady;
            store.put_sandbox(&record).unwrap();
        }
        all.sandboxes.push(record);
    }
    all
}

struct Node {
    dir: TempDir,
    copies: Copies,
}

impl Node {
    fn new() -> Self {
        // Thousands of commits that wait for a disk would measure the disk.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        let copies = Copies {
            sandboxes: dir.path().join("run/sandboxes"),
            containers: dir.path().join("run/containers"),
        };
        fs::create_dir(dir.path().join("root")).unwrap();
        Self { dir, copies }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn pods(&self) -> PathBuf {
        self.root().join("pods.db")
    }
}

fn check_pods(found: &Pods, known: &Pods, store: &PodStore, what: &str) {
    assert!(found.sandboxes == known.sandboxes, "{what}: other sandboxes");
    assert!(found.containers == known.containers, "{what}: other containers");
    let mut addresses = BTreeSet::new();
    for lease in store.leases().unwrap() {
        assert!(addresses.insert(lease.address), "{what}: {} is leased twice", lease.address);
    }
    for record in &known.sandboxes {
        let address = record.network.as_ref().unwrap().address;
        assert!(addresses.contains(&address), "{what}: {address} is not leased");
    }
}

#[test]
fn a_damaged_pod_store_is_never_believed_and_is_made_anew_from_its_copies() {
    let mut random = Random::start("pods.db");
    let node = Node::new();
    let (store, _) = PodStore::recover(&node.pods(), &node.copies).unwrap();
    let known = populate(&store, 24);
    let open = Files::read(&node.root(), "pods.db");
    assert_eq!(open.0.len(), 3, "a running daemon's store has a log");
    drop(store);
    let closed = Files::read(&node.root(), "pods.db");
    let (mut refused, mut replaced) = (0, 0);
    for round in 0..rounds() {
        let files = if random.below(4) == 0 { &open } else { &closed };
        let which = random.below(files.0.len());
        let mut what = String::new();
        let files = files.damaged(which, |bytes| what = damage(bytes, round, &mut random));
        what = format!("{what}, file {which}");
        files.write(&node.root());
        // Whoever only looks is told as well.
        let looked = PodStore::open(&node.pods()).and_then(|store| {
            let (sandboxes, containers) = (store.sandboxes()?, store.containers()?);
            store.leases()?;
            Ok(Pods { sandboxes, containers })
        });
        match looked {
            Err(error) => assert!(is_typed(&error), "{what}: {error:?}"),
            // The log ends where it is damaged: then an older state is what there is.
            // An empty file is a store that was never written to.
            Ok(pods) if files.0.len() == 1 && !files.0[0].1.is_empty() => {
                assert!(pods.sandboxes == known.sandboxes, "{what}");
                assert!(pods.containers == known.containers, "{what}");
            }
            Ok(_) => {}
        }
        files.write(&node.root());
        match PodStore::recover(&node.pods(), &node.copies) {
            Ok((store, found)) => check_pods(&found, &known, &store, &what),
            Err(error) => {
                assert!(matches!(error, Error::NewerSchema { .. }), "{what}: {error:?}");
                refused += 1;
            }
        }
        replaced += usize::from(node.root().join("pods.db.damaged-1").exists());
    }
    eprintln!("pods.db: {replaced} of {} set aside, {refused} refused", rounds());
    assert!(replaced > rounds() / 10, "damages are found");
}

fn image(number: u32) -> ImageRecord {
    let digest = |what: &str| Digest::of(format!("{what} {number}").as_bytes());
    ImageRecord {
        id: digest("config"),
        tags: vec![format!("r.example/image-{number}:latest")],
        digests: vec![format!("r.example/image-{number}@{}", digest("manifest"))],
        manifest: digest("manifest"),
        blobs: vec![digest("manifest"), digest("config"), digest("layer")],
        chain: (0..4).map(|n| ChainId(digest(&n.to_string()))).collect(),
        size: 7,
        user: "nobody".into(),
        pulled_at: Timestamp(5),
    }
}

type ImageRows = (Vec<ImageRecord>, Vec<BlobRecord>, Vec<SnapshotRecord>);

fn image_rows(store: &ImageStore) -> Result<ImageRows, Error> {
    Ok((store.images()?, store.blobs()?, store.snapshots()?))
}

fn populate_images(store: &ImageStore) -> ImageRows {
    for number in 0..30 {
        let image = image(number);
        let size = u64::from(number);
        let blobs: Vec<_> =
            image.blobs.iter().map(|digest| BlobRecord { digest: *digest, size }).collect();
        store.put_blobs(&blobs).unwrap();
        for pair in image.chain.windows(2) {
            let (parent, chain) = (Some(pair[0]), pair[1]);
            let dir = format!("l/{number}");
            let snapshot = SnapshotRecord { chain, parent, bytes: size, inodes: size, dir };
            store.put_snapshot(&snapshot).unwrap();
        }
        store.put_image(&image).unwrap();
    }
    image_rows(store).unwrap()
}

fn is_part<T: PartialEq>(found: &[T], known: &[T]) -> bool {
    found.iter().all(|one| known.contains(one))
}

#[test]
fn a_damaged_image_store_is_never_believed_and_is_set_aside() {
    let mut random = Random::start("images.db");
    let node = Node::new();
    let path = node.root().join("images.db");
    let store = ImageStore::recover(&path).unwrap();
    assert!(store.is_empty().unwrap());
    let known = populate_images(&store);
    let open = Files::read(&node.root(), "images.db");
    drop(store);
    let closed = Files::read(&node.root(), "images.db");
    let (mut refused, mut replaced) = (0, 0);
    for round in 0..rounds() {
        let files = if random.below(4) == 0 { &open } else { &closed };
        let which = random.below(files.0.len());
        let mut what = String::new();
        let files = files.damaged(which, |bytes| what = damage(bytes, round, &mut random));
        what = format!("{what}, file {which}");
        files.write(&node.root());
        let store = match ImageStore::recover(&path) {
            Ok(store) => store,
            Err(error) => {
                assert!(matches!(error, Error::NewerSchema { .. }), "{what}: {error:?}");
                refused += 1;
                continue;
            }
        };
        let found = image_rows(&store).unwrap();
        if node.root().join("images.db.damaged-1").exists() {
            replaced += 1;
            assert!(store.is_empty().unwrap(), "{what}");
        } else if files.0.len() == 1 && !files.0[0].1.is_empty() {
            assert!(found == known, "{what}: other rows");
        } else {
            // A log that ends early is an older state.
            let bare = |images: &[ImageRecord]| -> Vec<_> {
                images.iter().map(|image| image.id).collect()
            };
            assert!(is_part(&bare(&found.0), &bare(&known.0)), "{what}");
            assert!(is_part(&found.1, &known.1) && is_part(&found.2, &known.2), "{what}");
        }
    }
    eprintln!("images.db: {replaced} of {} set aside, {refused} refused", rounds());
    assert!(replaced > rounds() / 10, "damages are found");
}
