//! Layers and active snapshots on real directories and real overlay mounts.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use berth_model::{ChainId, Digest};
use berth_snapshot::{Durability, Error, OPAQUE_XATTR, SnapshotKey, Snapshots, usage};
use common::{in_mount_namespace, is_root, perform};
use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use tempfile::TempDir;

fn chain(name: &str) -> ChainId {
    ChainId(Digest::of(name.as_bytes()))
}

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

struct Fixture {
    directory: TempDir,
    snapshots: Snapshots,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let snapshots = Snapshots::open(&directory.path().join("s")).unwrap();
        Self { directory, snapshots }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.snapshots.root().join(below)
    }

    /// Commits a layer that `fill` makes.
    fn layer(&self, name: &str, fill: impl FnOnce(&Path)) -> ChainId {
        let layer = self.snapshots.begin_layer().unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", raw(layer.root()))).unwrap();
        fill(&path);
        assert!(self.snapshots.commit_layer(layer, chain(name)).unwrap().fresh);
        chain(name)
    }

    fn entries(&self, below: &str) -> usize {
        fs::read_dir(self.path(below)).unwrap().count()
    }
}

fn raw(fd: std::os::fd::BorrowedFd<'_>) -> i32 {
    use std::os::fd::AsRawFd as _;
    fd.as_raw_fd()
}

#[test]
fn a_layer_appears_when_it_is_committed_and_not_before() {
    let fixture = Fixture::new();
    let layer = fixture.snapshots.begin_layer().unwrap();
    assert!(fixture.snapshots.committed().unwrap().is_empty());
    let committed = fixture.snapshots.commit_layer(layer, chain("a")).unwrap();
    assert!(committed.fresh && fixture.path(&committed.dir).is_dir());
    assert_eq!(fixture.snapshots.committed().unwrap(), [chain("a")]);
    assert!(fixture.snapshots.is_committed(chain("a")).unwrap());
    assert_eq!((fixture.entries("ingest"), fixture.entries("trash")), (0, 0));
}

#[test]
fn the_second_commit_of_a_chain_gives_way_to_the_first() {
    let fixture = Fixture::new();
    let (first, second) =
        (fixture.snapshots.begin_layer().unwrap(), fixture.snapshots.begin_layer().unwrap());
    let first = fixture.snapshots.commit_layer(first, chain("a")).unwrap();
    let second = fixture.snapshots.commit_layer(second, chain("a")).unwrap();
    assert_eq!(second.dir, first.dir);
    assert!(!second.fresh);
    assert_eq!((fixture.entries("l"), fixture.entries("ingest")), (1, 0));
}

#[test]
fn a_layer_that_cannot_be_committed_leaves_nothing() {
    let fixture = Fixture::new();
    let layer = fixture.snapshots.begin_layer().unwrap();
    fs::remove_dir(fixture.path("l")).unwrap();
    fixture.snapshots.commit_layer(layer, chain("a")).unwrap_err();
    assert_eq!((fixture.entries("ingest"), fixture.entries("committed")), (0, 0));
}

#[test]
fn a_layer_that_is_dropped_leaves_nothing() {
    let fixture = Fixture::new();
    drop(fixture.snapshots.begin_layer().unwrap());
    assert_eq!((fixture.entries("ingest"), fixture.entries("trash")), (0, 0));
}

#[test]
fn a_sweep_keeps_what_is_live_and_nothing_else() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let (a, b) = (fixture.layer("a", |_| {}), fixture.layer("b", |_| {}));
    fs::create_dir_all(fixture.path("ingest/99/deep/er")).unwrap();
    fs::create_dir_all(fixture.path("trash/98/x")).unwrap();
    fs::create_dir_all(fixture.path("l/97")).unwrap();
    fixture.snapshots.prepare(&key("one"), &[a], Durability::Volatile).unwrap();
    fixture.snapshots.prepare(&key("two"), &[a], Durability::Volatile).unwrap();

    let swept = fixture.snapshots.sweep_active(&HashSet::from([key("one")])).unwrap();
    assert_eq!(swept, [key("two")]);
    let trash = fixture.snapshots.sweep_committed(&HashSet::from([a])).unwrap();
    assert_eq!((trash.len(), fixture.entries("trash")), (5, 5), "it waits to be emptied");
    assert_eq!((fixture.entries("l"), fixture.entries("ingest")), (1, 0));
    for tree in trash {
        tree.measure().unwrap();
        tree.empty().unwrap();
    }
    assert!(!fixture.snapshots.sizes().keys().any(|path| path.starts_with("trash/")));
    assert_eq!(fixture.snapshots.active().unwrap(), [key("one")]);
    assert_eq!(fixture.snapshots.committed().unwrap(), [a]);
    assert!(!fixture.snapshots.is_committed(b).unwrap());
    for place in ["ingest", "trash"] {
        assert_eq!(fixture.entries(place), 0, "{place}");
    }
    assert_eq!(fixture.entries("l"), 1);
}

