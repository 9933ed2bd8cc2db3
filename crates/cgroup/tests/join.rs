//! A child joins by itself: cloned into the v2 hierarchy, then through `tasks` of the v1 ones.
//! Without the usual harness, since it has threads and only a process without may fork.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use berth_cgroup::{Cgroup, CgroupPath, Hierarchy};
use berth_sys::process::{ForkOptions, fork};
use nix::sys::wait::{WaitStatus, waitpid};

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let path = CgroupPath::new(&format!("/berth-test-join-{}", std::process::id())).unwrap();
    let cgroup = Hierarchy::detect().unwrap().create(&path).unwrap();
    let result = std::panic::catch_unwind(|| joins(&cgroup));
    let deadline = Instant::now() + Duration::from_secs(10);
    while cgroup.remove().is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!cgroup.exists());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    eprintln!("a child joins every hierarchy by itself ... ok");
}

fn joins(cgroup: &Cgroup) {
    for cloned_into in [true, false] {
        let handles = cgroup.join_handles().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let options = ForkOptions {
            cgroup: if cloned_into { handles.unified() } else { None },
            ..ForkOptions::default()
        };
        let child = fork(&options, |_| {
            let joined = if cloned_into { Ok(()) } else { handles.join_unified_self() };
            if joined.and_then(|()| handles.join_self()).is_err() {
                return 1;
            }
            let Ok(cgroups) = std::fs::read("/proc/self/cgroup") else { return 2 };
            u8::from(nix::unistd::write(&writer, &cgroups).is_err()) * 3
        })
        .unwrap();
        drop(writer);
        assert_eq!(waitpid(child.pid, None).unwrap(), WaitStatus::Exited(child.pid, 0));
        let mut text = vec![0; 1 << 16];
        let length = nix::unistd::read(&reader, &mut text).unwrap();
        let text = String::from_utf8(text[..length].to_vec()).unwrap();
        let here = cgroup.path().as_str();
        let lines = text.lines().filter(|line| line.ends_with(here)).count();
        assert_eq!(lines, cgroup.paths().len(), "{text}");
        assert!(handles.unified().is_none_or(|unified| unified.as_raw_fd() > 2));
    }
}
