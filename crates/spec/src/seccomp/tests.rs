use std::collections::BTreeSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use super::allowed::{ALWAYS, BY_CAPABILITY, BY_MACHINE};
use super::*;
use crate::Error;
use crate::capabilities::{all, default_set};

fn rules<'a>(profile: &'a LinuxSeccomp, name: &str) -> impl Iterator<Item = &'a LinuxSyscall> {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    rules.iter().filter(move |rule| rule.names().iter().any(|known| known == name))
}

fn matches(arg: &LinuxSeccompArg, value: u64) -> bool {
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpLt => value < arg.value(),
        LinuxSeccompOperator::ScmpCmpEq => value == arg.value(),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            value & arg.value() == arg.value_two().unwrap_or(0)
        }
        other => panic!("{other} is not used"),
    }
}

/// What happens to a call with this first argument.
fn outcome(profile: &LinuxSeccomp, name: &str, first: u64) -> Result<(), u32> {
    for rule in rules(profile, name) {
        if rule.args().iter().flatten().all(|arg| arg.index() == 0 && matches(arg, first)) {
            return match rule.action() {
                LinuxSeccompAction::ScmpActAllow => Ok(()),
                LinuxSeccompAction::ScmpActErrno => Err(rule.errno_ret().unwrap_or(1)),
                other => panic!("{other}"),
            };
        }
    }
    assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
    Err(profile.default_errno_ret().unwrap())
}

#[test]
fn every_list_is_made_of_names_each_once() {
    let mut seen = BTreeSet::new();
    let names = ALWAYS.iter().flat_map(|list| list.split_whitespace());
    for name in names {
        assert!(seen.insert(name), "{name} is listed twice");
    }
    assert_eq!(seen.len(), 362, "a changed list is a change of policy");
    let special = BY_CAPABILITY.iter().map(|(_, names)| names);
    let machine = BY_MACHINE.iter().map(|(_, names)| names);
    for name in special.chain(machine).flat_map(|list| list.split_whitespace()) {
        assert!(!seen.contains(name), "{name} is always allowed");
    }
}

#[test]
fn calls_that_reach_the_node_need_their_capability() {
    let none = default_profile(&default_set());
    let every = default_profile(&all());
    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "perf_event_open",
        "open_by_handle_at",
        "init_module",
        "finit_module",
        "reboot",
        "settimeofday",
        "iopl",
        "pidfd_getfd",
        "acct",
        "syslog",
        "fsopen",
        "open_tree",
        "move_mount",
        "mbind",
        "quotactl",
        "sethostname",
    ] {
        assert_eq!(outcome(&none, name, 0), Err(1), "{name}");
        assert_eq!(outcome(&every, name, 0), Ok(()), "{name}");
    }
    assert_eq!(outcome(&none, "chroot", 0), Ok(()));
    assert_eq!(outcome(&default_profile(&Capabilities::new()), "chroot", 0), Err(1));
}

#[test]
fn some_calls_are_for_nobody() {
    let every = default_profile(&all());
    for name in [
        "keyctl",
        "add_key",
        "request_key",
        "userfaultfd",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "kexec_load",
        "kexec_file_load",
        "swapon",
        "swapoff",
        "nfsservctl",
        "pivot_root",
        "uselib",
        "ustat",
        "sysfs",
        "_sysctl",
        "socketcall",
        "vm86",
        "no_such_call",
    ] {
        assert_eq!(outcome(&every, name, 0), Err(1), "{name}");
    }
}

#[test]
fn what_programs_live_on_is_allowed() {
    let none = default_profile(&Capabilities::new());
    for name in [
        "read",
        "write",
        "openat",
        "openat2",
        "execve",
        "mmap",
        "futex",
        "epoll_pwait",
        "wait4",
        "exit_group",
        "rt_sigreturn",
        "getrandom",
        "clock_gettime64",
        "ptrace",
        "statx",
        "rseq",
        "connect",
        "sendmsg",
        "prctl",
        "arch_prctl",
    ] {
        if name == "arch_prctl" && !cfg!(target_arch = "x86_64") {
            continue;
        }
        assert_eq!(outcome(&none, name, 0), Ok(()), "{name}");
    }
}

