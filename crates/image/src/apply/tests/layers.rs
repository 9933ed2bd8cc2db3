//! Well-formed layers.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use berth_snapshot::OPAQUE_XATTR;
use rustix::fs::lgetxattr;

use super::{Stack, is_root};
use crate::tar::build::{Fields, Tar};
use crate::{BadEntry, LayerError};

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    lgetxattr(path, OPAQUE_XATTR, &mut value[..]) == Ok(1) && value[0] == b'y'
}

/// Mode, owner, group, modification time.
fn looks(path: &Path) -> (u32, u32, u32, i64, i64) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime(), found.mtime_nsec())
}

#[test]
fn every_kind_of_entry_gets_what_its_header_says() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let owned = Fields { uid: 1000, gid: 2000, mtime: 123_456, ..Fields::default() };
    let entry = |name, kind, mode| Fields { name, kind, mode, ..owned.clone() };
    let tar = Tar::new()
        .entry(&entry(b"./", b'5', 0o751))
        .entry(&entry(b"dir/", b'5', 0o2770))
        .pax(&[("mtime", b"77.000000123"), ("SCHILY.xattr.user.k", b"v")])
        .entry(&Fields { data: b"content", ..entry(b"dir/setuid", b'0', 0o4755) })
        .entry(&Fields { link: b"dir/setuid", ..entry(b"hard", b'1', 0o4755) })
        .entry(&Fields { link: b"/dir/setuid", ..entry(b"soft", b'2', 0o777) })
        .entry(&entry(b"fifo", b'6', 0o622))
        .entry(&Fields { device: (1, 3), ..entry(b"null", b'3', 0o666) })
        .entry(&Fields { device: (7, 300), ..entry(b"loop", b'4', 0o660) });
    let root = stack.push(tar).unwrap();
    assert_eq!(looks(&root), (0o751, 1000, 2000, 123_456, 0));
    assert_eq!(looks(&root.join("dir")), (0o2770, 1000, 2000, 123_456, 0));
    assert_eq!(looks(&root.join("dir/setuid")), (0o4755, 1000, 2000, 77, 123));
    assert_eq!(fs::read(root.join("dir/setuid")).unwrap(), b"content");
    assert_eq!(looks(&root.join("soft")), (0o777, 1000, 2000, 123_456, 0));
    assert_eq!(fs::read_link(root.join("soft")).unwrap(), Path::new("/dir/setuid"));
    assert_eq!(looks(&root.join("fifo")), (0o622, 1000, 2000, 123_456, 0));
    assert_eq!(looks(&root.join("null")).0, 0o666);
    let device = |name| nix::sys::stat::stat(&root.join(name)).unwrap().st_rdev;
    assert_eq!(device("null"), nix::sys::stat::makedev(1, 3));
    assert_eq!(device("loop"), nix::sys::stat::makedev(7, 300));
    let inode = |name| fs::symlink_metadata(root.join(name)).unwrap().ino();
    assert_eq!(inode("hard"), inode("dir/setuid"));
    let mut value = [0; 8];
    assert_eq!(lgetxattr(root.join("hard"), c"user.k", &mut value[..]), Ok(1));
}

