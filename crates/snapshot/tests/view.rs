//! The merged view against what overlayfs shows of the same layers.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use berth_model::{ChainId, Digest};
use berth_snapshot::{Durability, Error, MergedView, OPAQUE_XATTR, Snapshots};
use common::{in_mount_namespace, is_root, perform};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{XattrFlags, setxattr};
use tempfile::TempDir;

fn layers(count: usize, fill: impl Fn(usize, &Path)) -> (TempDir, Snapshots, Vec<ChainId>) {
    let directory = TempDir::new().unwrap();
    let snapshots = Snapshots::open(&directory.path().join("s")).unwrap();
    let chain = (0..count).map(|index| {
        let layer = snapshots.begin_layer().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&layer.root());
        fill(index, &fs::read_link(format!("/proc/self/fd/{fd}")).unwrap());
        let name = ChainId(Digest::of(&index.to_le_bytes()));
        snapshots.commit_layer(layer, name).unwrap();
        name
    });
    let chain = chain.collect();
    (directory, snapshots, chain)
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Fills a directory with files, links, whiteouts and directories.
fn scatter(random: &mut Random, path: &Path, depth: usize, tag: &str) {
    for name in NAMES {
        let child = path.join(name);
        match random.below(8) {
            0 => fs::write(&child, format!("{tag}{}", child.display())).unwrap(),
            1 => mknod(&child, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap(),
            2 => {
                let targets = ["b", "/a/b", "../c", "../../../d", "/b/../c/a", "a"];
                let target = targets[usize::try_from(random.below(6)).unwrap()];
                symlink(target, &child).unwrap();
            }
            3..=5 if depth < 3 => {
                fs::create_dir(&child).unwrap();
                if random.below(4) == 0 {
                    setxattr(&child, OPAQUE_XATTR, b"y", XattrFlags::empty()).unwrap();
                }
                scatter(random, &child, depth + 1, tag);
            }
            _ => {}
        }
    }
}

/// Every path of up to three names.
fn paths() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::new()];
    let mut last = all.clone();
    for _ in 0..3 {
        last = last.iter().flat_map(|path| NAMES.map(|name| path.join(name))).collect();
        all.extend(last.clone());
    }
    all
}

/// What overlayfs has at `path`, without following links.
fn shown(root: &Path, path: &Path) -> Option<(u32, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let mut walked = root.to_owned();
    for component in path.components() {
        if !fs::symlink_metadata(&walked).ok()?.is_dir() {
            return None;
        }
        walked.push(component);
    }
    let metadata = fs::symlink_metadata(&walked).ok()?;
    let size = if metadata.is_dir() { 0 } else { metadata.size() };
    Some((metadata.mode() & 0o170_000, size))
}

fn found(view: &MergedView, path: &Path) -> Option<(u32, u64)> {
    let components = path.iter().collect::<Vec<&OsStr>>();
    let found = view.lookup(components).unwrap()?;
    let size = if found.is_directory() { 0 } else { u64::try_from(found.stat().st_size).unwrap() };
    Some((found.stat().st_mode & 0o170_000, size))
}

/// What a process whose root is `root` reads at `path`.
fn read(root: &Path, path: &Path) -> Option<Vec<u8>> {
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    let directory = fs::File::open(root).unwrap();
    let how = OpenHow::new().flags(OFlag::O_RDONLY).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = fs::File::from(openat2(&directory, path, how).ok()?);
    if !file.metadata().unwrap().is_file() {
        return None;
    }
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut &file, &mut content).unwrap();
    Some(content)
}

