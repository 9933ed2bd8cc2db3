//! Hooks run where and when the specification says, once, and take what they leave with them
//! when they fail.

use std::time::{Duration, Instant};

use berth_model::ErrorKind;
use rustix::process::Pid;
use serde_json::{Value, json};

use crate::failures::begin;
use crate::fixture::{Fixture, PATIENCE, chain};

crate::tests![
    hooks_run_in_order_in_their_namespaces,
    a_hook_finds_the_root_where_the_bundle_says_and_may_still_write_to_it,
    a_hook_that_fails_is_named_with_its_words,
    a_hook_that_takes_too_long_ends_with_all_it_started,
    a_hook_of_the_container_has_no_right_that_its_program_has_not,
    a_creation_that_is_given_up_ends_its_hooks,
    hooks_for_afterwards_and_bad_ones_are_refused,
];

fn shell(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

/// A file that hooks add lines to.
fn journal(fixture: &Fixture) -> String {
    fixture.directory.path().join("journal").display().to_string()
}

fn hooks_run_in_order_in_their_namespaces() {
    let mut fixture = Fixture::shell("cat /hooked; echo $$");
    fixture.spec["annotations"] = json!({"a": "b"});
    let journal = journal(&fixture);
    let note = |point: &str| {
        let net = "$(readlink /proc/self/ns/net)";
        shell(&format!("echo {point} {net} $(readlink /proc/self/ns/mnt) $(cat) >> {journal}"))
    };
    let inside = json!({"path": "/bin/sh", "args": ["sh", "-c", "cat > /hooked; pwd >> /hooked"]});
    fixture.spec["hooks"] = json!({
        "startContainer": [inside],
        "createContainer": [note("container"), note("again")],
        "createRuntime": [note("runtime")],
        "prestart": [note("prestart")],
    });
    let id = fixture.id.clone();
    let running = fixture.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let pid = running.pid;
    let outcome = running.finish();
    let (status, rest) = outcome.stdout.split_once('}').expect("a state");
    let text = std::fs::read_to_string(&journal).unwrap();
    fixture.assert_clean();
    assert!(status.contains(r#""status":"created""#), "{status}");
    assert!(rest.ends_with("/\n1\n"), "{rest}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    let points: Vec<_> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(points, ["prestart", "runtime", "container", "again"]);
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    for line in &lines {
        let host = matches!(line[0], "prestart" | "runtime");
        assert_eq!(own("net").to_string_lossy() == line[1], host, "{line:?}");
        assert_eq!(own("mnt").to_string_lossy() == line[2], host, "{line:?}");
        let state: Value = serde_json::from_str(line[3]).unwrap();
        assert_eq!((&state["id"], &state["status"]), (&json!(id), &json!("creating")));
        assert_eq!(state["pid"], if host { json!(pid) } else { json!(1) });
        assert_eq!(state["annotations"], json!({"a": "b"}));
        assert!(state["bundle"].as_str().is_some_and(|bundle| journal.starts_with(bundle)));
    }
}

/// As vendors' hooks do that make links to libraries, and their cache.
fn a_hook_finds_the_root_where_the_bundle_says_and_may_still_write_to_it() {
    let mut fixture = Fixture::shell("cat /made; echo x > /other || echo read-only");
    fixture.spec["root"]["readonly"] = json!(true);
    fixture.spec["hooks"] = json!({"createContainer": [shell("echo made > rootfs/made")]});
    let outcome = fixture.run();
    assert!(outcome.stdout.starts_with("made\nread-only"), "{outcome:?}");
}

fn a_hook_that_fails_is_named_with_its_words() {
    for point in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        for (path, script, words) in [
            ("/bin/sh", "echo no such GPU >&2; exit 3", "exit code 3: no such GPU"),
            ("/bin/absent", "", "exit code 127: exec /bin/absent: no such file or directory"),
            ("/bin/sh", "kill -9 $$", "signal 9"),
        ] {
            let mut fixture = Fixture::new(&["true"]);
            let failing = json!({"path": path, "args": ["sh", "-c", script]});
            let after = shell(&format!("touch {}", journal(&fixture)));
            fixture.spec["hooks"] = json!({ point: [failing, after] });
            let error = fixture.start().err().expect("the hook failed");
            assert_eq!(error.to_string(), format!("{point} hook {path}: {words}"));
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(!std::path::Path::new(&journal(&fixture)).exists(), "it went on");
            match point {
                "startContainer" => fixture.assert_clean(),
                _ => fixture.assert_undone(),
            }
        }
    }
}

/// A hook that writes down the pids of a child in its group and of one that has left it.
fn lingering(journal: &str) -> Value {
    let script = format!(
        "sleep 1000 & echo $! > {journal}; setsid sleep 1000 & \
                          echo $! >> {journal}; wait"
    );
    let mut hook = shell(&script);
    hook["timeout"] = json!(1);
    hook
}

/// The pids that it has written down.
fn pids(journal: &str) -> Vec<Pid> {
    let text = std::fs::read_to_string(journal).unwrap();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().unwrap())).collect()
}

fn has_ended(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

#[track_caller]
fn assert_ended(journal: &str) {
    let pids = pids(journal);
    assert_eq!(pids.len(), 2);
    let left: Vec<_> = pids.into_iter().filter(|pid| !has_ended(*pid)).collect();
    assert!(left.is_empty(), "{left:?} are left");
}

#[track_caller]
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// teeth: crates/oci-runtime/src/hooks.rs: `let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();` → `let children = String::new();`
fn a_hook_that_takes_too_long_ends_with_all_it_started() {
    let mut fixture = Fixture::new(&["true"]);
    let journal = journal(&fixture);
    fixture.spec["hooks"] = json!({"createRuntime": [lingering(&journal)]});
    let error = fixture.start().err().expect("the hook took too long");
    assert_eq!(error.to_string(), "createRuntime hook /bin/sh: it took longer than 1 s");
    assert_ended(&journal);
    fixture.assert_undone();
    for pid_namespace in [true, false] {
        let mut fixture = Fixture::new(&["true"]);
        let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| pid_namespace || namespace["type"] != "pid");
        let journal = fixture.directory.path().join("journal").display().to_string();
        fixture.spec["hooks"] = json!({"createContainer": [lingering(&journal)]});
        let error = fixture.start().err().expect("the hook took too long");
        assert!(error.to_string().contains("longer than 1 s"), "{}", chain(&error));
        if !pid_namespace {
            assert_ended(&journal);
        }
        fixture.assert_undone();
    }
}

/// The path of a `startContainer` hook is the image's: what is there must not get more than
/// the image's own program.
///
/// teeth: crates/oci-runtime/src/hooks.rs: `Box::new(|| init::finish::execute(plan))` → `on_host(hook, Path::new("/")).execute`
fn a_hook_of_the_container_has_no_right_that_its_program_has_not() {
    let probe = "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status";
    let mut fixture = Fixture::shell(&format!("{probe}; echo; cat /tmp/hook"));
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    fixture.spec["process"]["noNewPrivileges"] = json!(true);
    fixture.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["clone3", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
    fixture.mount("/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
    let args = ["sh", "-c", &format!("{probe} > /tmp/hook")].map(str::to_owned);
    fixture.spec["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": args}]});
    let outcome = fixture.run();
    let (program, hook) = outcome.stdout.split_once("\n\n").expect("two answers");
    assert_eq!(program.trim(), hook.trim());
    assert!(program.contains("Uid:\t1000") && program.contains("Seccomp:\t2"), "{program}");
}

