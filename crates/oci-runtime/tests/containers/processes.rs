//! Programs run, end, are joined, and find themselves where the spec says.

use std::os::fd::{AsFd, AsRawFd};

use berth_oci_runtime::Error;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

use crate::fixture::{Fixture, Running, eventually, pipes, wait};

crate::tests![
    a_program_runs_and_its_exit_code_is_known,
    output_arrives_by_both_streams,
    a_created_container_waits_for_its_start,
    a_container_that_is_never_started_ends_by_itself,
    init_is_the_first_process_of_its_namespace,
    a_host_pid_namespace_is_shared,
    a_pid_namespace_is_joined_by_its_path,
    a_network_namespace_is_joined_by_a_descriptor,
    a_further_process_joins_everything,
    a_further_process_has_its_own_identity,
    a_process_joins_the_cgroup_and_is_limited,
    the_oom_score_is_set_or_stays_the_nearest_allowed,
    resource_limits_are_set_or_clamped,
    sysctls_are_set_in_the_containers_namespaces,
    a_caller_with_threads_is_refused,
    r2_a_process_that_joins_hides_what_it_holds,
];

fn a_program_runs_and_its_exit_code_is_known() {
    assert_eq!(Fixture::new(&["true"]).run().code, 0);
    assert_eq!(Fixture::new(&["/bin/false"]).run().code, 1);
    assert_eq!(Fixture::shell("exit 42").run().code, 42);
    assert_eq!(Fixture::shell("kill -9 $$; exit 3").run().code, 3, "init ignores its own signals");
}

fn output_arrives_by_both_streams() {
    let outcome = Fixture::shell("echo out; echo err >&2").run();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
}

fn a_created_container_waits_for_its_start() {
    let fixture = Fixture::shell("echo ran");
    let (stdio, out, err) = pipes();
    let created = fixture.create(stdio).unwrap();
    let name = std::fs::read_to_string(format!("/proc/{}/comm", created.pid)).unwrap();
    assert_ne!(name.trim(), "sh");
    assert_eq!(fixture.cgroup().pids().unwrap().len(), 1);
    let mut running = Running::new(created, out, err);
    running.start().unwrap();
    assert_eq!(running.finish().stdout, "ran\n");
    fixture.assert_clean();
}

fn a_container_that_is_never_started_ends_by_itself() {
    let fixture = Fixture::shell("echo ran");
    let (stdio, out, err) = pipes();
    let created = fixture.create(stdio).unwrap();
    let pidfd = created.pidfd.try_clone().unwrap();
    drop(created);
    assert_eq!(wait(&pidfd), 1);
    assert_eq!(crate::fixture::drain(out), "");
    drop((pidfd, err));
    fixture.assert_clean();
}

fn init_is_the_first_process_of_its_namespace() {
    let outcome = Fixture::shell("echo $$; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'").run();
    assert_eq!(outcome.stdout, "1\nsh\n3\n", "the shell, ls and grep: {outcome:?}");
}

fn without(fixture: &mut Fixture, kind: &str) {
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != kind);
}

fn a_host_pid_namespace_is_shared() {
    let mut fixture = Fixture::shell("echo $$; sleep 60; true");
    without(&mut fixture, "pid");
    let running = fixture.start().unwrap();
    assert_eq!(running.first_line(), running.pid.to_string());
    eventually("the shell has a child", || fixture.cgroup().pids().unwrap().len() == 2);
    running.signal_kill();
    assert_eq!(wait(&running.pidfd), 128 + 9);
    // The shell's child outlives it: no namespace took it along. The caller kills by cgroup.
    assert_eq!(fixture.cgroup().pids().unwrap().len(), 1);
    fixture.cgroup().kill_all().unwrap();
    eventually("the cgroup is empty", || fixture.cgroup().pids().unwrap().is_empty());
    drop(running);
    fixture.assert_clean();
}

