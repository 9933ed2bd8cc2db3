//! Against files as kernels write them: v2's are those of 6.x, since the machine that runs
//! the tests may have v1 only.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use berth_model::stats::{DeviceIo, HugePages, Pressure, Stall};

use super::details::size_name;
use super::*;
use crate::hierarchy::{Legacy, Unified};
use crate::{Cgroup, Meter};

const V2: &[(&str, &str)] = &[
    (
        "cpu.stat",
        "usage_usec 5012345\nuser_usec 4000001\nsystem_usec 1012344\nnice_usec 0\n\
         core_sched.force_idle_usec 0\nnr_periods 120\nnr_throttled 7\nthrottled_usec 654321\n\
         nr_bursts 0\nburst_usec 0\n",
    ),
    ("cpu.weight", "39\n"),
    ("cpu.max", "20000 100000\n"),
    (
        "cpu.pressure",
        "some avg10=1.50 avg60=0.75 avg300=0.10 total=123456\n\
                      full avg10=0.50 avg60=0.25 avg300=0.05 total=23456\n",
    ),
    ("memory.current", "104857600\n"),
    ("memory.max", "268435456\n"),
    ("memory.min", "0\n"),
    ("memory.peak", "157286400\n"),
    ("memory.swap.current", "4096\n"),
    ("memory.swap.max", "1048576\n"),
    ("memory.events", "low 0\nhigh 0\nmax 11\noom 2\noom_kill 3\noom_group_kill 0\n"),
    (
        "memory.stat",
        "anon 52428800\nfile 41943040\nkernel 8388608\nkernel_stack 65536\npagetables 131072\n\
         sec_pagetables 0\npercpu 4096\nsock 0\nvmalloc 0\nshmem 0\nzswap 0\nzswapped 0\n\
         file_mapped 2097152\nfile_dirty 4096\nfile_writeback 0\nswapcached 0\nanon_thp 0\n\
         file_thp 0\nshmem_thp 0\ninactive_anon 52424704\nactive_anon 4096\n\
         inactive_file 31457280\nactive_file 10485760\nunevictable 0\nslab_reclaimable 4194304\n\
         slab_unreclaimable 1048576\nslab 5242880\nworkingset_refault_anon 0\n\
         workingset_refault_file 0\npgscan 0\npgsteal 0\npgfault 9001\npgmajfault 42\n",
    ),
    (
        "memory.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n\
                         full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    ),
    (
        "io.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\n\
                     full avg10=0.00 avg60=0.00 avg300=0.00 total=66\n",
    ),
    (
        "io.stat",
        "259:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n\
         8:16 rbytes=90430464 wbytes=0 rios=8950 wios=0 dbytes=50331648 dios=3021\n7:0\n",
    ),
    ("pids.current", "12\n"),
    ("pids.max", "max\n"),
    ("hugetlb.2MB.current", "4194304\n"),
    ("hugetlb.1GB.current", "0\n"),
];

const V1: &[(&str, &str)] = &[
    ("cpuacct.usage", "5012345678\n"),
    ("cpuacct.stat", "user 400\nsystem 101\n"),
    (
        "cpu.stat",
        "nr_periods 120\nnr_throttled 7\nthrottled_time 654321000\n\
                  nr_bursts 0\nburst_time 0\n",
    ),
    ("cpu.shares", "1024\n"),
    ("cpu.cfs_period_us", "100000\n"),
    ("cpu.cfs_quota_us", "-1\n"),
    ("memory.usage_in_bytes", "104857600\n"),
    ("memory.limit_in_bytes", "268435456\n"),
    ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
    ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
    ("memory.kmem.usage_in_bytes", "8388608\n"),
    ("memory.max_usage_in_bytes", "157286400\n"),
    ("memory.failcnt", "11\n"),
    ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
    (
        "memory.stat",
        "cache 0\nrss 0\nmapped_file 0\nswap 0\npgfault 9\npgmajfault 1\ninactive_file 0\n\
         hierarchical_memory_limit 268435456\nhierarchical_memsw_limit 9223372036854771712\n\
         total_cache 41943040\ntotal_rss 52428800\ntotal_rss_huge 0\n\
         total_mapped_file 2097152\ntotal_swap 4096\ntotal_pgfault 9001\ntotal_pgmajfault 42\n\
         total_inactive_file 31457280\n",
    ),
    (
        "blkio.throttle.io_service_bytes_recursive",
        "8:16 Read 90430464\n8:16 Write 4096\n8:16 Sync 90434560\n8:16 Async 0\n\
         8:16 Discard 0\n8:16 Total 90434560\nTotal 90434560\n",
    ),
    (
        "blkio.throttle.io_serviced_recursive",
        "8:16 Read 8950\n8:16 Write 1\n8:16 Sync 8951\n8:16 Async 0\n8:16 Discard 0\n\
         8:16 Total 8951\nTotal 8951\n",
    ),
    ("pids.current", "12\n"),
    ("pids.max", "100\n"),
];

/// A host of which every hierarchy has these files for the cgroup `/a`.
fn host(files: &[(&str, &str)], v2: bool) -> (tempfile::TempDir, Mounts, CgroupPath) {
    use Controller::{Cpu, Cpuacct, Hugetlb, Io, Memory, Pids};
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("a")).unwrap();
    for (name, text) in files {
        std::fs::write(root.path().join("a").join(name), text).unwrap();
    }
    let mount = root.path().to_owned();
    let mounts = if v2 {
        let controllers = BTreeSet::from([Cpu, Memory, Pids, Io, Hugetlb]);
        Mounts { unified: Some(Unified { mount, controllers }), ..Mounts::default() }
    } else {
        let controllers = BTreeSet::from([Cpu, Cpuacct, Memory, Pids, Io]);
        Mounts { legacy: vec![Legacy { mount, controllers }], unified: None }
    };
    (root, mounts, CgroupPath::new("/a").unwrap())
}