fn a_creation_that_is_given_up_ends_its_hooks() {
    for point in ["createRuntime", "createContainer"] {
        let mut fixture = Fixture::new(&["true"]);
        let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        let journal = journal(&fixture);
        let mut hook = lingering(&journal);
        hook["timeout"] = json!(40);
        fixture.spec["hooks"] = json!({ point: [hook] });
        let written = || std::fs::read_to_string(&journal).is_ok_and(|t| t.lines().count() == 2);
        let mut creating = begin(&fixture);
        wait_until(|| {
            assert!(creating.advance().unwrap().is_none());
            written()
        });
        let left = creating.leftover();
        assert!(left.processes.is_empty(), "{left:?}");
        drop(creating);
        // Those of init's own runner end by themselves, now that init is dead.
        wait_until(|| pids(&journal).into_iter().all(has_ended));
        wait_until(|| fixture.cgroup().remove().is_ok());
        fixture.assert_undone();
    }
}

fn hooks_for_afterwards_and_bad_ones_are_refused() {
    for (hooks, kind) in [
        (json!({"poststart": [{"path": "/bin/true"}]}), ErrorKind::Unimplemented),
        (json!({"poststop": [{"path": "/bin/true"}]}), ErrorKind::Unimplemented),
        (json!({"createRuntime": [{"path": "true"}]}), ErrorKind::InvalidArgument),
        (json!({"startContainer": [{"path": "/x", "timeout": 0}]}), ErrorKind::InvalidArgument),
    ] {
        let mut fixture = Fixture::new(&["true"]);
        fixture.spec["hooks"] = hooks;
        let error = fixture.start().err().expect("it is refused");
        assert_eq!(error.kind(), kind, "{error}");
        fixture.assert_undone();
    }
}
