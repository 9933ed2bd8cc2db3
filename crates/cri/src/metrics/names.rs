//! The metrics, by the names that cAdvisor gave them.
//!
//! A metric's labels are part of its type, so that a value cannot be told with more or fewer
//! than its descriptor says.

use berth_api::v1::{MetricDescriptor, MetricType};

/// Labels that every metric has, as kubelet gives them to cAdvisor's.
pub(super) const BASE: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric with labels beside [`BASE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric<const LABELS: usize> {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: MetricType,
    labels: [&'static str; LABELS],
}

impl<const LABELS: usize> Metric<LABELS> {
    fn descriptor(&self) -> MetricDescriptor {
        let labels = BASE.iter().chain(&self.labels);
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: labels.map(|label| (*label).to_owned()).collect(),
        }
    }
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            pub(super) const $constant: Metric<{ <[&str]>::len(&[$($label),*]) }> = Metric {
                name: $name,
                help: $help,
                kind: MetricType::$kind,
                labels: [$($label),*],
            };
        )*

        /// Every descriptor.
        pub(super) fn descriptors() -> Vec<MetricDescriptor> {
            vec![$($constant.descriptor()),*]
        }
    };
}

metrics! {
    LAST_SEEN: Gauge "container_last_seen" []
        "When the container was last seen, seconds since 1970.";
    START_TIME: Gauge "container_start_time_seconds" []
        "When the container was started, seconds since 1970.";

    CPU_USAGE: Counter "container_cpu_usage_seconds_total" ["cpu"]
        "CPU time used, seconds.";
    CPU_USER: Counter "container_cpu_user_seconds_total" []
        "CPU time used in user mode, seconds.";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" []
        "CPU time used in the kernel, seconds.";
    CPU_PERIODS: Counter "container_cpu_cfs_periods_total" []
        "Periods of the CPU quota in which the container had something to run.";
    CPU_THROTTLED_PERIODS: Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods of the CPU quota in which it was used up.";
    CPU_THROTTLED: Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time for which the CPU quota held the container back, seconds.";

    MEMORY_USAGE: Gauge "container_memory_usage_bytes" []
        "Memory in use, page cache included, bytes.";
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" []
        "Memory in use without inactive file pages, bytes.";
    MEMORY_RSS: Gauge "container_memory_rss" []
        "Anonymous memory, bytes.";
    MEMORY_CACHE: Gauge "container_memory_cache" []
        "Page cache, bytes.";
    MEMORY_MAPPED_FILE: Gauge "container_memory_mapped_file" []
        "Files mapped into memory, bytes.";
    MEMORY_SWAP: Gauge "container_memory_swap" []
        "Memory swapped out, bytes.";
    MEMORY_KERNEL: Gauge "container_memory_kernel_usage" []
        "Memory that the kernel uses for the container, bytes.";
    MEMORY_MAX_USAGE: Gauge "container_memory_max_usage_bytes" []
        "The most memory ever in use, bytes.";
    MEMORY_FAILCNT: Counter "container_memory_failcnt" []
        "How often the memory limit was reached.";
    MEMORY_FAILURES: Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults, minor and major.";
    OOM_EVENTS: Counter "container_oom_events_total" []
        "Processes killed for the memory limit.";

    HUGETLB_USAGE: Gauge "container_hugetlb_usage_bytes" ["pagesize"]
        "Huge pages in use, bytes.";
    HUGETLB_MAX_USAGE: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "The most huge pages ever in use, bytes.";

    BLKIO_USAGE: Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes read from and written to a block device.";
    FS_READS: Counter "container_fs_reads_total" ["device"]
        "Reads from a block device.";
    FS_READ_BYTES: Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from a block device.";
    FS_WRITES: Counter "container_fs_writes_total" ["device"]
        "Writes to a block device.";
    FS_WRITTEN_BYTES: Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to a block device.";
    FS_USAGE: Gauge "container_fs_usage_bytes" ["device"]
        "What the writable layer uses of its file system, bytes.";
    FS_LIMIT: Gauge "container_fs_limit_bytes" ["device"]
        "Size of the file system of the writable layer, bytes.";
    FS_INODES: Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the file system of the writable layer.";
    FS_INODES_FREE: Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the file system of the writable layer.";

    NETWORK_RX_BYTES: Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received.";
    NETWORK_RX_PACKETS: Counter "container_network_receive_packets_total" ["interface"]
        "Packets received.";
    NETWORK_RX_DROPPED: Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets received and dropped.";
    NETWORK_RX_ERRORS: Counter "container_network_receive_errors_total" ["interface"]
        "Packets received in error.";
    NETWORK_TX_BYTES: Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent.";
    NETWORK_TX_PACKETS: Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent.";
    NETWORK_TX_DROPPED: Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets dropped before they were sent.";
    NETWORK_TX_ERRORS: Counter "container_network_transmit_errors_total" ["interface"]
        "Packets not sent for an error.";

    PRESSURE_CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time in which some task waited for a CPU, seconds.";
    PRESSURE_CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time in which all tasks waited for a CPU, seconds.";
    PRESSURE_MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" []
        "Time in which some task waited for memory, seconds.";
    PRESSURE_MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" []
        "Time in which all tasks waited for memory, seconds.";
    PRESSURE_IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" []
        "Time in which some task waited for block I/O, seconds.";
    PRESSURE_IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" []
        "Time in which all tasks waited for block I/O, seconds.";

    PROCESSES: Gauge "container_processes" []
        "Processes in the container.";
    THREADS: Gauge "container_threads" []
        "Threads in the container.";
    THREADS_MAX: Gauge "container_threads_max" []
        "Most threads the container may have; zero is no limit.";
    FILE_DESCRIPTORS: Gauge "container_file_descriptors" []
        "Open descriptors of the container's processes.";
    SOCKETS: Gauge "container_sockets" []
        "Open sockets of the container's processes.";
    ULIMITS_SOFT: Gauge "container_ulimits_soft" ["ulimit"]
        "Soft limits of the container's first process.";

    SPEC_CPU_PERIOD: Gauge "container_spec_cpu_period" []
        "Period of the CPU quota, microseconds.";
    SPEC_CPU_QUOTA: Gauge "container_spec_cpu_quota" []
        "CPU quota in each period, microseconds.";
    SPEC_CPU_SHARES: Gauge "container_spec_cpu_shares" []
        "CPU shares.";
    SPEC_MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" []
        "Memory limit, bytes; zero is no limit.";
    SPEC_MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory kept for the container, bytes; zero is none.";
    SPEC_MEMORY_SWAP: Gauge "container_spec_memory_swap_limit_bytes" []
        "Swap limit, bytes: on cgroup v1 memory and swap together, on v2 swap; zero is no limit.";
}