fn a_pid_namespace_is_joined_by_its_path() {
    let first = Fixture::shell("echo up; sleep 60; true");
    let holder = first.start().unwrap();
    assert_eq!(holder.first_line(), "up");
    let mut second = Fixture::shell("echo $$; cat /proc/1/comm");
    without(&mut second, "pid");
    second.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({
        "type": "pid", "path": format!("/proc/{}/ns/pid", holder.pid),
    }));
    let outcome = second.start().unwrap().finish();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_ne!(lines[0], "1");
    assert_eq!(lines[1], "sh", "process 1 is the other container's init");
    second.assert_clean();
    holder.kill();
    first.assert_clean();
}

fn a_network_namespace_is_joined_by_a_descriptor() {
    let open = |path: &str| std::fs::File::open(path).unwrap();
    let mut fixture = Fixture::shell("readlink /proc/self/ns/net");
    let home = open("/proc/self/ns/net");
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let namespace = open("/proc/self/ns/net");
    let wanted = std::fs::read_link("/proc/self/ns/net").unwrap();
    setns(home.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    without(&mut fixture, "network");
    fixture.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({
        "type": "network", "path": format!("/proc/self/fd/{}", namespace.as_raw_fd()),
    }));
    let outcome = fixture.start().unwrap().finish();
    assert_eq!(outcome.stdout.trim(), wanted.to_str().unwrap());
    // A namespace of another kind is refused.
    fixture.spec["linux"]["namespaces"].as_array_mut().unwrap().last_mut().unwrap()["path"] =
        json!("/proc/self/ns/uts");
    let answer = fixture.start().err();
    assert!(matches!(answer, Some(Error::Namespace { .. })), "{answer:?}");
    drop((home, namespace));
    fixture.assert_clean();
}

fn a_further_process_joins_everything() {
    let kinds = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
    let fixture = Fixture::shell(&format!("{kinds}; echo end; sleep 60"));
    let running = fixture.start().unwrap();
    let mut expected = String::new();
    loop {
        match running.first_line().as_str() {
            "end" => break,
            line => expected.push_str(&format!("{line}\n")),
        }
    }
    let command = format!("{kinds}; exit 7");
    let outcome =
        fixture.exec(&running, &fixture.process(&["sh", "-c", &command])).unwrap().finish();
    assert_eq!((outcome.stdout, outcome.code), (expected, 7));
    let exec = fixture.exec(&running, &fixture.process(&["sleep", "60"])).unwrap();
    assert!(fixture.cgroup().pids().unwrap().contains(&exec.pid));
    // The end of init is the end of all; and it waits until all have been reaped.
    running.signal_kill();
    assert_eq!(exec.finish().code, 128 + 9);
    assert_eq!(running.finish().code, 128 + 9);
    fixture.assert_clean();
}

fn a_further_process_has_its_own_identity() {
    let fixture = Fixture::shell("echo up; sleep 60");
    let running = fixture.start().unwrap();
    running.first_line();
    let mut process = fixture.process(&["sh", "-c", "id; pwd; env | sort; umask; echo $$"]);
    process["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5], "umask": 0o77});
    process["cwd"] = json!("/tmp");
    process["env"] = json!(["PATH=/bin", "A=b"]);
    let outcome = fixture.exec(&running, &process).unwrap().finish();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], "uid=1000(someone) gid=1000(someone) groups=5");
    assert_eq!(lines[1], "/tmp");
    assert!(lines.contains(&"A=b") && lines.contains(&"HOME=/home/someone"), "{lines:?}");
    assert!(lines.contains(&"0077"), "{lines:?}");
    // A working directory is not made for a further process.
    process["cwd"] = json!("/absent");
    let answer = fixture.exec(&running, &process).err();
    assert!(matches!(answer, Some(Error::Cwd { .. })), "{answer:?}");
    let answer = fixture.exec(&running, &fixture.process(&["nothing"])).err();
    assert!(matches!(answer, Some(Error::Exec { .. })), "{answer:?}");
    running.kill();
    fixture.assert_clean();
}

