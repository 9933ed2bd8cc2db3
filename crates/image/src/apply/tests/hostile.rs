//! Hostile layers: whatever they hold, nothing outside their directory changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Stack, is_root};
use crate::tar::build::{Fields, Tar};
use crate::{BadArchive, BadEntry, LayerError, Limits};

/// A tree beside the snapshots that no layer may touch.
struct Canary(PathBuf);

/// Everything about a tree that a layer could change.
type State = BTreeMap<PathBuf, (u32, u32, u32, u64, i64, i64, Vec<u8>)>;

impl Canary {
    fn new(parent: &Path) -> Self {
        let root = parent.join("canary");
        fs::create_dir_all(root.join("etc/deep")).unwrap();
        fs::write(root.join("etc/passwd"), "root").unwrap();
        fs::write(root.join("etc/deep/file"), "deep").unwrap();
        symlink("etc", root.join("link")).unwrap();
        Self(root)
    }

    fn state(&self) -> State {
        let mut state = State::new();
        let mut pending = vec![self.0.clone()];
        while let Some(path) = pending.pop() {
            let found = fs::symlink_metadata(&path).unwrap();
            let content = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if found.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
            let times = (found.mtime(), found.ctime_nsec());
            state.insert(path, (mode, uid, gid, found.nlink(), times.0, times.1, content));
        }
        state
    }
}

/// Paths that try to lead to `/canary/etc/passwd`-like places, relative to `outside`.
fn escapes(canary: &Path) -> Vec<String> {
    let absolute = canary.to_str().unwrap().to_owned();
    let mut all = vec![absolute.clone(), format!("{absolute}/etc/passwd"), "/".into(), ".".into()];
    for depth in 1..9 {
        let up = "../".repeat(depth);
        all.extend([
            format!("{up}canary"),
            format!("{up}canary/etc/passwd"),
            format!("{up}{}", &absolute[1..]),
            format!("a/{up}canary/etc/deep/file"),
            up,
        ]);
    }
    all.extend(["..", "a/..", "a/../..", "./..", "//..", "/../x", "..."].map(str::to_owned));
    all
}

/// Archives that use `escape` as a name, a target, a parent, a whiteout.
fn archives(escape: &str) -> Vec<Tar> {
    let fields = Fields { name: escape.as_bytes(), ..Fields::default() };
    let fits = escape.len() <= 90;
    let name = |tar: Tar, kind: u8| match fits {
        true => tar.entry(&Fields { kind, link: b"x", ..fields.clone() }),
        false => tar.pax(&[("path", escape.as_bytes())]).entry(&Fields {
            name: b"n",
            kind,
            link: b"x",
            ..Fields::default()
        }),
    };
    let link = |tar: Tar, kind: u8, from: &str| {
        tar.pax(&[("linkpath", escape.as_bytes())]).entry(&Fields {
            name: from.as_bytes(),
            kind,
            ..Fields::default()
        })
    };
    let mut all: Vec<Tar> = b"0123456".iter().map(|kind| name(Tar::new(), *kind)).collect();
    let through = ["l/f", "l/etc/passwd", "l/../../x", "l/.wh.etc", "l/.wh..wh..opq", "l"];
    for path in through {
        let linked = link(Tar::new().directory("d", 0o755), b'2', "l");
        all.push(linked.clone().file(path, b"overwritten"));
        all.push(linked.clone().directory(path, 0o777));
        all.push(linked.clone().symlink(path, "/"));
        all.push(linked.clone().hard_link("h", path));
        all.push(linked.hard_link(path, "d/f"));
    }
    all.push(link(Tar::new(), b'1', "h").file("h", b"overwritten"));
    // Two links in a row, and one that is exchanged for a directory and back.
    all.push(link(Tar::new().symlink("b", "a"), b'2', "a").file("b/etc/passwd", b"x"));
    let swapped = Tar::new().directory("l", 0o755).file("l/f", b"");
    all.push(link(swapped, b'2', "l").file("l/f", b"overwritten").directory("l", 0o700));
    for whiteout in [".wh.", ".wh..", ".wh...", ".wh..wh..", "a/.wh...", ".wh.x/y", "l/.wh..."] {
        all.push(link(Tar::new(), b'2', "l").file(whiteout, b""));
    }
    all
}

/// teeth: crates/image/src/apply/path.rs: `b".." => return Err(` → `b".." if false => Err(`.
#[test]
fn i1_nothing_outside_its_directory_is_touched_by_any_layer() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let canary = Canary::new(stack.directory.path());
    let before = canary.state();
    let own = ["s", "s/ingest", "s/l", "s/committed"].map(|name| stack.directory.path().join(name));
    let guarded = || own.clone().map(|path| fs::metadata(path).unwrap().mode());
    let modes = guarded();
    // Lower layers that lead out, so that a layer above may try to go through them.
    let low = Tar::new().symlink("l", "/").symlink("d", "../..").file("a/f", b"");
    stack.push(low).unwrap();
    let (mut tried, mut taken) = (0, 0);
    for escape in escapes(&canary.0) {
        for tar in archives(&escape) {
            tried += 1;
            if stack.push(tar).is_ok() {
                taken += 1;
                stack.chain.truncate(1);
            }
        }
    }
    assert_eq!(canary.state(), before);
    assert_eq!(guarded(), modes);
    let beside: Vec<_> = fs::read_dir(stack.directory.path()).unwrap().collect();
    assert_eq!(beside.len(), 2, "{beside:?}");
    assert!(tried >= 300, "{tried}");
    assert!(taken > 100 && taken < tried, "{taken} of {tried}");
    assert_eq!(fs::read_dir(stack.snapshots.root().join("ingest")).unwrap().count(), 0);
}

