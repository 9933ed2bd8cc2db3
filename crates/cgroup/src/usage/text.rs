//! What the kernel writes into its files, read. Pure; never fails, since kernels add to it.

use berth_model::stats::{DeviceIo, Pressure, Stall};

/// A file of `key value` lines. Nothing is copied; a key is looked for from the start, since
/// only some of a file's are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a>(&'a str);

impl<'a> Keys<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self(text)
    }

    pub(super) fn get(&self, key: &str) -> Option<u64> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse().ok())
    }

    /// Zero for a key that is not there.
    pub(super) fn number(&self, key: &str) -> u64 {
        self.get(key).unwrap_or(0)
    }
}

/// A pressure file. `cpu.pressure` has no `full` line before 5.13.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).map(stall);
    Some(Pressure { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

/// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn stall(line: &str) -> Stall {
    let mut stall = Stall::default();
    for (key, value) in line.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
        let average = || value.parse().unwrap_or_default();
        match key {
            "avg10" => stall.avg10 = average(),
            "avg60" => stall.avg60 = average(),
            "avg300" => stall.avg300 = average(),
            "total" => stall.total_us = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stall
}

/// `io.stat` of v2: `8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0`.
pub(super) fn io(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let (device, values) = line.split_once(' ')?;
        let mut io = numbered(device)?;
        for (key, value) in values.split_ascii_whitespace().filter_map(|word| word.split_once('='))
        {
            let number = || value.parse().unwrap_or_default();
            match key {
                "rbytes" => io.read_bytes = number(),
                "wbytes" => io.written_bytes = number(),
                "rios" => io.reads = number(),
                "wios" => io.writes = number(),
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(device).collect()
}

/// The two files of v1's `blkio.throttle` (`8:0 Read 1024`), whose last line is a total
/// without a device.
pub(super) fn blkio(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut all: Vec<DeviceIo> = Vec::new();
    let mut take =
        |text: &str, read: fn(&mut DeviceIo) -> &mut u64, write: fn(&mut DeviceIo) -> &mut u64| {
            for line in text.lines() {
                let mut words = line.split_ascii_whitespace();
                let (Some(device), Some(operation), Some(value)) =
                    (words.next().and_then(numbered), words.next(), words.next())
                else {
                    continue;
                };
                let field = match operation {
                    "Read" => read,
                    "Write" => write,
                    _ => continue,
                };
                let known =
                    all.iter().position(|io| (io.major, io.minor) == (device.major, device.minor));
                let at = known.unwrap_or_else(|| {
                    all.push(device);
                    all.len() - 1
                });
                *field(&mut all[at]) = value.parse().unwrap_or_default();
            }
        };
    take(bytes, |io| &mut io.read_bytes, |io| &mut io.written_bytes);
    take(operations, |io| &mut io.reads, |io| &mut io.writes);
    all
}

fn numbered(device: &str) -> Option<DeviceIo> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(DeviceIo { major, minor, ..DeviceIo::default() })
}

/// `cpu.max` of v2, `max 100000`: quota and period.
pub(super) fn cpu_max(text: &str) -> (Option<u64>, Option<u64>) {
    let mut words = text.split_ascii_whitespace();
    let mut next = || words.next().and_then(|word| word.parse().ok());
    (next(), next())
}
