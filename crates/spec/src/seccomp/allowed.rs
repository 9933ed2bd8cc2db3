//! System calls by what a container needs to use them.
//!
//! Left out of every list, hence refused: what works on the node as a whole without a
//! capability check of its own, what is known for holes that one (`io_uring_*`,
//! `userfaultfd`, `keyctl` and its relatives), and what no program uses any more.
//! `socketcall` is left out because a filter cannot read the arguments behind its
//! pointer; C libraries do without it since Linux 4.3.

use oci_spec::runtime::Capability;

/// Allowed to every container, by subject.
pub(super) const ALWAYS: [&str; 12] = [
    // Files by path.
    "access chdir chmod chown chown32 creat faccessat faccessat2 fchmodat fchmodat2 fchownat \
     fstatat64 futimesat getcwd lchown lchown32 link linkat lstat lstat64 mkdir mkdirat mknod \
     mknodat name_to_handle_at newfstatat open openat openat2 readlink readlinkat rename \
     renameat renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat truncate \
     truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes",
    // Files by descriptor.
    "_llseek cachestat close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 \
     fallocate fchdir fchmod fchown fchown32 fcntl fcntl64 fdatasync flock fstat fstat64 fstatfs \
     fstatfs64 fsync ftruncate ftruncate64 getdents getdents64 ioctl lseek pipe pipe2 pread64 \
     preadv preadv2 pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice \
     sync sync_file_range syncfs tee vmsplice write writev",
    // Extended attributes, mount tables, watches, sandboxing of oneself.
    "fanotify_mark fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat \
     inotify_add_watch inotify_init inotify_init1 inotify_rm_watch landlock_add_rule \
     landlock_create_ruleset landlock_restrict_self lgetxattr listmount listxattr listxattrat \
     llistxattr lremovexattr lsetxattr removexattr removexattrat seccomp setxattr setxattrat \
     statmount",
    // Waiting for events, asynchronous input and output.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
     epoll_wait epoll_wait_old eventfd eventfd2 io_cancel io_destroy io_getevents \
     io_pgetevents io_pgetevents_time64 io_setup io_submit poll ppoll ppoll_time64 pselect6 \
     pselect6_time64 select",
    // Memory.
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 \
     mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
     pkey_free pkey_mprotect remap_file_pages",
    // Processes and threads.
    "capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 \
     futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp \
     getpid getppid getrusage getsid gettid kill pause pidfd_open pidfd_send_signal prctl \
     process_mrelease process_vm_readv process_vm_writev ptrace rseq set_robust_list \
     set_thread_area set_tid_address setpgid setsid tgkill tkill uretprobe vfork wait4 waitid \
     waitpid",
    // Users, groups, limits, what machine this is.
    "getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getrandom \
     getresgid getresgid32 getresuid getresuid32 getrlimit getuid getuid32 prlimit64 setfsgid \
     setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 \
     setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setuid setuid32 \
     sysinfo ugetrlimit uname",
    // Scheduling.
    "getpriority ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min \
     sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
     sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
     sched_setscheduler sched_yield setpriority",
    // Signals.
    "restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
     rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack \
     signalfd signalfd4 sigprocmask sigreturn",
    // Clocks and timers; setting the clock is checked by the kernel.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
     clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer \
     gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun \
     timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create \
     timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times",
    // Sockets, but for making one.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom \
     recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair",
    // System V IPC and message queues, of the sandbox's own namespace.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget",
];

/// Allowed on one kind of machine (in [`super::MACHINE`]'s words).
pub(super) const BY_MACHINE: [(&str, &str); 3] = [
    ("amd64", "arch_prctl modify_ldt"),
    (
        "arm64",
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    ("riscv64", "riscv_flush_icache riscv_hwprobe"),
];

/// Allowed to containers with a capability, and without meaning to others.
pub(super) const BY_CAPABILITY: [(Capability, &str); 14] = [
    (Capability::Bpf, "bpf"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Perfmon, "perf_event_open"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname \
         setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (
        Capability::SysNice,
        "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::Syslog, "syslog"),
];

/// Socket families: those below this number, and some above. Compared as they are
/// passed, 64 bits wide, so that a family with odd upper bits, which the kernel would
/// cut off, is refused too.
pub(super) const FAMILIES_BELOW: u64 = 38;

/// Families above [`FAMILIES_BELOW`]: NFC, KCM, QIPCRTR, SMC, XDP and MCTP. Not among them:
/// 38, AF_ALG, whose page-cache writes reached shared layers (CVE-2026-31431), and 40,
/// AF_VSOCK, which no namespace confines and which reaches the hypervisor.
pub(super) const FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// Execution domains (personality(2)): Linux for 64 and 32 bits, either of them with
/// `UNAME26`; and the question which one it is. None turns off address randomisation.
pub(super) const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Every namespace flag that clone(2) takes: a container without `CAP_SYS_ADMIN` makes
/// none, user namespaces included.
pub(super) const CLONE_NAMESPACES: u64 = 0x7e02_0000;