#[test]
fn the_view_is_what_overlay_shows() {
    if !is_root() {
        return;
    }
    let mut differing = 0;
    for seed in 0..30 {
        let (directory, snapshots, chain) = layers(4, |index, path| {
            let mut random = Random(seed * 100 + u64::try_from(index).unwrap());
            scatter(&mut random, path, 0, &index.to_string());
        });
        let key = "k".parse().unwrap();
        let mounts = snapshots.prepare(&key, &chain, Durability::Volatile).unwrap();
        let view = snapshots.view(&chain).unwrap();
        let target = directory.path().join("t");
        in_mount_namespace(|| {
            perform(&mounts, &target);
            for path in paths().iter().skip(1) {
                assert_eq!(found(&view, path), shown(&target, path), "seed {seed} {path:?}");
                let ours = match view.read_file(path, 1 << 20) {
                    Ok(content) => content,
                    Err(Error::NotAFile { .. } | Error::Loop { .. }) => None,
                    Err(error) => panic!("seed {seed} {path:?}: {error}"),
                };
                assert_eq!(ours, read(&target, path), "seed {seed} {path:?}");
                differing += usize::from(ours.is_some());
            }
        });
    }
    assert!(differing > 100, "the trees held too few files to prove anything: {differing}");
}

#[test]
fn links_lead_nowhere_outside() {
    let (directory, snapshots, chain) = layers(1, |_, path| {
        fs::create_dir(path.join("etc")).unwrap();
        fs::write(path.join("etc/real"), "inside").unwrap();
        symlink("/etc/real", path.join("etc/absolute")).unwrap();
        symlink("../../../../etc/real", path.join("etc/up")).unwrap();
        symlink("/proc/self/root/etc/passwd", path.join("etc/magic")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
    });
    let view = snapshots.view(&chain).unwrap();
    let read = |path: &str| view.read_file(Path::new(path), 100);
    for path in ["etc/real", "/etc/absolute", "etc/up", "/../etc/./real", "etc/../etc/real"] {
        assert_eq!(read(path).unwrap().unwrap(), b"inside", "{path}");
    }
    assert_eq!(read("etc/magic").unwrap(), None);
    assert_eq!(read("etc/real/further").unwrap(), None);
    assert_eq!(read("absent").unwrap(), None);
    assert!(matches!(read("loop"), Err(Error::Loop { .. })));
    drop(directory);
}

/// teeth: crates/snapshot/src/view.rs: `match what(stat) {` → `match None::<&str> {`.
#[test]
fn i3_what_is_not_a_small_regular_file_is_refused_unopened() {
    if !is_root() {
        return;
    }
    let (_directory, snapshots, chain) = layers(1, |_, path| {
        mknod(&path.join("fifo"), SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap();
        mknod(&path.join("zero"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
        fs::create_dir(path.join("directory")).unwrap();
        symlink("/zero", path.join("passwd")).unwrap();
        let huge = fs::File::create(path.join("huge")).unwrap();
        huge.set_len(10 << 30).unwrap();
    });
    let view = snapshots.view(&chain).unwrap();
    let read = |path: &str| view.read_file(Path::new(path), 1 << 20);
    for (path, expected) in [
        ("fifo", "FIFO"),
        ("zero", "character device"),
        ("passwd", "character device"),
        ("directory", "directory"),
    ] {
        match read(path) {
            Err(Error::NotAFile { what, .. }) => assert_eq!(what, expected),
            other => panic!("{path}: {other:?}"),
        }
    }
    assert!(matches!(read("huge"), Err(Error::TooLarge { limit: 1_048_576, .. })));
}

/// Runs `work` while this process may have `most` files open.
fn with_open_files(most: u64, work: impl FnOnce()) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, hard).unwrap();
    work();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

#[test]
fn a_deep_path_through_many_layers_needs_few_descriptors() {
    let deep = "d/".repeat(40);
    let (_directory, snapshots, chain) = layers(20, |index, path| {
        fs::create_dir_all(path.join(&deep)).unwrap();
        fs::write(path.join(&deep).join("file"), index.to_string()).unwrap();
    });
    let view = snapshots.view(&chain).unwrap();
    let mut found = None;
    with_open_files(400, || found = Some(view.read_file(Path::new(&format!("{deep}file")), 10)));
    assert_eq!(found.unwrap().unwrap().as_deref(), Some(&b"19"[..]));
}
