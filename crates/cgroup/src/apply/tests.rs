//! Limits against directories of plain files: the values, not what a kernel makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::*;
use crate::MemoryLimits;
use crate::hierarchy::{Legacy, Unified};

const FILES: [&str; 26] = [
    "cpu.shares",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.cfs_burst_us",
    "cpu.idle",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "memory.high",
    "io.max",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.2MB.rsvd.limit_in_bytes",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "memory.usage_in_bytes",
    "cgroup.controllers",
    "cgroup.subtree_control",
];

/// A host of one version whose controllers are all in one directory.
struct Host {
    root: tempfile::TempDir,
    mounts: Mounts,
    path: CgroupPath,
}

impl Host {
    fn new(version: Version) -> Self {
        use Controller::{Cpu, Cpuset, Hugetlb, Memory, Pids};
        let root = tempfile::tempdir().unwrap();
        let path = CgroupPath::new("/a").unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        for file in FILES {
            std::fs::write(root.path().join("a").join(file), "").unwrap();
        }
        let mount = root.path().to_owned();
        let controllers = BTreeSet::from([Cpu, Cpuset, Hugetlb, Memory, Pids]);
        let mounts = match version {
            Version::V2 => Mounts { legacy: vec![], unified: Some(Unified { mount, controllers }) },
            _ => Mounts { legacy: vec![Legacy { mount, controllers }], unified: None },
        };
        Self { root, mounts, path }
    }

    fn set(&self, file: &str, value: &str) {
        std::fs::write(self.file(file), value).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(self.root.path()).join("a").join(name)
    }

    fn apply(&self, limits: &Limits) -> Result<(), Error> {
        apply(&self.mounts, &self.path, limits)
    }

    /// What every file that was written has now.
    fn written(&self) -> BTreeMap<&'static str, String> {
        FILES
            .into_iter()
            .map(|file| (file, std::fs::read_to_string(self.file(file)).unwrap()))
            .filter(|(_, text)| !text.is_empty())
            .collect()
    }
}

#[track_caller]
fn check(version: Version, limits: &Limits, expected: &[(&str, &str)]) {
    let host = Host::new(version);
    if version != Version::V2 {
        host.set("memory.limit_in_bytes", "0");
    }
    host.apply(limits).unwrap();
    let mut written = host.written();
    if limits.memory.limit.is_none() {
        written.remove("memory.limit_in_bytes");
    }
    let expected: BTreeMap<&str, String> =
        expected.iter().map(|(file, value)| (*file, (*value).to_owned())).collect();
    assert_eq!(written, expected);
}

fn memory(limit: i64, swap: i64) -> Limits {
    let memory = MemoryLimits { limit: Some(limit), swap: Some(swap), reservation: None };
    Limits { memory, ..Limits::default() }
}

fn everything() -> Limits {
    Limits {
        cpu: CpuLimits {
            shares: Some(512),
            quota: Some(20_000),
            period: Some(50_000),
            burst: Some(1000),
            idle: Some(false),
        },
        cpus: Some("0-1".into()),
        mems: Some("0".into()),
        memory: MemoryLimits { limit: Some(100), swap: Some(150), reservation: Some(50) },
        pids: Some(7),
        hugepages: BTreeMap::from([("2MB".into(), 4_194_304)]),
        unified: BTreeMap::new(),
        devices: None,
    }
}

#[test]
fn v1_gets_every_limit_as_it_is() {
    check(
        Version::V1,
        &everything(),
        &[
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "20000"),
            ("cpu.cfs_period_us", "50000"),
            ("cpu.cfs_burst_us", "1000"),
            ("cpu.idle", "0"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("memory.limit_in_bytes", "100"),
            ("memory.memsw.limit_in_bytes", "150"),
            ("memory.soft_limit_in_bytes", "50"),
            ("pids.max", "7"),
            ("hugetlb.2MB.limit_in_bytes", "4194304"),
            ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ],
    );
}

