//! Who a program is, what it may, and what it inherits.

use std::os::fd::AsRawFd;

use berth_oci_runtime::Error;
use nix::errno::Errno;
use serde_json::json;

use crate::fixture::{Fixture, Running, pipes};

crate::tests![
    user_and_groups_are_those_of_the_spec,
    r13_nothing_is_inheritable_that_is_not_ambient,
    root_has_the_capabilities_of_the_spec,
    no_new_privs_is_set_when_asked,
    environment_values_are_bytes,
    home_is_that_of_the_user_unless_given,
    r3_a_program_has_three_descriptors,
    r3_leaked_descriptor_cwd,
    r4_a_working_directory_is_made_inside_the_root,
    signals_are_at_their_defaults,
    seccomp_blocks_a_system_call,
    seccomp_works_without_no_new_privs,
    a_session_keyring_of_its_own,
];

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

fn status_of(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut fixture = Fixture::new(&["cat", "/proc/self/status"]);
    change(&mut fixture.spec["process"]);
    fixture.run().stdout
}

fn user_and_groups_are_those_of_the_spec() {
    let status = status_of(|process| {
        process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 5]});
    });
    assert_eq!(field(&status, "Uid"), "1000 1000 1000 1000");
    assert_eq!(field(&status, "Gid"), "1001 1001 1001 1001");
    assert_eq!(field(&status, "Groups"), "5 7");
    // The caller's groups are not passed on.
    assert_eq!(field(&status_of(|_| ()), "Groups"), "");
}

/// CAP_CHOWN (0), CAP_DAC_OVERRIDE (1), CAP_FOWNER (3), CAP_KILL (5), CAP_SETGID (6),
/// CAP_SETUID (7), CAP_NET_BIND_SERVICE (10), CAP_MKNOD (27).
const DEFAULT: &str = "00000000080004eb";
const NONE: &str = "0000000000000000";

/// teeth: crates/oci-runtime/src/init/credentials.rs: `inheritable: ambient,` → `inheritable: wanted.permitted & own,`
fn r13_nothing_is_inheritable_that_is_not_ambient() {
    let status = status_of(|process| {
        process["user"] = json!({"uid": 1000, "gid": 1000});
        process["capabilities"]["inheritable"] = json!(["CAP_CHOWN", "CAP_KILL"]);
    });
    for (name, set) in [
        ("CapInh", NONE),
        ("CapPrm", NONE),
        ("CapEff", NONE),
        ("CapBnd", DEFAULT),
        ("CapAmb", NONE),
    ] {
        assert_eq!(field(&status, name), set, "{name}");
    }
    let kill = "0000000000000020";
    let status = status_of(|process| {
        process["user"] = json!({"uid": 1000, "gid": 1000});
        process["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    });
    for (name, set) in [
        ("CapInh", kill),
        ("CapPrm", kill),
        ("CapEff", kill),
        ("CapBnd", DEFAULT),
        ("CapAmb", kill),
    ] {
        assert_eq!(field(&status, name), set, "{name}");
    }
}

fn root_has_the_capabilities_of_the_spec() {
    let status = status_of(|_| ());
    for (name, set) in
        [("CapInh", NONE), ("CapPrm", DEFAULT), ("CapEff", DEFAULT), ("CapBnd", DEFAULT)]
    {
        assert_eq!(field(&status, name), set, "{name}");
    }
    let status = status_of(|process| {
        process.as_object_mut().unwrap().remove("capabilities");
    });
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, name), NONE, "{name}");
    }
}

fn no_new_privs_is_set_when_asked() {
    assert_eq!(field(&status_of(|_| ()), "NoNewPrivs"), "1");
    let status = status_of(|process| process["noNewPrivileges"] = json!(false));
    assert_eq!(field(&status, "NoNewPrivs"), "0");
}

fn environment_values_are_bytes() {
    let mut fixture = Fixture::shell("printf %s \"$B\" | od -An -tx1; echo $A; echo $PATH");
    fixture.spec["process"]["env"] = json!(["PATH=/bin", "A=1"]);
    // "B=\xff\n=x" and "PATH=/bin".
    fixture.spec["annotations"] =
        json!({"dev.berth.process.env": "[\"Qj3/Cj14\",\"UEFUSD0vYmlu\"]"});
    assert_eq!(fixture.run().stdout, " ff 0a 3d 78\n\n/bin\n");
}

fn home_is_that_of_the_user_unless_given() {
    assert_eq!(Fixture::shell("echo $HOME").run().stdout, "/root\n");
    let mut fixture = Fixture::shell("echo $HOME");
    fixture.spec["process"]["user"] = json!({"uid": 4321, "gid": 0});
    assert_eq!(fixture.run().stdout, "/\n");
    let mut fixture = Fixture::shell("echo $HOME");
    fixture.spec["process"]["env"] = json!(["PATH=/bin", "HOME=/x"]);
    assert_eq!(fixture.run().stdout, "/x\n");
}