fn remove(root: &Path, file: &str) {
    std::fs::remove_file(root.join("a").join(file)).unwrap();
}

/// teeth: crates/cgroup/src/usage/v2.rs: `"inactive_file"` → `"inactive_anon"`
#[test]
fn v2_says_what_statistics_need() {
    let (_root, mounts, path) = host(V2, true);
    let usage = usage(&mounts, &path).unwrap();
    let cpu = usage.cpu.unwrap();
    assert_eq!(cpu.total_ns, 5_012_345_000);
    let memory = usage.memory.unwrap();
    assert_eq!((memory.bytes, memory.working_set_bytes), (104_857_600, 73_400_320));
    assert_eq!((memory.rss_bytes, memory.limit_bytes), (52_428_800, Some(268_435_456)));
    assert_eq!((memory.page_faults, memory.major_page_faults), (9001, 42));
    let swap = memory.swap.unwrap();
    assert_eq!((swap.bytes, swap.limit_bytes), (4096, Some(1_048_576)));
    assert_eq!(usage.pids, Some(12));
    let waited = |total_us, avg10, avg60, avg300| Stall { total_us, avg10, avg60, avg300 };
    let pressure =
        Pressure { some: waited(123_456, 1.5, 0.75, 0.1), full: waited(23_456, 0.5, 0.25, 0.05) };
    assert_eq!(cpu.pressure, Some(pressure));
    assert_eq!(memory.pressure, Some(Pressure::default()));
    let io = usage.io_pressure.unwrap();
    assert_eq!((io.some.total_us, io.full.total_us), (77, 66));
}

#[test]
fn v2_says_what_metrics_need() {
    let (_root, mounts, path) = host(V2, true);
    let details = details(&mounts, &path).unwrap();
    let cpu = details.usage.cpu.unwrap();
    assert_eq!((cpu.user_ns, cpu.system_ns), (Some(4_000_001_000), Some(1_012_344_000)));
    let throttling = cpu.throttling.unwrap();
    assert_eq!((throttling.periods, throttling.throttled), (120, 7));
    assert_eq!(throttling.throttled_ns, 654_321_000);
    let memory = details.usage.memory.unwrap();
    assert_eq!((memory.cache_bytes, memory.mapped_bytes), (41_943_040, 2_097_152));
    assert_eq!((details.kernel_bytes, details.peak_bytes), (Some(8_388_608), Some(157_286_400)));
    assert_eq!((details.limit_hits, details.oom_kills), (Some(11), Some(3)));
    let limits = details.limits;
    assert_eq!((limits.cpu_quota, limits.cpu_period), (Some(20_000), Some(100_000)));
    assert_eq!(crate::apply::shares(39), limits.cpu_shares.unwrap());
    assert_eq!((limits.memory_reservation, limits.swap), (None, Some(1_048_576)));
    assert_eq!(limits.pids, None);
    let device = |major, minor, [read_bytes, written_bytes, reads, writes]: [u64; 4]| DeviceIo {
        major,
        minor,
        read_bytes,
        written_bytes,
        reads,
        writes,
    };
    let expected = [
        device(259, 0, [1_459_200, 314_773_504, 192, 353]),
        device(8, 16, [90_430_464, 0, 8950, 0]),
    ];
    assert_eq!(details.io, expected);
    // Which sizes there are is this machine's.
    let two = HugePages { size: "2MB".into(), bytes: 4_194_304, peak_bytes: None };
    assert!(details.huge_pages.is_empty() || details.huge_pages.contains(&two));
}

