use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_engine::{FilesystemUsage, NetworkUsage, SandboxStatus};
use berth_model::stats::{
    CgroupDetails, CgroupLimits, CgroupUsage, CpuUsage, DeviceIo, DiskUsage, HugePages,
    MemoryUsage, Pressure, Stall, SwapUsage, Throttling,
};
use berth_network::InterfaceCounters;
use berth_stats::Details;

use super::names::BASE;
use super::*;
use crate::translate::samples;

/// What cri-tools expects of a runtime (critest of 1.37).
const EXPECTED: [&str; 56] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
];

const SECOND: u64 = 1_000_000_000;

/// A cgroup of which the kernel says everything.
fn details() -> CgroupDetails {
    let stall = |seconds: u64| Stall { total_us: seconds * 1_000_000 + 7, ..Stall::default() };
    let pressure = |some, full| Some(Pressure { some: stall(some), full: stall(full) });
    let usage = CgroupUsage {
        at: Timestamp(50_000_000_001),
        cpu: Some(CpuUsage {
            total_ns: 7 * SECOND + 5,
            user_ns: Some(4 * SECOND),
            system_ns: Some(3 * SECOND),
            throttling: Some(Throttling { periods: 9, throttled: 8, throttled_ns: 2 * SECOND }),
            pressure: pressure(21, 22),
        }),
        memory: Some(MemoryUsage {
            bytes: 101,
            working_set_bytes: 102,
            rss_bytes: 103,
            cache_bytes: 104,
            mapped_bytes: 105,
            limit_bytes: Some(106),
            page_faults: 107,
            major_page_faults: 108,
            own_page_faults: Some(109),
            own_major_page_faults: None,
            swap: Some(SwapUsage { bytes: 110, limit_bytes: None }),
            pressure: pressure(23, 24),
        }),
        pids: Some(12),
        io_pressure: pressure(25, 26),
    };
    CgroupDetails {
        usage,
        kernel_bytes: Some(111),
        peak_bytes: Some(112),
        limit_hits: Some(113),
        oom_kills: Some(114),
        io: vec![DeviceIo {
            major: 8,
            minor: 16,
            read_bytes: 31,
            written_bytes: 32,
            reads: 33,
            writes: 34,
        }],
        huge_pages: vec![HugePages { size: "2MB".into(), bytes: 35, peak_bytes: Some(36) }],
        limits: CgroupLimits {
            cpu_shares: Some(1024),
            cpu_period: Some(100_000),
            cpu_quota: Some(20_000),
            memory_reservation: Some(41),
            swap: Some(42),
            pids: Some(43),
        },
    }
}

fn node(container: CgroupDetails, processes: Processes) -> NodeMetrics {
    let sandbox = SandboxStatus { created_at: Timestamp(10_000_000_000), ..samples::sandbox() };
    let of = |name: &str, base| InterfaceCounters {
        name: name.into(),
        rx_bytes: base,
        rx_packets: base + 1,
        rx_errors: base + 2,
        rx_dropped: base + 3,
        tx_bytes: base + 4,
        tx_packets: base + 5,
        tx_errors: base + 6,
        tx_dropped: base + 7,
    };
    let network = NetworkUsage {
        at: Timestamp(60_000_000_000),
        interfaces: [of("eth0", 1000), of("net1", 2000)].into(),
    };
    let details = Details { cgroup: details(), processes: None };
    let running = ContainerState::Running { pid: 2, started_at: Timestamp(20_000_000_000) };
    NodeMetrics {
        sandboxes: vec![Sandbox {
            status: Arc::new(sandbox),
            cgroup_path: "/kubepods/podu".into(),
            cgroup: Some(Arc::new(details)),
            network: Some(network),
            containers: vec![Container {
                status: Arc::new(samples::container(running)),
                cgroup_path: "/kubepods/podu/c1".into(),
                cgroup: Arc::new(Details { cgroup: container, processes: Some(processes) }),
                writable_layer: Some(DiskUsage { at: Timestamp(70), bytes: 51, inodes: 52 }),
            }],
        }],
        filesystem: Some(FilesystemUsage {
            device: "/dev/sda1".into(),
            capacity_bytes: 53,
            inodes: 54,
            inodes_free: 55,
        }),
        devices: BTreeMap::from([((8, 16), "/dev/sdb".to_owned())]),
    }
}

const PROCESSES: Processes =
    Processes { count: 61, descriptors: 62, sockets: Some(63), max_open_files: Some(64) };

fn told(node: &NodeMetrics) -> (Vec<v1::Metric>, Vec<v1::Metric>) {
    let told = pod(node, &node.sandboxes[0]);
    assert_eq!(told.pod_sandbox_id, "s1");
    let [container] = <[_; 1]>::try_from(told.container_metrics).unwrap();
    assert_eq!(container.container_id, "c1");
    (told.metrics, container.metrics)
}