/// The descriptors that the caller leaves open are gone before the container is entered, and
/// whatever is opened on the way does not outlive `execve`.
///
/// teeth: crates/oci-runtime/src/init.rs: `berth_sys::descriptor::close_all_but(child, &keep)` →
/// `berth_sys::descriptor::close_all_but(child, &[]).or(Ok::<(), nix::errno::Errno>(()))`
fn r3_a_program_has_three_descriptors() {
    let fixture = Fixture::new(&["ls", "/proc/self/fd"]);
    // Descriptors that the caller does not mark close-on-exec, low and high.
    let leaked: Vec<_> = (0..3)
        .map(|_| {
            use rustix::fs::{Mode, OFlags, open};
            open("/etc", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        })
        .collect();
    let high = rustix::io::fcntl_dupfd_cloexec(&leaked[0], 700).unwrap();
    rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty()).unwrap();
    let (stdio, out, err) = pipes();
    let created = fixture.create(stdio).unwrap();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        assert_ne!(target, std::path::Path::new("/etc"), "seen in the created container");
    }
    let mut running = Running::new(created, out, err);
    running.start().unwrap();
    // The fourth is the directory that ls is reading.
    assert_eq!(running.finish().stdout, "0\n1\n2\n3\n");
    drop((leaked, high));
    fixture.assert_clean();
}

/// teeth: crates/oci-runtime/src/init/root.rs: `ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS` →
/// `ResolveFlags::IN_ROOT`
fn r3_leaked_descriptor_cwd() {
    use std::os::unix::fs::symlink;
    let mut fixture = Fixture::new(&["pwd"]);
    let host = std::fs::File::open("/").unwrap();
    assert!(host.as_raw_fd() > 2);
    let running_fixture = Fixture::shell("echo up; sleep 60");
    let running = running_fixture.start().unwrap();
    running.first_line();
    symlink("/proc/self/fd/7", fixture.root("link")).unwrap();
    let (mut refused_create, mut refused_exec) = (0, 0);
    for path in (3..40).map(|fd| format!("/proc/self/fd/{fd}")).chain(["/link".to_owned()]) {
        fixture.spec["process"]["cwd"] = json!(path);
        match fixture.start().err() {
            // There was such a descriptor, and it was not followed.
            Some(Error::Path { source: Errno::ELOOP, .. }) => refused_create += 1,
            Some(Error::Path { .. }) => {}
            answer => panic!("{path}: {answer:?}"),
        }
        let mut process = running_fixture.process(&["pwd"]);
        process["cwd"] = json!(path);
        match running_fixture.exec(&running, &process).err() {
            Some(Error::Cwd { source: Errno::ELOOP, .. }) => refused_exec += 1,
            Some(Error::Cwd { .. }) => {}
            answer => panic!("{path}: {answer:?}"),
        }
    }
    assert!(refused_create > 0 && refused_exec > 0, "{refused_create} {refused_exec}");
    running.kill();
    running_fixture.cgroup().remove().unwrap();
    drop((host, running_fixture));
    fixture.assert_undone();
}

/// teeth: crates/oci-runtime/src/init.rs: `root.ensure_directory(&plan.process.cwd, root::Links::Inside)?;` → ``
fn r4_a_working_directory_is_made_inside_the_root() {
    use std::os::unix::fs::symlink;
    let mut fixture = Fixture::new(&["pwd"]);
    symlink("../../../data", fixture.root("link")).unwrap();
    fixture.spec["process"]["cwd"] = json!("/link/made/for/it");
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stdout, "/data/made/for/it\n");
    assert!(fixture.root("data/made/for/it").is_dir());
    fixture.assert_clean();
}

fn signals_are_at_their_defaults() {
    // This process ignores SIGPIPE, as every Rust program does.
    let status = status_of(|_| ());
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&status, name), NONE, "{name}");
    }
}

fn no_mkdir() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
        }],
    })
}

fn seccomp_blocks_a_system_call() {
    let mut fixture = Fixture::shell("mkdir /tmp/x; grep Seccomp: /proc/self/status");
    fixture.spec["linux"]["seccomp"] = no_mkdir();
    let outcome = fixture.start().unwrap().finish();
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    assert_eq!(field(&outcome.stdout, "Seccomp"), "2");
    // Further processes too.
    fixture.spec["process"]["args"] = json!(["sh", "-c", "echo up; sleep 60"]);
    let running = fixture.start().unwrap();
    running.first_line();
    let outcome = fixture.exec(&running, &fixture.process(&["mkdir", "/tmp/y"])).unwrap().finish();
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    running.kill();
    fixture.assert_clean();
}

fn seccomp_works_without_no_new_privs() {
    let mut fixture =
        Fixture::shell("mkdir /tmp/x; grep -E 'Seccomp:|NoNew|CapEff' /proc/self/status");
    fixture.spec["linux"]["seccomp"] = no_mkdir();
    fixture.spec["process"]["noNewPrivileges"] = json!(false);
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let outcome = fixture.run();
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    assert_eq!(field(&outcome.stdout, "Seccomp"), "2");
    assert_eq!(field(&outcome.stdout, "NoNewPrivs"), "0");
    assert_eq!(field(&outcome.stdout, "CapEff"), NONE);
}

fn a_session_keyring_of_its_own() {
    if !std::path::Path::new("/proc/keys").exists() {
        eprintln!("skipped: this kernel has no keys");
        return;
    }
    let mut fixture = Fixture::new(&["cat", "/proc/keys"]);
    fixture.spec["linux"]["maskedPaths"] = json!([]);
    let wanted = format!("_ses.{}", fixture.id);
    let outcome = fixture.run();
    assert!(outcome.stdout.contains(&wanted), "{outcome:?}");
}
