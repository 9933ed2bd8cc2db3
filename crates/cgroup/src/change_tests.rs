use std::collections::BTreeSet;

use super::*;
use crate::hierarchy::{Legacy, Unified};
use crate::{CpuLimits, MemoryLimits};

/// A host with one cgroup, `/a`, with these files.
fn host(v2: bool, files: &[(&str, &str)]) -> (tempfile::TempDir, Mounts, CgroupPath) {
    use Controller::{Cpu, Cpuset, Memory};
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("a")).unwrap();
    for (file, text) in files {
        std::fs::write(root.path().join("a").join(file), text).unwrap();
    }
    let (mount, controllers) = (root.path().to_owned(), BTreeSet::from([Cpu, Cpuset, Memory]));
    let mounts = match v2 {
        true => Mounts { legacy: vec![], unified: Some(Unified { mount, controllers }) },
        false => Mounts { legacy: vec![Legacy { mount, controllers }], unified: None },
    };
    (root, mounts, CgroupPath::new("/a").unwrap())
}

fn wanted(cpus: &str) -> Limits {
    Limits {
        cpu: CpuLimits { shares: Some(512), quota: Some(5000), ..CpuLimits::default() },
        cpus: Some(cpus.to_owned()),
        memory: MemoryLimits { limit: Some(100), ..MemoryLimits::default() },
        ..Limits::default()
    }
}

/// teeth: crates/cgroup/src/change.rs: `before.restore().ok();` → `{}`
#[test]
fn what_was_changed_before_a_refusal_is_as_it_was() {
    // No `memory.limit_in_bytes`: the last of the limits cannot be set.
    // A file of a disk keeps what is behind a shorter value: here they are as long.
    let files = [
        ("cpu.shares", "128"),
        ("cpu.cfs_quota_us", "9000"),
        ("cpuset.cpus", ""),
        ("x", "untouched"),
    ];
    let (root, mounts, path) = host(false, &files);
    let refused = change(&mounts, &path, &wanted("1")).unwrap_err();
    assert!(matches!(refused, Error::MissingFile { .. }), "{refused}");
    for (file, text) in files {
        let now = std::fs::read_to_string(root.path().join("a").join(file)).unwrap();
        assert_eq!(now.trim(), text, "{file}");
    }
}

#[test]
fn what_was_before_can_be_put_back_later() {
    let files = [
        ("cpu.weight", "100"),
        ("cpu.max", "9000 100000"),
        ("cpuset.cpus", "0-3"),
        ("memory.max", "max"),
        ("memory.current", "70"),
        ("memory.stat", "inactive_file 1\n"),
    ];
    let (root, mounts, path) = host(true, &files);
    let before = change(&mounts, &path, &wanted("0-1")).unwrap();
    let read = |file: &str| std::fs::read_to_string(root.path().join("a").join(file)).unwrap();
    assert_eq!((read("cpuset.cpus"), read("memory.max")), ("0-1".into(), "100".into()));
    before.restore().unwrap();
    for (file, text) in files {
        assert_eq!(read(file).trim(), text.trim(), "{file}");
    }
}

/// teeth: crates/cgroup/src/change.rs: `usage > limit` → `false`
#[test]
fn v2_is_not_asked_for_less_memory_than_is_in_use() {
    let check = |current: &str| {
        let files = [
            ("memory.max", "max"),
            ("memory.current", current),
            ("memory.stat", "anon 5\ninactive_file 50\n"),
        ];
        let (_root, mounts, path) = host(true, &files);
        let memory = MemoryLimits { limit: Some(100), ..MemoryLimits::default() };
        change(&mounts, &path, &Limits { memory, ..Limits::default() }).map(drop)
    };
    check("150").unwrap();
    let refused = check("151").unwrap_err();
    assert!(matches!(refused, Error::MemoryInUse { limit: 100, usage: 101 }), "{refused}");
}

/// teeth: crates/cgroup/src/change.rs: `.filter_map(bytes))` → `.filter_map(|_| None))`
#[test]
fn v2_is_not_asked_for_it_by_the_name_of_the_file_either() {
    let check = |typed: Option<i64>, named: &str| {
        let files =
            [("memory.max", "max"), ("memory.current", "2000"), ("memory.stat", "anon 5\n")];
        let (_root, mounts, path) = host(true, &files);
        let memory = MemoryLimits { limit: typed, ..MemoryLimits::default() };
        let unified = [("memory.max".to_owned(), named.to_owned())].into();
        change(&mounts, &path, &Limits { memory, unified, ..Limits::default() }).map(drop)
    };
    for enough in ["2000", "2k", "max", "0x7d0", "max\n1M\n"] {
        check(None, enough).unwrap();
    }
    check(Some(1), "2000").unwrap_err();
    for little in ["1999", "1K\n", "0", "01750", "0x7cf", "1999\nmax"] {
        for typed in [None, Some(4000)] {
            let refused = check(typed, little).unwrap_err();
            assert!(matches!(refused, Error::MemoryInUse { usage: 2000, .. }), "{little}");
        }
    }
}

#[test]
fn bytes_are_those_that_the_kernel_reads() {
    for (text, expected) in [
        ("0", Some(0)),
        ("0k", Some(0)),
        ("4096", Some(4096)),
        ("4K", Some(4096)),
        ("1g", Some(1 << 30)),
        ("0x10", Some(16)),
        ("010", Some(8)),
        ("99999999999999999999", Some(0)),
        ("15E", Some(i64::MAX)),
        ("16E", Some(0)),
        ("max", None),
        ("", Some(0)),
        (" ", Some(0)),
        ("-1", None),
        ("1KB", None),
        ("1.5K", None),
        ("1x", None),
    ] {
        assert_eq!(bytes(text), expected, "{text:?}");
    }
}