#[test]
fn numbers_are_not_given_twice_after_a_restart() {
    let fixture = Fixture::new();
    let a = fixture.layer("a", |path| fs::write(path.join("f"), "a").unwrap());
    let again = Snapshots::open(fixture.snapshots.root()).unwrap();
    let layer = again.begin_layer().unwrap();
    assert!(again.commit_layer(layer, chain("b")).unwrap().fresh);
    assert_eq!(again.view(&[a]).unwrap().read_file(Path::new("f"), 9).unwrap().unwrap(), b"a");
}

#[test]
fn a_root_that_overlay_cannot_spell_is_refused() {
    for bad in ["relative", "/tmp/a:b", "/tmp/a,b", "/tmp/a\\b"] {
        assert!(matches!(Snapshots::open(Path::new(bad)), Err(Error::BadRoot(_))), "{bad}");
    }
}

#[test]
fn a_chain_with_a_missing_layer_is_refused_by_name() {
    let fixture = Fixture::new();
    let error = fixture.snapshots.prepare(&key("x"), &[chain("a")], Durability::Durable);
    assert!(matches!(error, Err(Error::MissingLayer(gone)) if gone == chain("a")));
    assert_eq!(fixture.entries("active"), 0);
}

#[test]
fn more_layers_than_overlay_stacks_are_refused() {
    let fixture = Fixture::new();
    let many = vec![chain("a"); 501];
    let error = fixture.snapshots.mounts(&key("x"), &many, Durability::Durable);
    assert!(matches!(error, Err(Error::TooManyLayers { layers: 501, limit: 500 })));
}

#[test]
fn a_container_sees_its_layers_and_writes_beside_them() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let low = fixture.layer("low", |path| {
        fs::write(path.join("kept"), "low").unwrap();
        fs::write(path.join("replaced"), "low").unwrap();
    });
    let top = fixture.layer("top", |path| {
        fs::write(path.join("replaced"), "top").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(path, Some(12), Some(34)).unwrap();
    });
    let mounts = fixture.snapshots.prepare(&key("c"), &[low, top], Durability::Volatile).unwrap();
    let before = fixture.snapshots.usage(&key("c")).unwrap();
    let target = fixture.directory.path().join("t");
    in_mount_namespace(|| {
        perform(&mounts, &target);
        assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "low");
        assert_eq!(fs::read_to_string(target.join("replaced")).unwrap(), "top");
        let root = fs::metadata(&target).unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o711, 12, 34));
        fs::write(target.join("new"), vec![1; 1 << 20]).unwrap();
    });
    assert!(!fixture.path("l/1/new").exists());
    let after = fixture.snapshots.usage(&key("c")).unwrap();
    assert!(after.bytes - before.bytes >= 1 << 20, "{before:?} {after:?}");
    assert_eq!(after.inodes, before.inodes + 1);

    let again = fixture.snapshots.prepare(&key("c"), &[low], Durability::Volatile);
    assert!(matches!(again, Err(Error::Exists(_))));
    fixture.snapshots.remove(&key("c")).unwrap();
    fixture.snapshots.remove(&key("c")).unwrap();
    assert_eq!((fixture.entries("active"), fixture.entries("trash")), (0, 0));
    assert!(matches!(fixture.snapshots.usage(&key("c")), Err(Error::NotFound(_))));
}