fn a_process_joins_the_cgroup_and_is_limited() {
    let mut fixture = Fixture::shell("cat /proc/self/cgroup; echo end; sleep 60; true");
    fixture.spec["linux"]["resources"] = json!({
        "memory": {"limit": 67_108_864}, "pids": {"limit": 77}, "cpu": {"shares": 512},
    });
    let running = fixture.start().unwrap();
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("end") {
        seen.push(running.first_line());
    }
    seen.pop();
    // Its cgroup is the root of its own namespace, in every hierarchy.
    assert!(seen.len() > 1 && seen.iter().all(|line| line.ends_with(":/")), "{seen:?}");
    let path = fixture.spec["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
    let outside = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid)).unwrap();
    assert!(outside.lines().all(|line| line.ends_with(&path)), "{outside}");
    let memory = fixture.cgroup().usage().unwrap().memory.unwrap();
    assert_eq!(memory.limit_bytes, Some(67_108_864));
    eventually("the shell has a child", || fixture.cgroup().pids().unwrap().len() == 2);
    running.kill();
    eventually("the cgroup is empty", || fixture.cgroup().pids().unwrap().is_empty());
    fixture.assert_clean();
}

fn the_oom_score_is_set_or_stays_the_nearest_allowed() {
    let fixture = Fixture::new(&["cat", "/proc/self/oom_score_adj"]);
    assert_eq!(fixture.run().stdout, "500\n");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let mut fixture = Fixture::new(&["cat", "/proc/self/oom_score_adj"]);
    fixture.spec["process"]["oomScoreAdj"] = json!(-990);
    let score = fixture.run().stdout;
    // Without CAP_SYS_RESOURCE the kernel refuses to go below what we have ourselves.
    assert!(score == "-990\n" || score == own, "{score:?} {own:?}");
}

fn resource_limits_are_set_or_clamped() {
    let mut fixture = Fixture::shell("ulimit -S -n; ulimit -H -n; ulimit -S -c");
    let highest = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap();
    fixture.spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    assert_eq!(fixture.run().stdout, "123\n456\n0\n");
    let mut fixture = Fixture::shell("ulimit -H -n");
    fixture.spec["process"]["rlimits"] =
        json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": highest + 1}]);
    let hard: u64 = fixture.run().stdout.trim().parse().unwrap();
    assert!(hard == highest || hard == highest + 1, "{hard}");
}

fn sysctls_are_set_in_the_containers_namespaces() {
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let before = std::fs::read_to_string(path).unwrap();
    let mut fixture = Fixture::shell(&format!("cat {path} /proc/sys/kernel/shmmni; hostname"));
    fixture.spec["linux"]["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shmmni": "1234"});
    assert_eq!(fixture.run().stdout, "77\n1234\nbox\n");
    assert_eq!(std::fs::read_to_string(path).unwrap(), before);
}

fn a_caller_with_threads_is_refused() {
    let fixture = Fixture::new(&["true"]);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv().is_ok());
    let answer = fixture.start().err();
    assert!(matches!(answer, Some(Error::Threads(2))), "{answer:?}");
    drop(stop);
    thread.join().unwrap();
    fixture.assert_undone();
}

/// A process of the container that may do everything but trace looks at what joins it.
///
/// teeth: crates/oci-runtime/src/worker.rs: `set_dumpable_behavior(DumpableBehavior::NotDumpable)` →
/// `set_dumpable_behavior(DumpableBehavior::Dumpable)`
fn r2_a_process_that_joins_hides_what_it_holds() {
    let mut fixture = Fixture::shell(
        "echo up; while :; do for p in /proc/[0-9]*; do
            case $p in /proc/1|/proc/$$) continue;; esac
            for l in $p/cwd $p/root $p/exe $p/fd/*; do
                t=$(readlink $l 2>/dev/null) || continue
                case $t in /|/tmp|/bin/busybox|/dev/null|pipe:*) ;; /proc/*) ;;
                *) echo \"$l $t\";; esac
            done
        done; done",
    );
    fixture.spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    let running = fixture.start().unwrap();
    assert_eq!(running.first_line(), "up");
    for _ in 0..200 {
        let exec = fixture.exec(&running, &fixture.process(&["true"])).unwrap();
        assert_eq!(exec.finish().code, 0);
    }
    let seen = running.kill().stdout;
    assert_eq!(seen, "", "objects of the host were seen");
    fixture.assert_clean();
}