#[test]
fn v2_without_controllers_or_pressure_says_what_it_has() {
    let (root, mounts, path) = host(V2, true);
    for (file, _) in V2.iter().filter(|(file, _)| *file != "cpu.stat") {
        remove(root.path(), file);
    }
    std::fs::write(root.path().join("a/cpu.stat"), "usage_usec 7\nuser_usec 4\nsystem_usec 3\n")
        .unwrap();
    let details = details(&mounts, &path).unwrap();
    let cpu = details.usage.cpu.unwrap();
    assert_eq!((cpu.total_ns, cpu.throttling, cpu.pressure), (7000, None, None));
    let usage = details.usage;
    assert_eq!((usage.memory, usage.pids, usage.io_pressure), (None, None, None));
    assert_eq!((details.oom_kills, details.peak_bytes), (None, None));
    assert!(details.io.is_empty() && details.huge_pages.is_empty());
    assert_eq!(details.limits, Default::default());
}

#[test]
fn v2_without_limits_says_max() {
    let (root, mounts, path) = host(V2, true);
    for file in ["memory.max", "memory.swap.max"] {
        std::fs::write(root.path().join("a").join(file), "max\n").unwrap();
    }
    std::fs::write(root.path().join("a/cpu.max"), "max 100000\n").unwrap();
    // Kernels before 5.13, 5.18 and 5.19 do not say these.
    std::fs::write(root.path().join("a/cpu.pressure"), "some avg10=0 avg60=0 avg300=0 total=5\n")
        .unwrap();
    remove(root.path(), "memory.peak");
    let stat = V2.iter().find(|(file, _)| *file == "memory.stat").unwrap().1;
    std::fs::write(root.path().join("a/memory.stat"), stat.replace("kernel 8388608\n", ""))
        .unwrap();
    let details = details(&mounts, &path).unwrap();
    let memory = details.usage.memory.unwrap();
    assert_eq!((memory.limit_bytes, memory.swap.unwrap().limit_bytes), (None, None));
    assert_eq!((details.limits.cpu_quota, details.limits.cpu_period), (None, Some(100_000)));
    let pressure = details.usage.cpu.unwrap().pressure.unwrap();
    assert_eq!((pressure.some.total_us, pressure.full), (5, Stall::default()));
    assert_eq!(details.peak_bytes, None);
    assert_eq!(details.kernel_bytes, Some(65_536 + 131_072 + 4096 + 5_242_880));
}

#[test]
fn v1_says_the_same_in_other_files() {
    let (root, mounts, path) = host(V1, false);
    let brief = usage(&mounts, &path).unwrap();
    let details = details(&mounts, &path).unwrap();
    let memory = details.usage.memory.unwrap();
    assert_eq!(brief.memory, Some(memory));
    assert_eq!((memory.bytes, memory.working_set_bytes), (104_857_600, 73_400_320));
    assert_eq!((memory.rss_bytes, memory.limit_bytes), (52_428_800, Some(268_435_456)));
    assert_eq!((memory.page_faults, memory.own_page_faults), (9001, Some(9)));
    assert_eq!((memory.major_page_faults, memory.own_major_page_faults), (42, Some(1)));
    let swap = memory.swap.unwrap();
    assert_eq!((swap.bytes, swap.limit_bytes), (4096, None));
    let cpu = details.usage.cpu.unwrap();
    assert_eq!(cpu.total_ns, 5_012_345_678);
    assert_eq!((cpu.user_ns, cpu.system_ns), (Some(4_000_000_000), Some(1_010_000_000)));
    assert_eq!(cpu.throttling.unwrap().throttled_ns, 654_321_000);
    assert_eq!((details.kernel_bytes, details.peak_bytes), (Some(8_388_608), Some(157_286_400)));
    assert_eq!((details.limit_hits, details.oom_kills), (Some(11), Some(3)));
    let limits = details.limits;
    assert_eq!((limits.cpu_shares, limits.cpu_quota), (Some(1024), None));
    assert_eq!((limits.memory_reservation, limits.swap, limits.pids), (None, None, Some(100)));
    let io = DeviceIo {
        major: 8,
        minor: 16,
        read_bytes: 90_430_464,
        written_bytes: 4096,
        reads: 8950,
        writes: 1,
    };
    assert_eq!(details.io, [io]);

    let limited = "memory.memsw.limit_in_bytes";
    std::fs::write(root.path().join("a").join(limited), "268439552\n").unwrap();
    let stat = V1.iter().find(|(file, _)| *file == "memory.stat").unwrap().1;
    let stat = stat.replace("memsw_limit 9223372036854771712", "memsw_limit 268439552");
    std::fs::write(root.path().join("a/memory.stat"), &stat).unwrap();
    let swap = usage(&mounts, &path).unwrap().memory.unwrap().swap.unwrap();
    assert_eq!(swap.limit_bytes, Some(4096));

    // Nobody up to the root has a limit: what its own file says is not looked at.
    let stat = stat.replace("_limit 268435456", "_limit 9223372036854771712");
    std::fs::write(root.path().join("a/memory.stat"), stat).unwrap();
    assert_eq!(usage(&mounts, &path).unwrap().memory.unwrap().limit_bytes, None);
}

