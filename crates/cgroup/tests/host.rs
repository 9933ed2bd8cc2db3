//! The cgroups of the host itself. Needs root; every test has a cgroup of its own and proves
//! that it is gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_cgroup::{
    Cgroup, CgroupPath, Controller, CpuLimits, DeviceAccess, DeviceKind, DeviceRule, Error,
    Hierarchy, Limits, MemoryLimits,
};
use berth_model::ErrorKind;

const DEADLINE: Duration = Duration::from_secs(10);

/// A cgroup that is killed and removed at the end.
struct Scratch {
    hierarchy: Hierarchy,
    cgroup: Cgroup,
}

impl Scratch {
    /// `None`, said on standard error, when this is not root.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/berth-test-{}-{number}", std::process::id());
        let hierarchy = Hierarchy::detect().unwrap();
        let cgroup = hierarchy.create(&CgroupPath::new(&path).unwrap()).unwrap();
        Some(Self { hierarchy, cgroup })
    }

    /// CPU time used so far, nanoseconds.
    fn cpu(&self) -> u64 {
        self.cgroup.usage().unwrap().cpu.unwrap().total_ns
    }

    /// Starts a shell in the cgroup: its thread joins the v1 hierarchies before, and it is
    /// held until it is in the v2 one too.
    fn run(&self, script: &str) -> Child {
        let handles = self.cgroup.join_handles().unwrap();
        let script = format!("read go; {script}");
        let mut child = std::thread::spawn(move || {
            handles.join_self().unwrap();
            Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap()
        })
        .join()
        .unwrap();
        if let Some(unified) = self.cgroup.unified() {
            std::fs::write(unified.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        drop(child.stdin.take());
        child
    }

    fn status(&self, script: &str) -> ExitStatus {
        self.run(script).wait().unwrap()
    }

    fn remove(&self) {
        let result = until(|| match self.cgroup.remove() {
            Err(Error::Busy { .. }) => None,
            other => Some(other),
        });
        result.unwrap();
        assert!(!self.cgroup.exists());
        assert!(self.cgroup.paths().iter().all(|path| !path.exists()));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(self.cgroup.kill_all());
            std::thread::sleep(Duration::from_millis(100));
            drop(self.cgroup.remove());
            return;
        }
        self.cgroup.kill_all().unwrap();
        self.remove();
    }
}

fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn memory(limit: i64, swap: Option<i64>) -> MemoryLimits {
    MemoryLimits { limit: Some(limit), swap, reservation: None }
}

#[test]
fn a_cgroup_is_made_everywhere_and_removed_with_what_is_below() {
    let Some(scratch) = Scratch::new() else { return };
    assert!(scratch.cgroup.paths().iter().all(|path| path.is_dir()));
    let below = scratch.cgroup.path().child("a").unwrap().child("b").unwrap();
    let deep = scratch.hierarchy.create(&below).unwrap();
    scratch.hierarchy.create(&below).unwrap();
    assert!(scratch.hierarchy.open(&below).unwrap().exists());
    scratch.remove();
    scratch.remove();
    assert!(!deep.exists());
    let gone = scratch.hierarchy.open(&below).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert!(matches!(deep.usage(), Err(Error::NotFound(_))));
    assert_eq!(deep.pids().unwrap(), [0; 0]);
    deep.kill_all().unwrap();
}

