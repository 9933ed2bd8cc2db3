//! Calls by kind, and what is left out because it is chance. Pure.
//!
//! Left out, since how often it happens is decided by scheduling and not by the program:
//! waiting, and waking a thread that waits; a call that found nothing there; receiving,
//! which a stream cuts anywhere; reading what the kernel or the machine tells, in as many
//! pieces as it is long; what the allocator and the thread pool of a process with
//! threads do. And the looks that a debug build has at each descriptor: without them it
//! counts what a release build does.

use std::collections::BTreeMap;

use crate::trace::{Call, Role, Trace, is_clone};

/// How often, or how much, by name.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// What every count has, also when there is none.
const NAMES: [&str; 13] = [
    "calls",
    "daemon_calls",
    "shim_calls",
    "files",
    "descriptors",
    "mounts",
    "sockets",
    "process",
    "processes",
    "execs",
    "syncs",
    "written",
    "netlink",
];

/// Counts what Berth did in `calls`.
pub(crate) fn count(calls: &[Call], trace: &Trace) -> Counts {
    let mut counts: Counts = NAMES.iter().map(|name| (*name, 0)).collect();
    let mut add = |name, amount| *counts.entry(name).or_default() += amount;
    for call in calls.iter().filter(|call| call.role != Role::Workload && !is_chance(call)) {
        add("calls", 1);
        add(if call.role == Role::Daemon { "daemon_calls" } else { "shim_calls" }, 1);
        add(family(&call.name), 1);
        let done = call.number();
        match call.name.as_str() {
            name if is_clone(name) && done.is_some() => add("processes", 1),
            "execve" | "execveat" if done == Some(0) => add("execs", 1),
            name if is_sync(name) => add("syncs", 1),
            "sendto" | "sendmsg" | "sendmmsg"
                if call.descriptor().is_some_and(|socket| trace.is_netlink(socket)) =>
            {
                add("netlink", 1);
            }
            name if is_write(name) && reaches_a_disk(call) => add("written", done.unwrap_or(0)),
            _ => {}
        }
    }
    counts
}

/// How often each call of Berth was made, for who wants to know what is behind a count.
pub(crate) fn by_name(calls: &[Call]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for call in calls.iter().filter(|call| call.role != Role::Workload && !is_chance(call)) {
        *counts.entry(call.name.clone()).or_default() += 1;
    }
    counts
}

/// Calls of daemon and shims, chance too: of a node at rest each is a wake-up, but how many
/// it takes to give memory back is no matter.
pub(crate) fn wake_ups(calls: &[Call]) -> Counts {
    let of = |role| {
        let calls = calls.iter().filter(|call| call.role == role);
        calls.filter(|call| !MEMORY.contains(&call.name.as_str())).count() as u64
    };
    Counts::from([("daemon_calls", of(Role::Daemon)), ("shim_calls", of(Role::Shim))])
}

/// What the allocator does.
const MEMORY: [&str; 6] = ["brk", "mmap", "munmap", "mremap", "mprotect", "madvise"];

fn is_chance(call: &Call) -> bool {
    const WAITING: [&str; 6] =
        ["futex", "epoll_wait", "epoll_pwait", "poll", "sched_yield", "restart_syscall"];
    const RECEIVING: [&str; 3] = ["recvfrom", "recvmsg", "recvmmsg"];
    const THREADS: [&str; 9] = [
        "exit",
        "exit_group",
        "gettid",
        "rseq",
        "rt_sigprocmask",
        "rt_sigreturn",
        "sched_getaffinity",
        "set_robust_list",
        "sigaltstack",
    ];
    let name = call.name.as_str();
    if WAITING.contains(&name) || RECEIVING.contains(&name) {
        return true;
    }
    if MEMORY.contains(&name) || THREADS.contains(&name) {
        return true;
    }
    if is_clone(name) && call.arguments.contains("CLONE_THREAD") {
        return true;
    }
    if call.result.contains("EAGAIN") || call.result.contains("ERESTART") {
        return true;
    }
    let streams = ["anon_inode:[eventfd]", "pipe:", "socket:", "/proc/", "/sys/", "/etc/"];
    let stream = |what: &str| streams.iter().any(|stream| what.starts_with(stream));
    match name {
        "prctl" => call.arguments.starts_with("PR_SET_NAME"),
        // Keys of hash maps, once in a thread.
        "getrandom" => call.arguments.ends_with("GRND_INSECURE"),
        "fcntl" => ["F_GETFD", "F_GETFL"].iter().any(|look| call.arguments.ends_with(look)),
        "read" | "readv" => call.descriptor().is_some_and(stream),
        "write" => call.descriptor() == Some("anon_inode:[eventfd]"),
        _ => false,
    }
}