/// teeth: crates/spec/src/seccomp/allowed.rs: `FAMILIES_BELOW: u64 = 38` → `FAMILIES_BELOW: u64 = 41`
#[test]
fn r21_sockets_that_no_namespace_confines_are_refused() {
    for capabilities in [default_set(), all()] {
        let profile = default_profile(&capabilities);
        for family in 0..=64 {
            let allowed = family < 46 && family != 38 && family != 40;
            assert_eq!(outcome(&profile, "socket", family), if allowed { Ok(()) } else { Err(1) });
        }
        // The kernel reads an int: these are 38 and 40 to it.
        for family in [38, 40] {
            for upper in [1 << 32, 1 << 63, u64::MAX << 32] {
                assert_eq!(outcome(&profile, "socket", upper | family), Err(1));
            }
        }
        assert_eq!(outcome(&profile, "socketcall", 1), Err(1));
    }
}

#[test]
fn new_namespaces_need_the_administrator() {
    let none = default_profile(&default_set());
    for flag in
        [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
    {
        assert_eq!(outcome(&none, "clone", flag), Err(1), "{flag:#x}");
        assert_eq!(outcome(&none, "clone", flag | 0x11), Err(1), "{flag:#x}");
    }
    // What glibc passes for a thread and for fork.
    for flags in [0x003d_0f00, 0x0120_0011] {
        assert_eq!(outcome(&none, "clone", flags), Ok(()));
    }
    assert_eq!(outcome(&none, "clone3", 0), Err(38));
    let admin = default_profile(&[Capability::SysAdmin].into());
    assert_eq!(outcome(&admin, "clone", 0x1000_0000), Ok(()));
    assert_eq!(outcome(&admin, "clone3", 0), Ok(()));
}

#[test]
fn personalities_do_not_turn_off_address_randomisation() {
    let profile = default_profile(&all());
    for domain in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        assert_eq!(outcome(&profile, "personality", domain), Ok(()));
    }
    for domain in [0x4_0000, 0x4_0008, 1, 1 << 32] {
        assert_eq!(outcome(&profile, "personality", domain), Err(1));
    }
}

#[test]
fn no_rule_looks_at_one_argument_twice() {
    // Runtimes read that as "or", a plain reader as "and".
    for rule in default_profile(&default_set()).syscalls().iter().flatten() {
        assert!(rule.args().iter().flatten().count() <= 1, "{rule:?}");
    }
}

fn read(text: &str) -> Result<LinuxSeccomp, Error> {
    parse("p.json", text.as_bytes(), &default_set())
}

#[test]
fn a_profile_survives_its_json() {
    let default = default_profile(&default_set());
    let text = serde_json::to_string(&default).unwrap();
    assert_eq!(read(&text).unwrap(), default);
}

#[test]
fn dockers_conditions_are_resolved() {
    let profile = read(
        r#"{
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null},
            {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}
        ],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x", "args": null},
            {"name": "write", "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["a"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_KILL"]}},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["c"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390"]}},
            {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "arm64"]}},
            {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["f"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}}
        ]}"#,
    )
    .unwrap();
    let names: Vec<_> =
        profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect();
    let mut expected = vec!["read", "write", "chroot", "b", "d", "e"];
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        expected.retain(|name| *name != "d");
    }
    assert_eq!(names, expected);
    if cfg!(target_arch = "x86_64") {
        let expected = vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86];
        assert_eq!(profile.architectures(), &Some(expected));
    }
}

/// teeth: crates/spec/src/seccomp/parse.rs: `default_action: LinuxSeccompAction,` → `#[serde(default)] default_action: LinuxSeccompAction,`
#[test]
fn d7_an_empty_or_broken_profile_is_an_error() {
    for bad in [
        "",
        " ",
        "{}",
        "null",
        "[]",
        r#"{"defaultAction":"ALLOW"}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"]}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["VAX"]}"#,
    ] {
        assert!(matches!(read(bad), Err(Error::SeccompSyntax { .. })), "{bad}");
    }
    for bad in [
        r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_ALLOW"}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_LOG"}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_LOG","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_LOG","includes":{"caps":["CAP_NO"]}}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_LOG","includes":{"minKernel":"x"}}]}"#,
        r#"{"defaultAction":"SCMP_ACT_LOG","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}"#,
    ] {
        assert!(matches!(read(bad), Err(Error::SeccompProfile { .. })), "{bad}");
    }
    let large = " ".repeat(MAX_PROFILE_BYTES + 1);
    assert!(matches!(read(&large), Err(Error::SeccompProfile { .. })));
}
