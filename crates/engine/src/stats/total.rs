//! Usage of a sandbox whose cgroup is not its own: that of its containers together.

use berth_model::stats::{CgroupUsage, CpuUsage, MemoryUsage, SwapUsage};
use berth_stats::Sample;

/// The sum; `None` of nothing. What has no sum is not there: limits and pressure.
pub(super) fn of(samples: impl Iterator<Item = Sample>) -> Option<Sample> {
    samples.map(|sample| Sample { usage: only_sums(sample.usage), ..sample }).reduce(|a, b| {
        Sample {
            usage: CgroupUsage {
                at: a.usage.at.min(b.usage.at),
                cpu: both(a.usage.cpu, b.usage.cpu, |a, b| CpuUsage {
                    total_ns: a.total_ns + b.total_ns,
                    ..CpuUsage::default()
                }),
                memory: both(a.usage.memory, b.usage.memory, memory),
                pids: both(a.usage.pids, b.usage.pids, |a, b| a + b),
                io_pressure: None,
            },
            nano_cores: both(a.nano_cores, b.nano_cores, |a, b| a + b),
        }
    })
}

fn only_sums(usage: CgroupUsage) -> CgroupUsage {
    CgroupUsage {
        cpu: usage.cpu.map(|cpu| CpuUsage { total_ns: cpu.total_ns, ..CpuUsage::default() }),
        memory: usage.memory.map(|memory| MemoryUsage {
            limit_bytes: None,
            pressure: None,
            swap: memory.swap.map(|swap| SwapUsage { limit_bytes: None, ..swap }),
            ..memory
        }),
        io_pressure: None,
        ..usage
    }
}

fn memory(a: MemoryUsage, b: MemoryUsage) -> MemoryUsage {
    MemoryUsage {
        bytes: a.bytes + b.bytes,
        working_set_bytes: a.working_set_bytes + b.working_set_bytes,
        rss_bytes: a.rss_bytes + b.rss_bytes,
        cache_bytes: a.cache_bytes + b.cache_bytes,
        mapped_bytes: a.mapped_bytes + b.mapped_bytes,
        page_faults: a.page_faults + b.page_faults,
        major_page_faults: a.major_page_faults + b.major_page_faults,
        swap: both(a.swap, b.swap, |a, b| SwapUsage {
            bytes: a.bytes + b.bytes,
            limit_bytes: None,
        }),
        ..MemoryUsage::default()
    }
}

fn both<T>(a: Option<T>, b: Option<T>, add: impl FnOnce(T, T) -> T) -> Option<T> {
    a.zip(b).map(|(a, b)| add(a, b))
}

#[cfg(test)]
mod tests {
    use berth_model::container::Timestamp;
    use berth_model::stats::Pressure;

    use super::*;

    #[test]
    fn containers_are_added_and_limits_are_not() {
        let sample = |number: u64| Sample {
            usage: CgroupUsage {
                at: Timestamp(7),
                cpu: Some(CpuUsage {
                    total_ns: number,
                    pressure: Some(Pressure::default()),
                    ..CpuUsage::default()
                }),
                memory: Some(MemoryUsage {
                    bytes: 10 * number,
                    limit_bytes: Some(99),
                    ..MemoryUsage::default()
                }),
                pids: Some(number),
                io_pressure: Some(Pressure::default()),
            },
            nano_cores: Some(number),
        };
        assert_eq!(of(std::iter::empty()), None);
        let sum = of([sample(1), sample(2), sample(4)].into_iter()).unwrap();
        let (cpu, memory) = (sum.usage.cpu.unwrap(), sum.usage.memory.unwrap());
        assert_eq!((cpu.total_ns, memory.bytes, sum.usage.pids), (7, 70, Some(7)));
        assert_eq!((sum.nano_cores, sum.usage.at), (Some(7), Timestamp(7)));
        assert_eq!((memory.limit_bytes, cpu.pressure, sum.usage.io_pressure), (None, None, None));
        let one = of([sample(3)].into_iter()).unwrap().usage;
        assert_eq!((one.memory.unwrap().limit_bytes, one.cpu.unwrap().pressure), (None, None));
    }
}
