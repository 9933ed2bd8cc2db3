//! What is refused, and what is remembered.

use std::sync::Arc;

use berth_model::ErrorKind;
use serde_json::{Value, json};

use super::interpreter::{Call, run};
use super::profiles::{parse, typical};
use crate::arch::Abi;
use crate::{Error, compile, compile::compile as compile_for};

fn refused(profile: Value) -> Error {
    compile_for(&parse(profile), Abi::X86_64).unwrap_err()
}

#[test]
fn notify_is_refused_by_name() {
    let rule = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]});
    let error = refused(rule);
    assert_eq!(error.to_string(), "seccomp action SCMP_ACT_NOTIFY for mount is not supported");
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    let default = refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    assert_eq!(default, Error::Notify { syscall: None });
}

#[test]
fn an_impossible_argument_or_errno_is_refused() {
    let error = refused(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW",
         "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}));
    assert_eq!(error, Error::ArgumentIndex { syscall: "read".into(), index: 6 });
    let error = refused(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}));
    assert_eq!(error, Error::ReturnValue(65536));
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_profile_beyond_the_kernels_limit_is_refused() {
    let rules = |count: u64| {
        let entries: Vec<Value> = (0..count)
            .map(|value| {
                json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": value << 32 | value, "op": "SCMP_CMP_EQ"}]})
            })
            .collect();
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": entries})
    };
    let most = compile_for(&parse(rules(950)), Abi::X86_64).unwrap();
    assert!(most.len() > 3800 && most.len() <= 4096, "{}", most.len());
    for count in [1100, 50_000] {
        assert!(matches!(refused(rules(count)), Error::TooLong { limit: 4096, .. }));
    }
}

#[test]
fn a_profile_without_entries_is_its_default_action() {
    let program =
        compile_for(&parse(json!({"defaultAction": "SCMP_ACT_LOG"})), Abi::X86_64).unwrap();
    let call = |arch| Call { number: 5, arch, args: [0; 6] };
    assert_eq!(run(&program, &call(0xc000_003e)), 0x7ffc_0000);
    assert_eq!(run(&program, &call(0x4000_0003)), 0);
}

#[test]
fn flags_reach_the_kernel_where_they_mean_something() {
    let profile = |flags: Value| parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}));
    let flags = |flags| compile(&profile(flags)).unwrap().flags();
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"])), 6);
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_TSYNC"])), 0);
    assert_eq!(flags(json!([])), 0);
}

#[test]
fn an_equal_profile_is_not_compiled_again() {
    let first = compile(&parse(typical())).unwrap();
    let again = compile(&parse(typical())).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    let mut other = typical();
    other["syscalls"][1]["args"][0]["value"] = json!(1);
    let other = compile(&parse(other)).unwrap();
    assert!(!Arc::ptr_eq(&first, &other));
    let call = Call { number: 56, arch: 0xc000_003e, args: [0x0200_0000, 0, 0, 0, 0, 0] };
    assert_ne!(run(first.instructions(), &call), run(other.instructions(), &call));
}
