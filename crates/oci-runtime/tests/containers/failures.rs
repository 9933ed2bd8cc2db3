//! What cannot be done is said, typed, and leaves nothing behind.

use std::time::Duration;

use berth_model::ErrorKind;
use berth_oci_runtime::{CreateRequest, Error, create};
use serde_json::{Value, json};

use crate::fixture::{Fixture, chain, pipes, wait};

crate::tests![
    a_program_that_cannot_be_executed_is_named,
    a_program_that_cannot_be_executed_is_named_whatever_a_filter_forbids,
    a_failure_of_the_worker_is_undone,
    a_failure_of_init_is_undone,
    r16_oversized_input_is_refused,
    what_is_not_supported_is_refused_before_anything_is_made,
    a_deadline_that_passes_undoes_everything,
    giving_up_at_any_moment_leaves_nothing,
];

fn a_program_that_cannot_be_executed_is_named() {
    let cases: [(&[&str], u8, ErrorKind, &str); 6] = [
        (&["nothing"], 127, ErrorKind::NotFound, "exec nothing: no such file or directory"),
        (&["/bin/nothing"], 127, ErrorKind::NotFound, "exec /bin/nothing: no such file"),
        (&["/etc/passwd"], 126, ErrorKind::PermissionDenied, "exec /etc/passwd: permission"),
        (&["/data"], 126, ErrorKind::PermissionDenied, "exec /data: permission denied"),
        (&["/data/text"], 126, ErrorKind::FailedPrecondition, "exec /data/text: exec format"),
        (&["/data/script"], 127, ErrorKind::NotFound, "exec /data/script: no such file"),
    ];
    for (args, code, kind, text) in cases {
        let fixture = Fixture::new(args);
        for (name, content) in [("data/text", "plain\0text"), ("data/script", "#!/absent\n")] {
            std::fs::write(fixture.root(name), content).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(fixture.root(name), mode).unwrap();
        }
        let error = fixture.start().err().expect("it cannot be executed");
        assert!(error.to_string().starts_with(text), "{error}");
        assert_eq!((error.kind(), error.shell_code()), (kind, Some(code)), "{error}");
        fixture.assert_clean();
    }
}

/// A change to a good spec, and the error it has to give.
type Case = (fn(&mut Fixture), fn(&Error) -> bool);

fn check(cases: &[Case]) {
    for (change, expected) in cases {
        let mut fixture = Fixture::new(&["true"]);
        change(&mut fixture);
        let error = fixture.start().err().expect("it cannot be made");
        assert!(expected(&error), "{}", chain(&error));
        fixture.assert_undone();
    }
}

fn namespaces(fixture: &mut Fixture) -> &mut Vec<Value> {
    fixture.spec["linux"]["namespaces"].as_array_mut().unwrap()
}

fn a_failure_of_the_worker_is_undone() {
    check(&[
        (
            |fixture| fixture.mount("/data", "bind", "/absent/source", &["rbind"]),
            |error| {
                matches!(error, Error::MountSource { path, .. } if path.ends_with("source"))
                    && error.kind() == ErrorKind::NotFound
            },
        ),
        (
            |fixture| {
                namespaces(fixture).retain(|namespace| namespace["type"] != "network");
                namespaces(fixture).push(json!({"type": "network", "path": "/absent"}));
            },
            |error| matches!(error, Error::Namespace { .. }),
        ),
        (
            |fixture| {
                fixture.spec["linux"]["resources"] = json!({"cpu": {"cpus": "not a list"}});
            },
            |error| matches!(error, Error::Cgroup { .. }),
        ),
        (
            |fixture| fixture.mount("/dev/shm", "berth-shared", "shm", &[]),
            |error| matches!(error, Error::InvalidSpec { .. }),
        ),
    ]);
}