#[test]
fn what_was_mounted_and_never_used_is_mounted_again_as_if_new() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let layer = fixture.layer("layer", |path| fs::write(path.join("kept"), "").unwrap());
    let mount = |seen: usize| {
        let mounts = fixture.snapshots.mounts_unused(&key("c"), &[layer], Durability::Volatile);
        let target = fixture.directory.path().join("t");
        in_mount_namespace(|| {
            perform(&mounts.unwrap(), &target);
            assert_eq!(fs::read_dir(&target).unwrap().count(), seen);
            fs::write(target.join("made by a runtime"), "").unwrap();
        });
    };
    fixture.snapshots.prepare(&key("c"), &[layer], Durability::Volatile).unwrap();
    fs::write(fixture.path("active/c/upper/unused"), "").unwrap();
    mount(2);
    mount(1);
    // What a kill between two steps leaves.
    fs::remove_dir_all(fixture.path("active/c/work")).unwrap();
    mount(1);
    fixture.snapshots.remove(&key("c")).unwrap();
    mount(1);
}

#[test]
fn volatile_is_asked_for_only_where_it_may_be_lost() {
    let fixture = Fixture::new();
    let options = |durability| {
        let mounts = fixture.snapshots.mounts(&key("c"), &[], durability).unwrap();
        mounts[0].options.clone()
    };
    let volatile = "volatile".to_owned();
    assert_eq!(options(Durability::Volatile).contains(&volatile), fixture.snapshots.volatile());
    assert!(!options(Durability::Durable).contains(&volatile));
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mounts = fixture.snapshots.prepare(&key("c"), &[], Durability::Volatile).unwrap();
    let target = fixture.directory.path().join("t");
    in_mount_namespace(|| {
        perform(&mounts, &target);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        fs::write(target.join("new"), "").unwrap();
    });
    assert_eq!(fs::read_dir(fixture.path("empty")).unwrap().count(), 0);
}

#[test]
fn an_opaque_root_hides_every_layer_below_it() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let low = fixture.layer("low", |path| fs::write(path.join("hidden"), "").unwrap());
    let top = fixture.layer("top", |path| {
        fs::write(path.join("seen"), "").unwrap();
        rustix::fs::setxattr(path, OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty()).unwrap();
    });
    let mounts = fixture.snapshots.prepare(&key("c"), &[low, top], Durability::Volatile).unwrap();
    let target = fixture.directory.path().join("t");
    in_mount_namespace(|| {
        perform(&mounts, &target);
        assert!(target.join("seen").exists() && !target.join("hidden").exists());
    });
    let view = fixture.snapshots.view(&[low, top]).unwrap();
    assert!(view.resolve(Path::new("/hidden")).unwrap().is_none());
}

/// Makes `depth` directories in one another, with a file in each.
fn dig(root: &Path, depth: usize) {
    let mut here = openat(nix::fcntl::AT_FDCWD, root, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        let file = OFlag::O_CREAT | OFlag::O_WRONLY;
        drop(openat(&here, "file", file, Mode::S_IRWXU).unwrap());
        mkdirat(&here, "directory", Mode::S_IRWXU).unwrap();
        here = openat(&here, "directory", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_tree_deeper_than_any_path_is_counted_and_removed() {
    let fixture = Fixture::new();
    let before = open_descriptors();
    let a = fixture.layer("a", |path| dig(path, 3000));
    let (_, used) = fixture.snapshots.committed_usage(a).unwrap();
    assert_eq!(used.inodes, 6001);
    fixture.snapshots.remove_committed(a).unwrap();
    assert_eq!((fixture.entries("l"), fixture.entries("trash")), (0, 0));
    // Other tests run beside this one; a leak of a walk would be thousands.
    assert!(open_descriptors() < before + 500);
}

#[test]
fn a_hard_link_is_counted_once_and_a_link_is_not_followed() {
    let directory = TempDir::new().unwrap();
    let (tree, outside) = (directory.path().join("t"), directory.path().join("o"));
    fs::create_dir_all(&tree).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("large"), vec![1; 1 << 20]).unwrap();
    fs::write(tree.join("a"), vec![1; 64 << 10]).unwrap();
    fs::hard_link(tree.join("a"), tree.join("b")).unwrap();
    symlink(&outside, tree.join("link")).unwrap();
    let open = Dir::open(&tree, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    let used = usage(open.as_fd()).unwrap();
    assert_eq!(used.inodes, 3);
    assert!(used.bytes < 1 << 20, "{used:?}");
}