/// The only value of a metric whose further labels are `labels`.
#[track_caller]
fn value(metrics: &[v1::Metric], name: &str, labels: &[&str]) -> u64 {
    let fits = |it: &&v1::Metric| it.name == name && it.label_values[BASE.len()..] == *labels;
    let found: Vec<_> = metrics.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].value.unwrap().value
}

/// teeth: crates/cri/src/metrics/names.rs: `"container_threads" []` → `"container_thread" []`
#[test]
fn every_name_that_is_expected_is_described_and_told_with_as_many_labels() {
    let descriptors = names::descriptors();
    let names: BTreeSet<&str> = descriptors.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(EXPECTED));
    assert_eq!(names.len(), descriptors.len(), "one is described twice");
    let (pod, container) = told(&node(details(), PROCESSES));
    for descriptor in &descriptors {
        assert!(!descriptor.help.is_empty() && descriptor.label_keys.len() >= BASE.len());
        let all = pod.iter().chain(&container);
        let mut named = all.filter(|metric| metric.name == descriptor.name).peekable();
        assert!(named.peek().is_some(), "{} is never told", descriptor.name);
        for metric in named {
            assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{metric:?}");
        }
    }
    for metric in pod.iter().chain(&container) {
        assert!(names.contains(metric.name.as_str()), "{} is not described", metric.name);
        assert_eq!(metric.metric_type() == MetricType::Counter, is_counter(&metric.name));
    }
}

/// Those that only grow; two of cAdvisor's names do not say so.
fn is_counter(name: &str) -> bool {
    name == "container_memory_failcnt"
        || (name.ends_with("_total") && name != "container_fs_inodes_total")
}

#[test]
fn labels_say_whose_it_is_as_cadvisors_do() {
    let (pod, container) = told(&node(details(), PROCESSES));
    let expected =
        ["app", "/kubepods/podu/c1", "docker.io/library/busybox@sha256:00", "c1", "space", "pod"];
    assert!(container.iter().all(|metric| metric.label_values[..BASE.len()] == expected));
    let expected = ["", "/kubepods/podu", "", "s1", "space", "pod"];
    assert!(pod.iter().all(|metric| metric.label_values[..BASE.len()] == expected));
    let keys = &names::descriptors()[0].label_keys;
    assert_eq!(keys[..], ["container", "id", "image", "name", "namespace", "pod"]);
}

#[test]
fn values_are_those_that_were_measured() {
    let (pod, container) = told(&node(details(), PROCESSES));
    for metrics in [&pod, &container] {
        for (name, expected) in [
            ("container_cpu_user_seconds_total", 4),
            ("container_cpu_system_seconds_total", 3),
            ("container_cpu_cfs_periods_total", 9),
            ("container_cpu_cfs_throttled_periods_total", 8),
            ("container_cpu_cfs_throttled_seconds_total", 2),
            ("container_last_seen", 50),
            ("container_memory_usage_bytes", 101),
            ("container_memory_working_set_bytes", 102),
            ("container_memory_rss", 103),
            ("container_memory_cache", 104),
            ("container_memory_mapped_file", 105),
            ("container_spec_memory_limit_bytes", 106),
            ("container_memory_swap", 110),
            ("container_memory_kernel_usage", 111),
            ("container_memory_max_usage_bytes", 112),
            ("container_memory_failcnt", 113),
            ("container_oom_events_total", 114),
            ("container_pressure_cpu_waiting_seconds_total", 21),
            ("container_pressure_cpu_stalled_seconds_total", 22),
            ("container_pressure_memory_waiting_seconds_total", 23),
            ("container_pressure_memory_stalled_seconds_total", 24),
            ("container_pressure_io_waiting_seconds_total", 25),
            ("container_pressure_io_stalled_seconds_total", 26),
            ("container_threads", 12),
            ("container_threads_max", 43),
            ("container_spec_cpu_shares", 1024),
            ("container_spec_cpu_period", 100_000),
            ("container_spec_cpu_quota", 20_000),
            ("container_spec_memory_reservation_limit_bytes", 41),
            ("container_spec_memory_swap_limit_bytes", 42),
        ] {
            assert_eq!(value(metrics, name, &[]), expected, "{name}");
        }
        assert_eq!(value(metrics, "container_cpu_usage_seconds_total", &["total"]), 7);
        for (labels, expected) in [
            (["pgfault", "container"], 109),
            (["pgfault", "hierarchy"], 107),
            (["pgmajfault", "container"], 108),
            (["pgmajfault", "hierarchy"], 108),
        ] {
            assert_eq!(value(metrics, "container_memory_failures_total", &labels), expected);
        }
        let blkio = "container_blkio_device_usage_total";
        assert_eq!(value(metrics, blkio, &["/dev/sdb", "8", "16", "Read"]), 31);
        assert_eq!(value(metrics, blkio, &["/dev/sdb", "8", "16", "Write"]), 32);
        for (name, expected) in [
            ("container_fs_reads_bytes_total", 31),
            ("container_fs_writes_bytes_total", 32),
            ("container_fs_reads_total", 33),
            ("container_fs_writes_total", 34),
        ] {
            assert_eq!(value(metrics, name, &["/dev/sdb"]), expected, "{name}");
        }
        assert_eq!(value(metrics, "container_hugetlb_usage_bytes", &["2MB"]), 35);
        assert_eq!(value(metrics, "container_hugetlb_max_usage_bytes", &["2MB"]), 36);
    }
}