#[test]
fn a_capability_is_kept_and_overlays_own_attributes_are_not() {
    if !is_root() {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .entry(&Fields { name: b"f", uid: 7, mode: 0o755, ..Fields::default() })
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .directory("d", 0o755);
    let (_stack, root) = Stack::new().push_kept(tar);
    let mut value = [0; 64];
    let mut get = |name: &std::ffi::CStr| lgetxattr(root.join("f"), name, &mut value[..]);
    assert_eq!(get(c"security.capability"), Ok(capability.len()));
    for name in [OPAQUE_XATTR, c"trusted.overlay.redirect", c"user.overlay.opaque"] {
        assert_eq!(get(name), Err(rustix::io::Errno::NODATA), "{name:?}");
    }
    assert!(!is_opaque(&root.join("d")));
}

#[test]
fn a_directory_keeps_its_time_whatever_is_added_to_it_and_when() {
    if !is_root() {
        return;
    }
    let at = |name, mtime| Fields { name, kind: b'5', mode: 0o755, mtime, ..Fields::default() };
    let tar = Tar::new()
        .entry(&at(b"a/", 1))
        .entry(&at(b"a/b/", 2))
        .file("a/b/f", b"")
        .file("a/g", b"")
        .file("a/implied/f", b"")
        .file("late/f", b"")
        .entry(&at(b"late/", 3))
        .file("late/g", b"")
        .entry(&at(b"late/", 4))
        .entry(&at(b"./", 5))
        .file("top", b"");
    let (_stack, root) = Stack::new().push_kept(tar);
    for (path, time) in [("a", 1), ("a/b", 2), ("late", 4), (".", 5)] {
        assert_eq!(looks(&root.join(path)).3, time, "{path}");
    }
}

/// teeth: crates/image/src/apply/settle.rs: `copy_metadata(found` → skip it: 0755 root.
#[test]
fn implied_directories_look_as_they_do_below() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let directory = |name, mode, uid| Fields {
        name,
        kind: b'5',
        mode,
        uid,
        gid: uid,
        mtime: i64::from(uid),
        ..Fields::default()
    };
    let low = Tar::new()
        .entry(&directory(b"./", 0o700, 5))
        .entry(&directory(b"tmp", 0o1777, 1))
        .pax(&[("SCHILY.xattr.user.k", b"v")])
        .entry(&directory(b"home", 0o711, 2))
        .entry(&directory(b"home/user", 0o750, 3))
        .symlink("link", "home")
        .file("file", b"");
    stack.push(low).unwrap();
    let middle = Tar::new().entry(&directory(b"home", 0o755, 9));
    stack.push(middle).unwrap();
    let top = Tar::new()
        .file("tmp/x", b"")
        .file("home/user/.profile", b"")
        .file("new/deep/x", b"")
        .file("link/x", b"")
        .file("file/x", b"");
    let root = stack.push(top).unwrap();
    assert_eq!(looks(&root), (0o700, 5, 5, 5, 0));
    assert_eq!(looks(&root.join("tmp")), (0o1777, 1, 1, 1, 0));
    assert_eq!(looks(&root.join("home")), (0o755, 9, 9, 9, 0));
    assert_eq!(looks(&root.join("home/user")), (0o750, 3, 3, 3, 0));
    // Nothing, or no directory, lies below these; the new directory replaces it.
    for path in ["new", "new/deep", "link", "file"] {
        assert!(fs::symlink_metadata(root.join(path)).unwrap().is_dir(), "{path}");
        assert_eq!(looks(&root.join(path)), (0o755, 0, 0, 0, 0), "{path}");
    }
}

#[test]
fn the_same_archive_on_other_layers_implies_other_directories() {
    if !is_root() {
        return;
    }
    let archive = || Tar::new().file("d/f", b"");
    for mode in [0o700, 0o1777] {
        let mut stack = Stack::new();
        stack.push(Tar::new().directory("d", mode)).unwrap();
        let root = stack.push(archive()).unwrap();
        assert_eq!(looks(&root.join("d")).0, mode);
    }
}

#[test]
fn whiteouts_hide_what_lies_below_and_nothing_else() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let low = Tar::new().file("a/x", b"low").file("a/y", b"low").file("b/x", b"low");
    let low = low.file("c", b"low").file("d/x", b"low").file("e/x", b"low");
    stack.push(low).unwrap();
    let top = Tar::new()
        .file("a/.wh.x", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"top")
        .file(".wh.c", b"")
        // Hides, then makes anew: nothing of the old directory shows.
        .file(".wh.d", b"")
        .file("d/new", b"top")
        // Makes, then hides: the same.
        .file("e/new", b"top")
        .file(".wh.e", b"");
    let root = stack.push(top).unwrap();
    assert!(is_whiteout(&root.join("a/x")) && is_whiteout(&root.join("c")));
    assert!(["b", "d", "e"].iter().all(|name| is_opaque(&root.join(name))));
    assert!(!root.join("a/.wh.x").exists() && !root.join("b/.wh..wh..opq").exists());
    for (path, content) in [
        ("a/x", None),
        ("a/y", Some("low")),
        ("b/x", None),
        ("b/new", Some("top")),
        ("c", None),
        ("d/x", None),
        ("d/new", Some("top")),
        ("e/x", None),
        ("e/new", Some("top")),
    ] {
        assert_eq!(stack.read(path).as_deref(), content, "{path}");
    }
}