#[test]
fn a_cgroup_that_is_gone_is_an_error_and_no_usage() {
    let (root, mounts, path) = host(V2, true);
    std::fs::remove_dir_all(root.path().join("a")).unwrap();
    assert!(matches!(usage(&mounts, &path), Err(Error::Read { .. })));
    assert!(matches!(details(&mounts, &path), Err(Error::Read { .. })));
}

#[test]
fn what_is_no_number_is_an_error() {
    let (root, mounts, path) = host(V2, true);
    std::fs::write(root.path().join("a/memory.current"), "many\n").unwrap();
    assert!(matches!(usage(&mounts, &path), Err(Error::Malformed { .. })));
}

#[test]
fn huge_pages_are_called_as_the_kernel_calls_them() {
    let known = [(64, "64KB"), (2048, "2MB"), (32_768, "32MB"), (1_048_576, "1GB")];
    for (kilobytes, name) in known {
        assert_eq!(size_name(kilobytes), name);
    }
}

fn write(root: &Path, file: &str, text: &str) {
    std::fs::write(root.join("a").join(file), text).unwrap();
}

/// teeth: crates/cgroup/src/usage/v1.rs: `filter(|known| known.bound == bound)` → `filter(|_| true)`
#[test]
fn a_limit_that_changes_is_not_told_as_it_was() {
    let (root, mounts, path) = host(V1, false);
    let mut kept = Kept::default();
    let mut limit = || again(&mut kept, &mounts, &path).unwrap().memory.unwrap().limit_bytes;
    let bound_to = |limit: u64| {
        let stat = format!("total_cache 1\nhierarchical_memory_limit {limit}\n");
        write(root.path(), "memory.stat", &stat);
    };
    assert_eq!(limit(), Some(268_435_456));
    write(root.path(), "memory.limit_in_bytes", "536870912\n");
    bound_to(536_870_912);
    assert_eq!(limit(), Some(536_870_912));
    // One above has less, which hides what its own is.
    bound_to(4096);
    assert_eq!(limit(), Some(536_870_912));
    write(root.path(), "memory.limit_in_bytes", "8192\n");
    assert_eq!(limit(), Some(8192));
    write(root.path(), "memory.limit_in_bytes", "9223372036854771712\n");
    bound_to(9_223_372_036_854_771_712);
    assert_eq!(limit(), None);
}

/// teeth: crates/cgroup/src/meter.rs: `Err(_) if !first =>` → `Err(_) if first =>`
#[test]
fn a_cgroup_that_was_made_again_is_read_anew() {
    for (files, v2) in [(V1, false), (V2, true)] {
        let (root, mounts, path) = host(files, v2);
        let mut meter = Meter::new(Cgroup::new(Arc::new(mounts), path));
        assert_eq!(meter.usage().unwrap().pids, Some(12));
        write(root.path(), "pids.current", "13\n");
        assert_eq!(meter.usage().unwrap().pids, Some(13));
        std::fs::remove_dir_all(root.path().join("a")).unwrap();
        assert!(matches!(meter.usage(), Err(Error::NotFound(_))));
        std::fs::create_dir(root.path().join("a")).unwrap();
        for (name, text) in files {
            write(root.path(), name, text);
        }
        assert_eq!(meter.usage().unwrap().pids, Some(12));
        std::fs::rename(root.path().join("a"), root.path().join("b")).unwrap();
        std::fs::remove_dir_all(root.path().join("b")).unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        for (name, text) in files {
            write(root.path(), name, text);
        }
        write(root.path(), "pids.current", "14\n");
        assert_eq!(meter.usage().unwrap().pids, Some(14), "found at the second try");
    }
}