#[test]
fn what_only_a_container_or_only_a_pod_has_is_told_there() {
    let (pod, container) = told(&node(details(), PROCESSES));
    for (name, labels, expected) in [
        ("container_processes", &[][..], 61),
        ("container_file_descriptors", &[], 62),
        ("container_sockets", &[], 63),
        ("container_ulimits_soft", &["max_open_files"], 64),
        ("container_fs_usage_bytes", &["/dev/sda1"], 51),
        ("container_fs_limit_bytes", &["/dev/sda1"], 53),
        ("container_fs_inodes_total", &["/dev/sda1"], 54),
        ("container_fs_inodes_free", &["/dev/sda1"], 55),
    ] {
        assert_eq!(value(&container, name, labels), expected, "{name}");
        assert!(pod.iter().all(|metric| metric.name != name), "{name}");
    }
    assert_eq!(value(&container, "container_start_time_seconds", &[]), 20);
    assert_eq!(value(&pod, "container_start_time_seconds", &[]), 10);
    for (interface, base) in [("eth0", 1000), ("net1", 2000)] {
        let of = |what: &str| value(&pod, &format!("container_network_{what}_total"), &[interface]);
        assert_eq!((of("receive_bytes"), of("receive_packets")), (base, base + 1));
        assert_eq!((of("receive_errors"), of("receive_packets_dropped")), (base + 2, base + 3));
        assert_eq!((of("transmit_bytes"), of("transmit_packets")), (base + 4, base + 5));
        assert_eq!((of("transmit_errors"), of("transmit_packets_dropped")), (base + 6, base + 7));
    }
    assert!(container.iter().all(|metric| !metric.name.starts_with("container_network_")));
}

#[test]
fn each_value_says_when_it_was_read() {
    let (pod, container) = told(&node(details(), PROCESSES));
    let at = |metrics: &[v1::Metric], name: &str| {
        metrics.iter().find(|metric| metric.name == name).unwrap().timestamp
    };
    assert_eq!(at(&pod, "container_network_receive_bytes_total"), 60_000_000_000);
    assert_eq!(at(&pod, "container_memory_rss"), 50_000_000_001);
    assert_eq!(at(&container, "container_memory_rss"), 50_000_000_001);
    assert_eq!(at(&container, "container_fs_usage_bytes"), 70);
}

#[test]
fn what_is_not_known_is_not_told_and_no_limit_is_zero() {
    let mut unknown = details();
    unknown.usage.memory.as_mut().unwrap().limit_bytes = None;
    unknown.usage.cpu.as_mut().unwrap().pressure = None;
    unknown.limits = CgroupLimits::default();
    (unknown.peak_bytes, unknown.kernel_bytes) = (None, None);
    let processes = Processes { sockets: None, max_open_files: None, ..PROCESSES };
    let (_, container) = told(&node(unknown, processes));
    for name in [
        "container_pressure_cpu_waiting_seconds_total",
        "container_memory_max_usage_bytes",
        "container_memory_kernel_usage",
        "container_sockets",
        "container_ulimits_soft",
        "container_spec_cpu_quota",
    ] {
        assert!(container.iter().all(|metric| metric.name != name), "{name}");
    }
    for name in [
        "container_spec_memory_limit_bytes",
        "container_spec_memory_swap_limit_bytes",
        "container_spec_memory_reservation_limit_bytes",
        "container_threads_max",
    ] {
        assert_eq!(value(&container, name, &[]), 0, "{name}");
    }
    let (_, nothing) = told(&node(CgroupDetails::default(), PROCESSES));
    let told_of_it = |prefix: &str| nothing.iter().any(|it| it.name.starts_with(prefix));
    assert!(!told_of_it("container_memory") && !told_of_it("container_cpu"), "{nothing:?}");
}