fn a_failure_of_init_is_undone() {
    check(&[
        (
            |fixture| fixture.mount("/data", "tmpfs", "tmpfs", &["nonsense=1"]),
            |error| {
                matches!(error, Error::Mount { destination, .. } if destination.ends_with("data"))
                    && error.to_string().contains("nonsense")
            },
        ),
        (
            |fixture| fixture.mount("/data", "nosuchfs", "x", &[]),
            |error| matches!(error, Error::Mount { fs_type, .. } if fs_type == "nosuchfs"),
        ),
        (
            |fixture| fixture.mount("/bin/busybox/x", "tmpfs", "x", &[]),
            |error| {
                matches!(error, Error::Path { .. }) && error.kind() == ErrorKind::InvalidArgument
            },
        ),
        (
            |fixture| {
                fixture.spec["linux"]["sysctl"] = json!({"net.ipv4.no_such_thing": "1"});
            },
            |error| matches!(error, Error::Sysctl { .. }),
        ),
        (
            |fixture| fixture.spec["root"]["path"] = json!("absent"),
            |error| matches!(error, Error::MountSource { .. }),
        ),
        (
            |fixture| {
                let lower = fixture.root("").to_str().unwrap().to_owned();
                fixture.rootfs = vec![berth_model::mount::Mount {
                    fs_type: "overlay".to_owned(),
                    source: "overlay".to_owned(),
                    options: vec![format!("lowerdir={lower}:/absent")],
                }];
            },
            |error| matches!(error, Error::Rootfs { .. }),
        ),
    ]);
}

fn r16_oversized_input_is_refused() {
    check(&[
        (
            |fixture| {
                let path = format!("/{}", "x".repeat(70_000));
                namespaces(fixture).retain(|namespace| namespace["type"] != "network");
                namespaces(fixture).push(json!({"type": "network", "path": path}));
            },
            |error| matches!(error, Error::Namespace { .. } | Error::Protocol(_)),
        ),
        (
            |fixture| {
                let map: Vec<Value> = (0..10_000)
                    .map(|id| json!({"containerID": id, "hostID": id, "size": 1}))
                    .collect();
                fixture.spec["linux"]["uidMappings"] = json!(map);
            },
            |error| matches!(error, Error::InvalidSpec { .. }),
        ),
    ]);
}

fn what_is_not_supported_is_refused_before_anything_is_made() {
    check(&[
        (
            |fixture| namespaces(fixture).push(json!({"type": "user"})),
            |error| error.kind() == ErrorKind::InvalidArgument,
        ),
        (
            // Not loaded, or without a module that could load it.
            |fixture| fixture.spec["process"]["apparmorProfile"] = json!("no-such-profile"),
            |error| error.to_string().to_lowercase().contains("apparmor"),
        ),
        (
            |fixture| fixture.id = "../x".to_owned(),
            |error| error.kind() == ErrorKind::InvalidArgument,
        ),
    ]);
}

/// A profile that admits no socket call; without no_new_privs it is in force early.
fn a_program_that_cannot_be_executed_is_named_whatever_a_filter_forbids() {
    for no_new_privileges in [true, false] {
        let mut fixture = Fixture::new(&["/bin/nope"]);
        fixture.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        fixture.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{
                "names": ["sendmsg", "sendto", "sendmmsg", "socket", "connect"],
                "action": "SCMP_ACT_ERRNO"
            }]
        });
        let error = fixture.start().err().expect("there is no such program");
        assert_eq!(chain(&error), "exec /bin/nope: no such file or directory");
        fixture.assert_clean();
    }
}

fn a_deadline_that_passes_undoes_everything() {
    let fixture = Fixture::new(&["true"]);
    let answer = begin(&fixture).wait(Duration::ZERO).err();
    assert!(matches!(answer, Some(Error::Timeout { .. })), "{answer:?}");
    fixture.assert_undone();
}

fn giving_up_at_any_moment_leaves_nothing() {
    give_up(Fixture::new(&["true"]));
}

/// Begins and gives up again and again.
pub(crate) fn give_up(fixture: Fixture) {
    for step in 0..150 {
        let mut creating = begin(&fixture);
        std::thread::sleep(Duration::from_micros(step * 40));
        let created = if step % 2 == 0 { creating.advance().unwrap() } else { None };
        let left = creating.leftover();
        assert!(left.processes.is_empty() && left.cgroup.is_none(), "{left:?}");
        drop(creating);
        if let Some(created) = created {
            // Completed by chance: it exits by itself, as nobody starts it.
            drop(created.start);
            wait(&created.pidfd);
        }
        fixture.cgroup().remove().unwrap();
    }
    fixture.assert_undone();
}

pub(crate) fn begin(fixture: &Fixture) -> berth_oci_runtime::Creating {
    let (stdio, ..) = pipes();
    let spec = fixture.typed();
    create(CreateRequest {
        id: &fixture.id,
        bundle: fixture.directory.path(),
        spec: &spec,
        rootfs: &fixture.rootfs,
        stdio,
        shared: &fixture.shared,
        cgroups: &fixture.cgroups,
    })
    .unwrap()
}