#[test]
fn v2_gets_weights_and_swap_alone() {
    check(
        Version::V2,
        &everything(),
        &[
            ("cpu.weight", "59"),
            ("cpu.max", "20000 50000"),
            ("cpu.max.burst", "1000"),
            ("cpu.idle", "0"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("memory.low", "50"),
            ("pids.max", "7"),
            ("hugetlb.2MB.max", "4194304"),
            ("hugetlb.2MB.rsvd.max", "4194304"),
        ],
    );
}

#[test]
fn what_is_not_set_is_not_written() {
    let zeros = Limits {
        cpu: CpuLimits { shares: Some(0), quota: Some(0), period: Some(0), ..CpuLimits::default() },
        cpus: Some(String::new()),
        ..memory(0, 0)
    };
    let nowhere = Mounts::default();
    let path = CgroupPath::new("/a").unwrap();
    for limits in [Limits::default(), zeros] {
        check(Version::V2, &limits, &[]);
        apply(&nowhere, &path, &limits).unwrap();
    }
}

#[test]
fn no_limit_is_said_in_each_versions_words() {
    let limits = Limits {
        cpu: CpuLimits { quota: Some(-1), ..CpuLimits::default() },
        pids: Some(-1),
        ..memory(-1, -1)
    };
    check(
        Version::V2,
        &limits,
        &[
            ("cpu.max", "max 100000"),
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("pids.max", "max"),
        ],
    );
    check(
        Version::V1,
        &limits,
        &[
            ("cpu.cfs_quota_us", "-1"),
            ("memory.limit_in_bytes", "-1"),
            ("memory.memsw.limit_in_bytes", "-1"),
            ("pids.max", "max"),
        ],
    );
    check(Version::V2, &Limits { pids: Some(0), ..Limits::default() }, &[("pids.max", "1")]);
    // Equal limits of memory and both mean: no swap.
    let equal = [("memory.max", "9"), ("memory.swap.max", "0")];
    check(Version::V2, &memory(9, 9), &equal);
}

#[test]
fn swap_that_is_not_accounted_matters_only_when_it_is_given() {
    let host = Host::new(Version::V2);
    std::fs::remove_file(host.file("memory.swap.max")).unwrap();
    host.apply(&memory(9, 9)).unwrap();
    host.apply(&memory(9, -1)).unwrap();
    assert!(matches!(host.apply(&memory(9, 10)), Err(Error::MissingFile { .. })));
}

#[test]
fn an_absent_controller_is_named() {
    let path = CgroupPath::new("/a").unwrap();
    let limits = Limits { pids: Some(1), ..Limits::default() };
    let error = apply(&Mounts::default(), &path, &limits).unwrap_err();
    assert!(matches!(error, Error::MissingController(Controller::Pids)));
    assert!(error.to_string().contains("pids"));
    let devices = Limits { devices: Some(vec![]), ..Limits::default() };
    let error = apply(&Mounts::default(), &path, &devices).unwrap_err();
    assert!(matches!(error, Error::MissingController(Controller::Devices)));
}

/// kubelet sends a limit for each size of pages that the node has.
///
/// teeth: crates/cgroup/src/apply.rs: `return if limit == 0 {` → `return if false {`
/// teeth: crates/cgroup/src/apply.rs: `return if limit == 0 {` → `return if true {`
#[test]
fn no_huge_pages_are_no_limit_that_a_host_without_them_lacks() {
    let path = CgroupPath::new("/a").unwrap();
    let of = |limit| Limits { hugepages: [("2MB".to_owned(), limit)].into(), ..Limits::default() };
    apply(&Mounts::default(), &path, &of(0)).unwrap();
    let error = apply(&Mounts::default(), &path, &of(1)).unwrap_err();
    assert!(matches!(error, Error::MissingController(Controller::Hugetlb)));
}

#[test]
fn limits_that_contradict_themselves_are_refused() {
    let shares = |shares| Limits {
        cpu: CpuLimits { shares: Some(shares), ..CpuLimits::default() },
        ..Limits::default()
    };
    let pages = |size: &str| Limits {
        hugepages: BTreeMap::from([(size.to_owned(), 1)]),
        ..Limits::default()
    };
    let swap_alone = Limits {
        memory: MemoryLimits { swap: Some(5), ..MemoryLimits::default() },
        ..Limits::default()
    };
    let host = Host::new(Version::V2);
    for limits in [
        shares(1),
        shares(262_145),
        memory(10, 9),
        memory(-2, 0),
        swap_alone,
        pages("2M"),
        pages("../2MB"),
        pages("MB"),
        pages("2mb"),
    ] {
        let error = host.apply(&limits).unwrap_err();
        assert!(matches!(error, Error::InvalidLimit { .. }), "{limits:?}: {error}");
    }
    assert!(host.written().is_empty());
}

#[test]
fn files_of_v2_can_be_named_on_v2_only() {
    let unified = |name: &str, value: &str| Limits {
        unified: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        ..Limits::default()
    };
    let host = Host::new(Version::V2);
    host.apply(&unified("memory.high", "5")).unwrap();
    assert_eq!(host.written(), BTreeMap::from([("memory.high", "5".to_owned())]));
    let missing = |file: &str, value: &str| {
        let refused = host.apply(&unified(file, value)).unwrap_err();
        assert!(matches!(refused, Error::MissingFile { .. }), "{refused}");
    };
    missing("memory.zswap.max", "5");
    // Without swap accounting there is none to be given, and none to be forbidden.
    std::fs::remove_file(host.file("memory.swap.max")).unwrap();
    missing("memory.swap.max", "5");
    for value in ["0", "max\n"] {
        host.apply(&unified("memory.swap.max", value)).unwrap();
    }
    for refused in [
        host.apply(&unified("cgroup.procs", "1")),
        Host::new(Version::V1).apply(&unified("memory.high", "5")),
    ] {
        assert!(matches!(refused, Err(Error::InvalidLimit { .. })));
    }
}