#[test]
fn a_whiteout_that_hides_nothing_does_not_show() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    let bottom = stack.push(Tar::new().file(".wh.x", b"").file("d/.wh..wh..opq", b"")).unwrap();
    assert_eq!(fs::read_dir(&bottom).unwrap().count(), 0);
    stack.push(Tar::new().file("o/a", b"")).unwrap();
    let tar = Tar::new().file("new/.wh.x", b"").file("o/.wh..wh..opq", b"").file("o/.wh.a", b"");
    let root = stack.push(tar).unwrap();
    for directory in ["new", "o"] {
        assert_eq!(fs::read_dir(root.join(directory)).unwrap().count(), 0, "{directory}");
    }
}

#[test]
fn a_device_that_overlay_takes_for_a_whiteout_is_one() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    stack.push(Tar::new().file("f", b"low")).unwrap();
    stack.push(Tar::new().entry(&Fields { name: b"f", kind: b'3', ..Fields::default() })).unwrap();
    assert_eq!(stack.read("f"), None);
}

#[test]
fn storage_drivers_own_entries_are_left_out() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().file(".wh..wh.aufs", b"").file(".wh..wh.plnk/1.2", b"").file("f", b"");
    let (_stack, root) = Stack::new().push_kept(tar);
    assert_eq!(fs::read_dir(root).unwrap().count(), 1);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    if !is_root() {
        return;
    }
    let tar = Tar::new()
        .file("a", b"first")
        .file("a", b"second")
        .file("b", b"")
        .directory("b", 0o755)
        .file("b/in", b"")
        .directory("c", 0o755)
        .file("c/deep/er/f", b"")
        .symlink("c", "a")
        .symlink("d", "c")
        .file("d", b"no longer a link");
    let (_stack, root) = Stack::new().push_kept(tar);
    assert_eq!(fs::read(root.join("a")).unwrap(), b"second");
    assert!(root.join("b/in").exists());
    assert_eq!(fs::read_link(root.join("c")).unwrap(), Path::new("a"));
    assert!(fs::symlink_metadata(root.join("d")).unwrap().is_file());
}

#[test]
fn an_entry_behind_a_link_of_its_own_layer_lands_where_the_link_leads() {
    if !is_root() {
        return;
    }
    let tar = Tar::new()
        .symlink("lib", "usr/lib")
        .file("lib/a", b"a")
        .symlink("run", "/var/run")
        .file("run/b", b"b")
        .symlink("up", "../../../etc")
        .file("up/c", b"c")
        .hard_link("linked", "run/b");
    let (_stack, root) = Stack::new().push_kept(tar);
    for path in ["usr/lib/a", "var/run/b", "etc/c", "linked"] {
        assert!(fs::symlink_metadata(root.join(path)).unwrap().is_file(), "{path}");
    }
}

#[test]
fn a_hard_link_out_of_its_layer_is_refused_by_name() {
    if !is_root() {
        return;
    }
    let mut stack = Stack::new();
    stack.push(Tar::new().file("f", b"low").file("d/f", b"")).unwrap();
    for target in ["f", "absent", "d/f", "", ".", "/", "../f", "/f"] {
        let error = stack.push(Tar::new().hard_link("l", target)).unwrap_err();
        match error {
            LayerError::Entry { path, source: BadEntry::HardLinkOutside(named) } => {
                assert_eq!((path.as_str(), named.as_str()), ("l", target));
            }
            other => panic!("{target}: {other:?}"),
        }
    }
    let hidden = Tar::new().file(".wh.f", b"").hard_link("l", "f");
    assert!(matches!(
        stack.push(hidden).unwrap_err(),
        LayerError::Entry { source: BadEntry::HardLinkOutside(_), .. }
    ));
}

#[test]
fn a_hard_link_to_itself_is_harmless_and_one_to_a_directory_is_not_made() {
    if !is_root() {
        return;
    }
    let (mut stack, root) = Stack::new().push_kept(Tar::new().file("f", b"x").hard_link("f", "f"));
    assert_eq!(fs::read(root.join("f")).unwrap(), b"x");
    let error = stack.push(Tar::new().directory("d", 0o755).hard_link("l", "d")).unwrap_err();
    assert!(matches!(error, LayerError::Entry { source: BadEntry::HardLinkDirectory(_), .. }));
}