/// What calls work on; those that are not here work on the caller or on another process.
const FAMILIES: [(&str, &str); 4] = [
    ("mounts", "mount umount2 fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr"),
    (
        "sockets",
        "accept4 bind connect getsockname getsockopt listen sendmmsg sendmsg sendto setsockopt \
         shutdown socket socketpair",
    ),
    (
        "files",
        "access chdir chmod chown creat faccessat2 fchmodat fchownat getcwd getxattr lgetxattr \
         link linkat llistxattr lsetxattr lstat mkdir mkdirat mknodat newfstatat open openat \
         openat2 readlink readlinkat rename renameat renameat2 rmdir stat statfs statx \
         symlinkat truncate unlink unlinkat utimensat",
    ),
    (
        "descriptors",
        "close close_range copy_file_range dup dup2 dup3 epoll_create1 epoll_ctl eventfd2 \
         fadvise64 fallocate fchdir fchmod fchown fcntl fdatasync fgetxattr flistxattr flock \
         fsetxattr fstat fstatfs fsync ftruncate getdents64 ioctl lseek pidfd_open pipe2 \
         pread64 pwrite64 pwritev read readv sendfile splice sync_file_range syncfs write writev",
    ),
];

fn family(name: &str) -> &'static str {
    let is_in = |names: &str| names.split(' ').any(|known| known == name);
    FAMILIES.iter().find(|(_, names)| is_in(names)).map_or("process", |(family, _)| family)
}

fn is_sync(name: &str) -> bool {
    matches!(name, "fsync" | "fdatasync" | "sync" | "syncfs" | "sync_file_range" | "msync")
}

fn is_write(name: &str) -> bool {
    matches!(name, "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2")
        || matches!(name, "sendfile" | "copy_file_range" | "splice")
}

/// Whether a write goes to a file that is kept. Standard error is the daemon's log, whose
/// lines have durations in them.
fn reaches_a_disk(call: &Call) -> bool {
    let kernel = ["/proc/", "/sys/", "/dev/"];
    let kept =
        |path: &str| path.starts_with('/') && !kernel.iter().any(|dir| path.starts_with(dir));
    call.descriptor().is_some_and(kept) && !matches!(call.descriptor_number(), Some(1 | 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Counts {
        let mut trace = Trace::new("/shim");
        let calls = trace.read(text);
        count(&calls, &trace)
    }

    #[test]
    fn work_is_counted_by_kind() {
        let counts = counted(
            "1 socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) = 5<socket:[7]>\n\
             1 sendto(5<socket:[7]>, \"\"..., 40, 0, NULL, 0) = 40\n\
             1 sendto(6<socket:[8]>, \"\"..., 40, 0, NULL, 0) = 40\n\
             1 pwrite64(4</root/pods.db-wal>, \"\"..., 4096, 32) = 4096\n\
             1 write(4</sys/fs/cgroup/cgroup.procs>, \"\"..., 1) = 1\n\
             1 write(2</tmp/berthd.log>, \"\"..., 100) = 100\n\
             1 fdatasync(4</root/pods.db-wal>) = 0\n\
             1 mount(\"overlay\", \"/x\", \"overlay\", 0, 0x1) = 0\n\
             1 openat(AT_FDCWD</>, \"/none\", O_RDONLY) = -1 ENOENT (No such file)\n\
             1 clone3({flags=CLONE_PIDFD}, 88) = 2\n\
             2 execve(\"/shim\", [\"/shim\"], 0x1) = 0\n\
             2 close(3</x>) = 0\n",
        );
        let expected = [
            ("netlink", 1),
            ("written", 4096),
            ("syncs", 1),
            ("mounts", 1),
            ("files", 1),
            ("processes", 1),
            ("execs", 1),
            ("shim_calls", 1),
            ("calls", 12),
        ];
        for (name, amount) in expected {
            assert_eq!(counts[name], amount, "{name} of {counts:?}");
        }
    }

    #[test]
    fn chance_and_the_container_s_own_work_are_not() {
        let counts = counted(
            "1 futex(0x7, FUTEX_WAKE_PRIVATE, 1) = 1\n\
             1 accept4(3<socket:[7]>, 0x1, 0x2, SOCK_CLOEXEC) = -1 EAGAIN (Try again)\n\
             1 write(6<anon_inode:[eventfd]>, \"\"..., 8) = 8\n\
             1 read(8</proc/7/mountinfo>, \"\"..., 1024) = 1024\n\
             1 read(7<pipe:[9]>, \"\"..., 8) = 8\n\
             1 fcntl(4</x>, F_GETFD) = 0x1 (flags FD_CLOEXEC)\n\
             1 clone3({flags=CLONE_VM|CLONE_THREAD}, 88) = 2\n\
             3 execve(\"/shim\", [\"/shim\"], 0x1) = 0\n\
             3 execve(\"/bin/true\", [\"true\"], 0x1) = 0\n\
             3 openat(AT_FDCWD</>, \"/etc/passwd\", O_RDONLY) = 3</etc/passwd>\n",
        );
        assert_eq!((counts["calls"], counts["execs"]), (2, 2));
    }

    #[test]
    fn of_a_node_at_rest_waiting_counts() {
        let calls = Trace::new("/shim").read(
            "1 epoll_wait(5<anon_inode:[eventpoll]>) = 0\n\
             1 madvise(0x7fba141c1000, 8192, MADV_DONTNEED) = 0\n",
        );
        assert_eq!(wake_ups(&calls), Counts::from([("daemon_calls", 1), ("shim_calls", 0)]));
    }
}
