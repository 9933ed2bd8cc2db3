//! Programs run, end, and are joined.

use serde_json::json;

use crate::fixture::{Fixture, eventually, pipes};

crate::tests![
    a_program_runs_and_its_exit_code_is_known,
    output_arrives_by_both_streams,
    a_created_container_waits_for_its_start,
];

fn a_program_runs_and_its_exit_code_is_known() {
    assert_eq!(Fixture::new(&["true"]).run().code, 0);
    assert_eq!(Fixture::new(&["/bin/false"]).run().code, 1);
    assert_eq!(Fixture::shell("exit 42").run().code, 42);
    assert_eq!(Fixture::shell("kill -9 $$").run().code, 0, "init ignores its own signals");
}

fn output_arrives_by_both_streams() {
    let outcome = Fixture::shell("echo out; echo err >&2").run();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
}

fn a_created_container_waits_for_its_start() {
    let fixture = Fixture::shell("echo ran");
    let (stdio, out, err) = pipes();
    let created = fixture.create(stdio).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/comm", created.pid)).unwrap();
    assert_ne!(status.trim(), "sh");
    eventually("it joins its cgroup", || fixture.cgroup().pids().unwrap().len() == 1);
    let mut running = crate::fixture::Running::new(created, out, err);
    running.start().unwrap();
    assert_eq!(running.finish().stdout, "ran\n");
    let _ = json!(null);
    fixture.assert_clean();
}
