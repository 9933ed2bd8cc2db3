//! The kernel takes the program, and acts on it.

use std::io::ErrorKind;

use serde_json::json;

use super::profiles::{operators, parse, typical};
use crate::compile;

/// Runs `body` in a thread of its own under `profile`; a filter is for one thread and for good.
fn under(profile: serde_json::Value, body: fn()) {
    let program = compile(&parse(profile)).unwrap();
    let thread = std::thread::spawn(move || {
        match berth_sys::seccomp::load_filter(program.instructions(), program.flags()) {
            Ok(()) => body(),
            // Without CAP_SYS_ADMIN it would take no_new_privs.
            Err(error) if error.to_string().starts_with("EACCES") => {
                eprintln!("skipped: needs root");
            }
            Err(error) => panic!("the kernel refuses the program: {error}"),
        }
    });
    thread.join().unwrap();
}

#[test]
fn a_refused_call_fails_with_its_errno_and_others_do_not() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 39},
            {"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2,
             "args": [{"index": 1, "value": 0x1_0000_0005_u64, "op": "SCMP_CMP_EQ"}]},
        ]
    });
    under(profile, || {
        use std::io::{Seek, SeekFrom};
        let refused = std::fs::create_dir("/proc/none").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::DirectoryNotEmpty);
        let mut file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(file.seek(SeekFrom::Start(5)).unwrap(), 5);
        let refused = file.seek(SeekFrom::Start(0x1_0000_0005)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn the_kernel_takes_conditions_and_long_trees() {
    let names: Vec<&str> = crate::arch::rows().iter().map(|row| row.0).collect();
    for mut profile in [typical(), operators(), super::profiles::everything(&names)] {
        // Allowed and logged alike let the thread end; in turns, they keep the tree long.
        profile["defaultAction"] = json!("SCMP_ACT_ALLOW");
        for (at, entry) in profile["syscalls"].as_array_mut().unwrap().iter_mut().enumerate() {
            let conditional = entry["args"].is_array();
            let logged = conditional || at % 2 == 0;
            entry["action"] = json!(if logged { "SCMP_ACT_LOG" } else { "SCMP_ACT_ALLOW" });
        }
        let length = compile(&parse(profile.clone())).unwrap().instructions().len();
        assert!(length > 100, "{length} instructions");
        under(profile, || {});
    }
}