#[track_caller]
fn check(tar: Tar, expected: impl FnOnce(&LayerError) -> bool) {
    if !is_root() {
        return;
    }
    let error = Stack::new().push(tar).unwrap_err();
    assert!(expected(&error), "{error:?}");
}

fn is(error: &LayerError, expected: &BadEntry) -> bool {
    matches!(error, LayerError::Entry { source, .. } if source == expected)
}

#[test]
fn paths_beyond_the_limits_are_refused() {
    let long = |path: &str| Tar::new().pax(&[("path", path.as_bytes())]).directory("n", 0o755);
    check(long(&"a/".repeat(257)), |error| is(error, &BadEntry::PathTooDeep));
    check(long(&"a".repeat(256)), |error| is(error, &BadEntry::PathTooLong));
    check(long(&format!("{}/a", "./".repeat(2048))), |error| is(error, &BadEntry::PathTooLong));
}

#[test]
fn the_longest_path_that_is_allowed_is_made() {
    if !is_root() {
        return;
    }
    let name = "n".repeat(255);
    let path = [name.as_str(); 16].join("/");
    assert_eq!(path.len(), 4095);
    let tar = Tar::new().pax(&[("path", path.as_bytes())]).file("n", b"deep");
    let mut stack = Stack::new();
    stack.push(tar).unwrap();
    assert_eq!(stack.read(&path).as_deref(), Some("deep"));
}

#[test]
fn a_root_that_is_no_directory_is_refused() {
    for name in ["/", ".", "./", "//."] {
        check(Tar::new().symlink(name, "/etc"), |error| is(error, &BadEntry::Root));
    }
}

#[test]
fn a_file_is_no_parent() {
    let parent = BadEntry::Parent("f".to_owned());
    check(Tar::new().file("f", b"").file("f/g", b""), |error| is(error, &parent));
}

#[test]
fn links_in_a_circle_are_refused() {
    let tar = Tar::new().symlink("a", "b").symlink("b", "a").file("a/f", b"");
    check(tar, |error| is(error, &BadEntry::Loop));
    // Each link doubles the number of links after it.
    let mut tar = Tar::new();
    for index in 0..30 {
        let next = format!("l{}/../l{}", index + 1, index + 1);
        tar = tar.symlink(&format!("l{index}"), &next);
    }
    check(tar.file("l0/f", b""), |error| is(error, &BadEntry::Loop));
}

#[test]
fn link_targets_beyond_the_kernels_are_refused() {
    check(Tar::new().symlink("l", ""), |error| is(error, &BadEntry::LinkTarget));
    let long = "a".repeat(4096);
    let tar = Tar::new().pax(&[("linkpath", long.as_bytes())]).symlink("l", "x");
    check(tar, |error| is(error, &BadEntry::LinkTarget));
}

#[test]
fn devices_beyond_the_kernels_are_refused() {
    for device in [(4096, 0), (0, 1 << 20)] {
        let tar = Tar::new().entry(&Fields { name: b"d", kind: b'3', device, ..Fields::default() });
        check(tar, |error| is(error, &BadEntry::Device));
    }
}

#[test]
fn attributes_beyond_the_limit_are_refused() {
    let value = vec![7; (64 << 10) + 1];
    let tar = Tar::new().pax(&[("SCHILY.xattr.user.large", &value)]).file("f", b"");
    check(tar, |error| is(error, &BadEntry::Xattr("user.large".to_owned())));
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.a/b"] {
        check(Tar::new().file(name, b""), |error| is(error, &BadEntry::Whiteout));
    }
}

#[test]
fn sizes_that_lie_are_refused() {
    let size = |size| Fields { name: b"f", size: Some(size), data: b"short", ..Fields::default() };
    check(Tar::new().entry(&size(*b"77777777777\0")), |error| {
        matches!(error, LayerError::Archive(BadArchive::Truncated))
    });
    check(Tar::new().entry(&size([0xff; 12])), |error| {
        matches!(error, LayerError::Archive(BadArchive::Number("size")))
    });
}

#[test]
fn entries_beyond_the_limit_are_refused_also_implied_ones() {
    if !is_root() {
        return;
    }
    let limits = Limits { entries: 10, ..Limits::default() };
    let tar = |depth| Tar::new().file(&format!("{}f", "d/".repeat(depth)), b"");
    assert!(Stack::new().push_within(tar(9), &limits).is_ok());
    let error = Stack::new().push_within(tar(10), &limits).unwrap_err();
    assert!(matches!(error, LayerError::Entries(10)));
}

/// How long this thread was on a processor (sched-stats in the kernel's documentation): what
/// else runs on the machine does not count.
fn worked() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn i3_a_flood_of_opaque_marks_ends_soon() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    stack.push(Tar::new().file("d/f", b"")).unwrap();
    let one = Tar::new().file("d/.wh..wh..opq", b"").bytes();
    let before = worked();
    stack.push(Tar::new().raw(&one.repeat(100_000))).unwrap();
    assert!(worked() - before < Duration::from_secs(10));
}

#[test]
fn i3_bad_layers_leave_neither_descriptors_nor_directories() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let own = stack.snapshots.root().to_owned();
    for _ in 0..300 {
        stack.push(Tar::new().file("a/b/c", b"").file("../x", b"")).unwrap_err();
    }
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let ours =
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|to| to.starts_with(&own));
    assert!(ours.count() <= 2);
    for place in ["ingest", "trash", "l"] {
        assert_eq!(fs::read_dir(own.join(place)).unwrap().count(), 0, "{place}");
    }
}
