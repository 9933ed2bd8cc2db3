//! Profiles to compile.

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

const ALL: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];

pub(super) fn parse(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// Shaped as a runtime's default: a long allow list, some conditions, one errno.
pub(super) fn typical() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL,
        "syscalls": [
            {"names": ["read", "write", "open", "close", "stat", "fstat", "mmap", "brk", "ioctl",
                "pread64", "execve", "exit", "exit_group", "futex", "futex_time64", "openat",
                "rt_sigaction", "rt_sigreturn", "waitpid", "socketpair", "bind", "send", "sendmmsg",
                "semop", "shmget", "clone3x", "arch_prctl", "statx", "openat2", "set_tls"],
             "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 4294967295_u64, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_LT"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 39, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_GT"}]},
        ]
    })
}

/// Every operator, over 64 bits, with several arguments, repeated arguments and mixed actions.
pub(super) fn operators() -> Value {
    let wide = 0x1_0000_0005_u64;
    let entry = |name: &str, action: &str, args: Value| json!({"names": [name], "action": action, "args": args});
    let one = |op: &str, value: u64| json!([{"index": 2, "value": value, "op": op}]);
    json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": ALL,
        "syscalls": [
            entry("read", "SCMP_ACT_ALLOW", one("SCMP_CMP_EQ", wide)),
            entry("write", "SCMP_ACT_ALLOW", one("SCMP_CMP_NE", wide)),
            entry("open", "SCMP_ACT_ALLOW", one("SCMP_CMP_LT", wide)),
            entry("close", "SCMP_ACT_ALLOW", one("SCMP_CMP_LE", wide)),
            entry("lseek", "SCMP_ACT_ALLOW", one("SCMP_CMP_GT", wide)),
            entry("mprotect", "SCMP_ACT_ALLOW", one("SCMP_CMP_GE", wide)),
            entry("mmap", "SCMP_ACT_LOG", json!([
                {"index": 0, "value": 0xff_0000_00f0_u64, "valueTwo": 0x1_0000_0010_u64,
                 "op": "SCMP_CMP_MASKED_EQ"}])),
            entry("munmap", "SCMP_ACT_TRAP", json!([
                {"index": 5, "value": 7, "op": "SCMP_CMP_GE"},
                {"index": 0, "value": 3, "op": "SCMP_CMP_NE"},
                {"index": 3, "value": 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}])),
            entry("access", "SCMP_ACT_TRACE", json!([
                {"index": 1, "value": 4, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 2, "op": "SCMP_CMP_LT"}])),
            entry("pipe", "SCMP_ACT_ALLOW", one("SCMP_CMP_GT", 100)),
            entry("pipe", "SCMP_ACT_KILL", one("SCMP_CMP_GT", 50)),
            {"names": ["dup"], "action": "SCMP_ACT_ALLOW", "args": one("SCMP_CMP_EQ", 1)},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["dup"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["getpid"], "action": "SCMP_ACT_KILL_PROCESS"},
            entry("kill", "SCMP_ACT_ALLOW", json!([
                {"index": 0, "value": 0, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
                {"index": 1, "value": 15, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}])),
        ]
    })
}

/// Allows what it does not name, so nothing gives `ENOSYS`; refuses some calls under conditions.
pub(super) fn deny_list() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ALL,
        "syscalls": [
            {"names": ["mount", "umount2", "ptrace"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["socket", "shmget"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
             "args": [{"index": 0, "value": 0xffff_ffff_u64, "valueTwo": 38,
                       "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["socketcall"], "action": "SCMP_ACT_ALLOW"},
        ]
    })
}

/// The two 64-bit tables alone, and ARM's.
pub(super) fn with_architectures(architectures: &[&str]) -> Value {
    let mut profile = typical();
    profile["architectures"] = json!(architectures);
    profile
}

/// Every call that has a number, each with its own errno: the longest tree.
pub(super) fn everything(names: &[&str]) -> Value {
    let entries: Vec<Value> = names
        .iter()
        .zip(2..)
        .map(
            |(name, errno)| json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}),
        )
        .collect();
    json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL, "syscalls": entries})
}
