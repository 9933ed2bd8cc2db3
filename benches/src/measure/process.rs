//! Processes as `/proc` shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

/// A process, as far as one must know it to say whose it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// When it started, clock ticks after boot: with the pid, this names it for good.
    pub(crate) started: u64,
    pub(crate) threads: u64,
    /// How many PID namespaces it is in, seen from here: deeper than its daemon is inside a
    /// container.
    pub(crate) depth: usize,
    /// Its cgroups, in whichever hierarchies there are.
    pub(crate) cgroups: BTreeSet<String>,
    /// Its command line, words separated by blanks.
    pub(crate) command: String,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stat {
    pub(crate) parent: u32,
    pub(crate) threads: u64,
    /// CPU time of ended children that it has waited for, clock ticks.
    pub(crate) children: u64,
    pub(crate) started: u64,
}

/// What `/proc/PID/task/TID/status` says of how often a thread gave the processor away.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Switches {
    /// It waited for something; each of these ends with a wakeup.
    pub(crate) voluntary: u64,
    /// It was pushed aside by another one.
    pub(crate) involuntary: u64,
}

/// Memory of one process, KiB.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Rollup {
    pub(crate) rss: u64,
    /// Pages shared with others counted in shares: the sum over all processes is true.
    pub(crate) pss: u64,
    /// The part of [`Rollup::pss`] that no file holds.
    pub(crate) anon: u64,
}

/// Every process of the machine, by pid.
pub(crate) fn all() -> Result<BTreeMap<u32, Process>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        if let Some(process) = read(pid)? {
            found.insert(pid, process);
        }
    }
    Ok(found)
}

/// `None` if it is gone.
fn read(pid: u32) -> Result<Option<Process>> {
    let (Some(stat), Some(status), Some(cgroups), Some(command)) = (
        text(&file(pid, "stat"))?,
        text(&file(pid, "status"))?,
        text(&file(pid, "cgroup"))?,
        text(&file(pid, "cmdline"))?,
    ) else {
        return Ok(None);
    };
    let stat = Stat::parse(&stat).with_context(|| format!("understand /proc/{pid}/stat"))?;
    Ok(Some(Process {
        pid,
        parent: stat.parent,
        started: stat.started,
        threads: stat.threads,
        depth: depth(&status),
        cgroups: paths(&cgroups),
        command: command.replace('\0', " ").trim_end().to_owned(),
    }))
}

/// A file of process `pid`.
pub(crate) fn file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// What a file of `/proc` says; `None` if the process that it tells of is gone. A file that
/// may not be read is an error: what it counts must not look like nothing.
pub(crate) fn text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        // A program may call itself what it likes.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

impl Stat {
    /// Of the text of `/proc/PID/stat`; proc_pid_stat(5) numbers its fields.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold any byte.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(field(4)?).ok()?,
            // These two are signed; a process that never waited for a child has 0.
            children: field(16).unwrap_or(0) + field(17).unwrap_or(0),
            threads: field(20)?,
            started: field(22)?,
        })
    }
}

impl Switches {
    /// Of the text of a `status`.
    pub(crate) fn parse(status: &str) -> Option<Self> {
        let field = |key| value(status, key)?.parse().ok();
        Some(Self {
            voluntary: field("voluntary_ctxt_switches")?,
            involuntary: field("nonvoluntary_ctxt_switches")?,
        })
    }
}

impl Rollup {
    /// Of process `pid`; `None` if it is gone.
    pub(crate) fn read(pid: u32) -> Result<Option<Self>> {
        Ok(text(&file(pid, "smaps_rollup"))?.map(|text| Self::parse(&text)))
    }

    /// Of the text of a `smaps_rollup`, which is empty for a process that has ended and that
    /// nobody has waited for.
    fn parse(text: &str) -> Self {
        let field = |key| kib(text, key).unwrap_or(0);
        Self { rss: field("Rss"), pss: field("Pss"), anon: field("Pss_Anon") }
    }
}

/// In how many PID namespaces the process of this `status` is.
fn depth(status: &str) -> usize {
    value(status, "NSpid").map_or(1, |pids| pids.split_ascii_whitespace().count())
}

/// The cgroups in the text of `/proc/PID/cgroup`: `number:controllers:path`.
fn paths(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(str::to_owned).collect()
}

/// The number of KiB in the line `key:`.
pub(crate) fn kib(text: &str, key: &str) -> Option<u64> {
    value(text, key)?.strip_suffix("kB")?.trim_end().parse().ok()
}

/// What stands in the line `key:`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "32259 (a) S 1 (b) S 1 32259 32259 0 -1 4194304 99 7 0 0 3 4 20 22 20 0 \
                        5 0 2377663 3133440 358 18446744073709551615 94361292320768 1 2 0 0 0 0 0";
    const STATUS: &str = "Name:\tsleep\nUmask:\t0022\nPPid:\t32259\nNSpid:\t32262\t1\n\
                          Threads:\t1\nvoluntary_ctxt_switches:\t12\n\
                          nonvoluntary_ctxt_switches:\t3\n";
    const ROLLUP: &str = "55950094e000-7ffec3422000 ---p 00000000 00:00 0    [rollup]\n\
                          Rss:                1620 kB\nPss:                 325 kB\n\
                          Pss_Dirty:           112 kB\nPss_Anon:            112 kB\n\
                          Pss_File:            213 kB\n";

    #[test]
    fn a_stat_is_understood_whatever_the_program_calls_itself() {
        let stat = Stat::parse(STAT).unwrap();
        assert_eq!(stat, Stat { parent: 1, threads: 5, children: 42, started: 2_377_663 });
        assert_eq!(Stat::parse("12 (cut) S 1 12"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_status_tells_the_depth_of_namespaces_and_the_switches() {
        assert_eq!(depth(STATUS), 2);
        assert_eq!(depth("Name:\tkthreadd\n"), 1);
        let switches = Switches { voluntary: 12, involuntary: 3 };
        assert_eq!(Switches::parse(STATUS), Some(switches));
        assert_eq!(Switches::parse("Name:\tsleep\n"), None);
    }

    #[test]
    fn a_rollup_is_in_kib_and_that_of_a_zombie_is_nothing() {
        assert_eq!(Rollup::parse(ROLLUP), Rollup { rss: 1620, pss: 325, anon: 112 });
        assert_eq!(Rollup::parse(""), Rollup::default());
    }

    #[test]
    fn cgroups_of_both_versions_are_found_once_each() {
        let text = "9:name=systemd:/pods/a:b\n8:pids:/pods/a:b\n2:cpu,cpuacct:/\n0::/pods/a:b\n";
        assert_eq!(paths(text), BTreeSet::from(["/".to_owned(), "/pods/a:b".to_owned()]));
    }

    #[test]
    fn this_process_is_among_all() {
        let own = std::process::id();
        let found = all().unwrap();
        assert!(found[&own].threads > 0 && found[&own].started > 0);
        assert!(Rollup::read(own).unwrap().unwrap().pss > 0);
        assert_eq!(text(&file(u32::MAX, "stat")).unwrap(), None);
    }
}
