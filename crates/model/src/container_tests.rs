use super::*;

fn exit(code: i32) -> ContainerEvent {
    ContainerEvent::Exited(Exit {
        code,
        at: Timestamp(2),
        reason: ExitReason::Error,
        message: String::new(),
    })
}

#[test]
fn a_change_of_limits_leaves_what_it_does_not_name() {
    let before = Resources {
        cpu_shares: 2,
        memory_limit: 3,
        cpuset_cpus: "0".into(),
        unified: [("a.b".into(), "1".into()), ("a.c".into(), "1".into())].into(),
        ..Resources::default()
    };
    assert_eq!(before.changed(&Resources::default()), before);
    let asked = Resources {
        cpu_quota: -1,
        memory_limit: 4,
        unified: [("a.c".into(), "2".into())].into(),
        ..Resources::default()
    };
    let after = before.changed(&asked);
    assert_eq!((after.cpu_shares, after.cpu_quota, after.memory_limit), (2, -1, 4));
    assert_eq!(after.cpuset_cpus, "0");
    assert_eq!(after.unified["a.b"], "1");
    assert_eq!(after.unified["a.c"], "2");
}

/// teeth: crates/model/src/container.rs: `0 if asked.memory_limit != 0` → `0 if false`
#[test]
fn a_change_of_memory_alone_leaves_as_much_swap() {
    for (memory, both, new, expected) in [
        (100, 150, 200, 250),
        (100, 100, 200, 200),
        (100, 150, 50, 100),
        (100, 150, -1, -1),
        (100, -1, 200, -1),
        (100, 0, 200, 0),
        (0, 150, 200, 200),
        (1, i64::MAX, i64::MAX, i64::MAX),
    ] {
        let before =
            Resources { memory_limit: memory, memory_swap_limit: both, ..Resources::default() };
        let asked = Resources { memory_limit: new, ..Resources::default() };
        let after = before.changed(&asked).memory_swap_limit;
        assert_eq!(after, expected, "{memory} and {both}, then {new}");
    }
    let before = Resources { memory_limit: 1, memory_swap_limit: 5, ..Resources::default() };
    let asked = Resources { memory_limit: 2, memory_swap_limit: 3, ..Resources::default() };
    assert_eq!(before.changed(&asked).memory_swap_limit, 3);
    let unasked = Resources { cpu_shares: 2, ..Resources::default() };
    assert_eq!(before.changed(&unasked).memory_swap_limit, 5);
}

fn started() -> ContainerEvent {
    ContainerEvent::Started { pid: 7, at: Timestamp(1) }
}

fn kubelets(cid: &str, env: &[&str]) -> ContainerSpec {
    let mount = |container: &str, host: String| BindMount {
        container_path: container.into(),
        host_path: host.into(),
        ..BindMount::default()
    };
    let dir = "/var/lib/kubelet/pods/uid";
    ContainerSpec {
        env: env.iter().map(|name| EnvVar { name: (*name).into(), value: b"1".to_vec() }).collect(),
        mounts: vec![
            mount("/etc/hosts", format!("{dir}/etc-hosts")),
            mount("/dev/termination-log", format!("{dir}/containers/main/{cid}")),
        ],
        annotations: [(TERMINATION_LOG.to_owned(), "/dev/termination-log".to_owned())].into(),
        ..ContainerSpec::default()
    }
}

/// teeth: crates/model/src/container.rs: `mount.host_path.set_file_name("")` → `{}`
#[test]
fn what_kubelet_asks_again_is_the_same_request() {
    let first = kubelets("1a2b3c4d", &["A_SERVICE_HOST", "B_SERVICE_HOST"]);
    let again = kubelets("99999999", &["B_SERVICE_HOST", "A_SERVICE_HOST"]);
    assert!(again.repeats(&first) && first.repeats(&again));
}

#[test]
fn another_request_under_the_same_name_is_another() {
    let first = kubelets("1a2b3c4d", &["A"]);
    let mut moved = first.clone();
    moved.mounts[0].host_path = "/var/lib/kubelet/pods/uid/other".into();
    let mut elsewhere = first.clone();
    elsewhere.mounts[1].host_path = "/etc/shadow".into();
    let unnamed = ContainerSpec { annotations: BTreeMap::new(), ..first.clone() };
    let unnamed_too = ContainerSpec { annotations: BTreeMap::new(), ..kubelets("2", &["A"]) };
    assert!(!unnamed.repeats(&unnamed_too), "nothing says that the mount is a log");
    for other in [moved, elsewhere, unnamed, kubelets("1a2b3c4d", &["A", "B"])] {
        assert!(!other.repeats(&first), "{other:?}");
    }
    let twice = |values: [&str; 2]| ContainerSpec {
        env: values.map(|value| EnvVar { name: "A".into(), value: value.into() }).to_vec(),
        ..first.clone()
    };
    assert!(!twice(["1", "2"]).repeats(&twice(["2", "1"])), "the last value counts");
}

#[track_caller]
fn check(history: Vec<ContainerEvent>, expected: Option<&str>) {
    let end = history.iter().cloned().try_fold(ContainerState::Created, ContainerState::apply);
    assert_eq!(end.ok().map(|state| state.name()), expected, "{history:?}");
}

#[test]
fn a_container_runs_once() {
    check(vec![started()], Some("running"));
    check(vec![started(), started()], None);
    check(vec![started(), exit(0)], Some("exited"));
    check(vec![started(), exit(0), started()], None);
}

#[test]
fn a_container_that_never_ran_can_end() {
    check(vec![exit(128)], Some("exited"));
}

#[test]
fn the_first_exit_is_the_one_that_counts() {
    check(vec![started(), exit(0), exit(1)], None);
}