/// teeth: crates/cgroup/src/processes.rs: `metadata.nlink() == 2` → `metadata.nlink() >= 2`
#[test]
fn processes_of_the_cgroups_below_are_listed_and_killed_too() {
    let Some(scratch) = Scratch::new() else { return };
    let below = scratch.cgroup.path().child("a").unwrap().child("b").unwrap();
    let deep = scratch.hierarchy.create(&below).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    for directory in deep.paths() {
        std::fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    assert_eq!(scratch.cgroup.pids().unwrap(), [child.id()]);
    scratch.cgroup.kill_all().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    scratch.remove();
}

#[test]
fn limits_are_what_the_kernel_then_enforces() {
    let Some(scratch) = Scratch::new() else { return };
    if !scratch.hierarchy.has(Controller::Pids) || !scratch.hierarchy.has(Controller::Memory) {
        eprintln!("skipped: needs the pids and memory controllers");
        return;
    }
    let limits = Limits {
        cpu: CpuLimits {
            shares: Some(204),
            quota: Some(20_000),
            period: Some(50_000),
            ..CpuLimits::default()
        },
        cpus: Some("0".into()),
        mems: Some("0".into()),
        memory: memory(64 << 20, None),
        pids: Some(2),
        ..Limits::default()
    };
    scratch.cgroup.apply(&limits).unwrap();
    assert_eq!(scratch.cgroup.usage().unwrap().memory.unwrap().limit_bytes, Some(64 << 20));
    // The shell is one task, its first child another; a third cannot be forked.
    assert!(!scratch.status("sleep 1 & sleep 1 & wait").success());
    scratch.cgroup.apply(&Limits { pids: Some(-1), ..Limits::default() }).unwrap();
    assert!(scratch.status("sleep 0 & sleep 0 & wait").success());
    // Raised and lowered again, whatever the order in which the kernel wants the files.
    for megabytes in [128, 32, 256] {
        let swap = scratch.hierarchy.has_swap_limit().then_some(megabytes << 20);
        let limits = Limits { memory: memory(megabytes << 20, swap), ..Limits::default() };
        scratch.cgroup.apply(&limits).unwrap();
    }
    for (quota, period) in [(5_000, 5_000), (900_000, 1_000_000), (-1, 100_000)] {
        let cpu = CpuLimits { quota: Some(quota), period: Some(period), ..CpuLimits::default() };
        scratch.cgroup.apply(&Limits { cpu, ..Limits::default() }).unwrap();
    }
    let refused = Limits { cpus: Some("nonsense".into()), ..Limits::default() };
    assert_eq!(scratch.cgroup.apply(&refused).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn every_process_is_listed_and_killed() {
    let Some(scratch) = Scratch::new() else { return };
    let mut child = scratch.run("sleep 1000 & sleep 1000 & wait");
    let listed = until(|| Some(scratch.cgroup.pids().unwrap()).filter(|pids| pids.len() == 3));
    assert!(listed.contains(&child.id()));
    assert!(matches!(scratch.cgroup.remove(), Err(Error::Busy { .. })));
    scratch.cgroup.kill_all().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    until(|| scratch.cgroup.pids().unwrap().is_empty().then_some(()));
}

#[test]
fn a_frozen_cgroup_stands_still_and_can_be_killed() {
    let Some(scratch) = Scratch::new() else { return };
    let mut child = scratch.run("while :; do :; done");
    until(|| Some(()).filter(|()| scratch.cpu() > 0));
    until(|| scratch.cgroup.set_frozen(true).unwrap().then_some(()));
    let before = scratch.cpu();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(scratch.cpu(), before);
    until(|| scratch.cgroup.set_frozen(false).unwrap().then_some(()));
    until(|| Some(()).filter(|()| scratch.cpu() > before));
    until(|| scratch.cgroup.set_frozen(true).unwrap().then_some(()));
    scratch.cgroup.kill_all().unwrap();
    if scratch.cgroup.unified().is_none() {
        scratch.cgroup.set_frozen(false).unwrap();
    }
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn usage_is_counted_and_a_kill_for_memory_too() {
    let Some(scratch) = Scratch::new() else { return };
    if !scratch.hierarchy.has(Controller::Memory) {
        eprintln!("skipped: needs the memory controller");
        return;
    }
    let swap = scratch.hierarchy.has_swap_limit().then_some(16 << 20);
    let limits = Limits { memory: memory(16 << 20, swap), ..Limits::default() };
    scratch.cgroup.apply(&limits).unwrap();
    assert_eq!(scratch.cgroup.oom_kills().unwrap(), 0);
    let mut child = scratch.run("sleep 1000 & wait");
    let usage = until(|| {
        let usage = scratch.cgroup.usage().unwrap();
        let rss = usage.memory.map_or(0, |memory| memory.rss_bytes);
        Some(usage).filter(|usage| rss > 0 && usage.pids == Some(2))
    });
    let memory = usage.memory.unwrap();
    assert!(memory.bytes >= memory.working_set_bytes && memory.working_set_bytes > 0);
    assert!(memory.page_faults > 0 && usage.at.0 > 0 && scratch.cpu() > 0);
    assert_eq!(memory.limit_bytes, Some(16 << 20));
    let details = scratch.cgroup.details().unwrap();
    assert_eq!(details.oom_kills, Some(0));
    assert_eq!(details.usage.memory.unwrap().limit_bytes, Some(16 << 20));
    assert!(details.usage.cpu.unwrap().system_ns.is_some());
    // A line without an end, all of it kept in memory.
    let killed = scratch.status("exec tail /dev/zero");
    assert_eq!(killed.signal(), Some(9));
    assert!(scratch.cgroup.oom_kills().unwrap() >= 1);
    scratch.cgroup.kill_all().unwrap();
    child.wait().unwrap();
}

#[test]
fn only_allowed_devices_can_be_opened() {
    let Some(scratch) = Scratch::new() else { return };
    if !scratch.hierarchy.has(Controller::Devices) {
        eprintln!("skipped: needs the devices controller");
        return;
    }
    let device = |minor, access: &str| DeviceRule {
        allow: true,
        kind: DeviceKind::Char,
        major: Some(1),
        minor: Some(minor),
        access: DeviceAccess::parse(access).unwrap(),
    };
    let rules = vec![device(3, "rwm"), device(5, "r")];
    scratch.cgroup.apply(&Limits { devices: Some(rules), ..Limits::default() }).unwrap();
    assert!(scratch.status("echo x > /dev/null && head -c 1 /dev/zero > /dev/null").success());
    assert!(!scratch.status("echo x > /dev/zero").success());
    assert!(!scratch.status("head -c 1 /dev/urandom > /dev/null").success());
    let all = DeviceRule {
        allow: true,
        kind: DeviceKind::All,
        major: None,
        minor: None,
        access: DeviceAccess::ALL,
    };
    scratch.cgroup.apply(&Limits { devices: Some(vec![all]), ..Limits::default() }).unwrap();
    assert!(scratch.status("head -c 1 /dev/urandom > /dev/null").success());
}

#[test]
fn a_signal_reaches_every_process_and_no_number_but_a_signals() {
    let Some(scratch) = Scratch::new() else { return };
    let mut children = [scratch.run("exec sleep 1000"), scratch.run("exec sleep 1000")];
    let invalid = scratch.cgroup.signal_all(65).unwrap_err();
    assert_eq!(invalid.kind(), ErrorKind::InvalidArgument);
    scratch.cgroup.signal_all(15).unwrap();
    for child in &mut children {
        assert_eq!(child.wait().unwrap().signal(), Some(15));
    }
    scratch.cgroup.signal_all(15).unwrap();
    scratch.remove();
    scratch.cgroup.signal_all(15).unwrap();
}
