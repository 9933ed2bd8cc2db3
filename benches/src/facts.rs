//! What machine it was: numbers mean nothing without.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cgroups;

/// The machine, as far as it bears on numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// When the run began, UTC.
    pub(crate) at: String,
    /// Version of this tool.
    pub(crate) tool: String,
    pub(crate) kernel: String,
    pub(crate) architecture: String,
    /// Model of the processors.
    pub(crate) processor: String,
    /// Processors in use.
    pub(crate) processors: usize,
    /// Whether the processors say that a hypervisor runs them.
    pub(crate) virtual_machine: bool,
    pub(crate) memory_mib: u64,
    pub(crate) swap_mib: u64,
    /// Versions of the cgroup hierarchies.
    pub(crate) cgroups: String,
    /// Security modules of the kernel.
    pub(crate) security_modules: String,
    /// Type of the file system of temporary files, where logs and images made here lie.
    pub(crate) file_system: String,
    /// Whether this tool was built without optimization, and so adds to every latency.
    pub(crate) debug_build: bool,
}

impl Facts {
    /// Looks at this machine.
    pub(crate) fn gather() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo")?, read("/proc/meminfo")?);
        let processor = ["model name", "CPU part", "uarch"].iter();
        let first = |name: &&str| field(&cpuinfo, name);
        let trimmed = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let mebibytes = |name| {
            let kib = field(&meminfo, name).and_then(|text| text.split(' ').next()?.parse().ok());
            kib.map_or(0, |kib: u64| kib / 1024)
        };
        let now = now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        Ok(Self {
            at: timestamp(now.as_secs()),
            tool: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            processor: processor.filter_map(first).next().unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory_mib: mebibytes("MemTotal"),
            swap_mib: mebibytes("SwapTotal"),
            cgroups: cgroups::version()?.to_owned(),
            security_modules: trimmed("/sys/kernel/security/lsm")
                .unwrap_or_else(|_| "unknown".to_owned()),
            file_system: file_system().unwrap_or_else(|| "unknown".to_owned()),
            debug_build: cfg!(debug_assertions),
        })
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}: kernel {} {}, {} × {}{}, {} MiB, cgroup {}, {}{}",
            self.at,
            self.kernel,
            self.architecture,
            self.processors,
            self.processor,
            if self.virtual_machine { " (virtual)" } else { "" },
            self.memory_mib,
            self.cgroups,
            self.file_system,
            if self.debug_build { "; BERTH-BENCH WAS BUILT WITHOUT OPTIMIZATION" } else { "" },
        )
    }
}

#[allow(clippy::disallowed_methods, reason = "what is measured may be told a wrong time, not we")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    };
    text.lines().find_map(value)
}

/// The type of the file system on which temporary files lie.
fn file_system() -> Option<String> {
    let place = fs::canonicalize(std::env::temp_dir()).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        place.starts_with(&target).then_some((target.len(), kind))
    };
    // Of mounts on one place the last is seen.
    mounts.lines().filter_map(mount).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

/// `2026-01-31 23:59 UTC`, of seconds since 1970.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    let (mut year, mut day) = (1970, days);
    let length = |year: u64| if is_leap(year) { 366 } else { 365 };
    while day >= length(year) {
        day -= length(year);
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02} UTC", day + 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_know_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01 00:00 UTC");
        assert_eq!(timestamp(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(timestamp(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(timestamp(1_798_761_599), "2026-12-31 23:59 UTC");
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t\t: 1\nmodel name\t: A CPU: fast\nMemTotal:  2048 kB\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("2048 kB"));
        assert_eq!(field(text, "Mem"), None);
    }
}
