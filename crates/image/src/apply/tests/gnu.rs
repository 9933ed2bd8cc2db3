//! Trees packed by GNU tar in each of its formats and unpacked here must be the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{XattrFlags, lgetxattr, setxattr};
use tempfile::TempDir;

use super::{Stack, is_root};
use crate::tar::build::Tar;

/// A tree with something of everything that fits `format`.
fn plant(root: &Path, format: &str) {
    let long = if matches!(format, "v7") { 20 } else { 90 };
    let deep = root.join("d".repeat(long)).join("e".repeat(long / 2));
    fs::create_dir_all(&deep).unwrap();
    for size in [0, 1, 511, 512, 513, 1 << 20, (1 << 20) + 7] {
        fs::write(deep.join(format!("file-{size}")), vec![b'x'; size]).unwrap();
    }
    if matches!(format, "gnu" | "pax") {
        let longer = root.join("n".repeat(200)).join("m".repeat(255));
        fs::create_dir_all(&longer).unwrap();
        fs::write(longer.join("deep"), "deep").unwrap();
        symlink("t".repeat(300), root.join("long-link")).unwrap();
    }
    if format != "v7" {
        mknod(&root.join("fifo"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap();
        let null = makedev(1, 3);
        mknod(&root.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), null).unwrap();
    }
    if format == "pax" {
        let file = deep.join("file-512");
        setxattr(&file, c"user.key", b"va\0lue\n", XattrFlags::empty()).unwrap();
    }
    symlink("../target", root.join("link")).unwrap();
    fs::hard_link(deep.join("file-513"), root.join("hard")).unwrap();
    std::os::unix::fs::chown(root.join("hard"), Some(1234), Some(5678)).unwrap();
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        &deep.join("file-1"),
        Mode::from_bits_truncate(0o6755),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .unwrap();
}

/// Everything tar can carry, by path.
fn describe(root: &Path, nanoseconds: bool) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let content = match found.file_type() {
            kind if kind.is_file() => {
                format!("{:?}", berth_model::Digest::of(&fs::read(&path).unwrap()))
            }
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            kind if kind.is_dir() => {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
            _ => found.rdev().to_string(),
        };
        let mut value = [0; 64];
        let xattr = lgetxattr(&path, c"user.key", &mut value[..]).ok();
        let links = if found.is_dir() { 0 } else { found.nlink() };
        let time = (found.mtime(), if nanoseconds { found.mtime_nsec() } else { 0 });
        let shown = format!(
            "{:o} {}:{} {links} {time:?} {content} {xattr:?}",
            found.mode(),
            found.uid(),
            found.gid()
        );
        all.insert(path.strip_prefix(root).unwrap().to_owned(), shown);
    }
    all
}

#[test]
fn i2_what_gnu_tar_packs_is_unpacked_alike() {
    if !is_root() {
        return;
    }
    if Command::new("tar").arg("--version").output().is_err() {
        eprintln!("skipped: needs GNU tar");
        return;
    }
    for format in ["v7", "ustar", "gnu", "pax"] {
        let tree = TempDir::new().unwrap();
        plant(tree.path(), format);
        let mut command = Command::new("tar");
        command.args(["-c", "--numeric-owner", "--format", format, "-C"]).arg(tree.path());
        if format == "pax" {
            command.args(["--xattrs", "--xattrs-include=user.*"]);
        }
        let packed = command.arg(".").output().unwrap();
        assert!(packed.status.success(), "{format}: {packed:?}");
        let (_stack, root) = Stack::new().push_kept(Tar::new().raw(&packed.stdout));
        let precise = format == "pax";
        assert_eq!(describe(&root, precise), describe(tree.path(), precise), "{format}");
    }
}
