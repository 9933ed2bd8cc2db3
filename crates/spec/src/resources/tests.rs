use super::*;
use crate::build::tests::Fixture;

fn limits(change: impl FnOnce(&mut Fixture)) -> Result<LinuxResources, Error> {
    let mut fixture = Fixture::new();
    change(&mut fixture);
    let spec = fixture.build()?;
    Ok(spec.linux().as_ref().unwrap().resources().clone().unwrap())
}

#[test]
fn what_is_not_set_is_left_out() {
    let all = limits(|_| ()).unwrap();
    assert_eq!((all.cpu(), all.memory(), all.pids()), (&None, &None, &None));
    assert_eq!((all.hugepage_limits(), all.unified()), (&None, &None));
}

#[test]
fn limits_are_handed_on() {
    let all = limits(|fixture| {
        let resources = &mut fixture.spec.resources;
        resources.cpu_shares = 512;
        resources.cpu_period = 100_000;
        resources.cpu_quota = 50_000;
        resources.cpuset_cpus = "0-1".to_owned();
        resources.hugepage_limits.insert("2MB".to_owned(), 1 << 21);
        resources.unified.insert("memory.high".to_owned(), "max".to_owned());
        fixture.defaults.pids_limit = Some(100);
    })
    .unwrap();
    let cpu = all.cpu().clone().unwrap();
    assert_eq!((cpu.shares(), cpu.period(), cpu.quota()), (Some(512), Some(100_000), Some(50_000)));
    assert_eq!((cpu.cpus().as_deref(), cpu.mems()), (Some("0-1"), &None));
    assert_eq!(all.pids().as_ref().unwrap().limit(), 100);
    assert_eq!(all.hugepage_limits().as_ref().unwrap()[0].page_size(), "2MB");
    assert_eq!(all.unified().as_ref().unwrap()["memory.high"], "max");
}

#[test]
fn a_containers_own_process_limit_wins() {
    let all = limits(|fixture| {
        fixture.defaults.pids_limit = Some(100);
        fixture.spec.resources.pids_limit = Some(7);
    });
    assert_eq!(all.unwrap().pids().as_ref().unwrap().limit(), 7);
}

#[test]
fn a_memory_limit_leaves_no_swap_unless_it_was_asked_for() {
    let check = |limit, swap, accounting, expected| {
        let all = limits(|fixture| {
            fixture.spec.resources.memory_limit = limit;
            fixture.spec.resources.memory_swap_limit = swap;
            fixture.defaults.swap_accounting = accounting;
        });
        let memory = *all.unwrap().memory();
        assert_eq!(memory.map(|memory| (memory.limit(), memory.swap())), expected);
    };
    check(1024, 0, true, Some((Some(1024), Some(1024))));
    check(1024, 0, false, Some((Some(1024), None)));
    check(1024, 4096, false, Some((Some(1024), Some(4096))));
    check(1024, -1, true, Some((Some(1024), Some(-1))));
    check(0, 0, true, None);
    check(-1, 0, true, Some((Some(-1), None)));
}

#[test]
fn limits_that_cannot_be_are_refused_by_name() {
    let check = |field: &str, change: &dyn Fn(&mut Resources)| {
        let error = limits(|fixture| change(&mut fixture.spec.resources)).unwrap_err();
        assert!(matches!(&error, Error::Limit { field: named, .. } if *named == field), "{error}");
    };
    check("cpu_shares", &|all| all.cpu_shares = -1);
    check("cpu_period", &|all| all.cpu_period = -1);
    check("memory_limit_in_bytes", &|all| all.memory_limit = -2);
    check("memory_swap_limit_in_bytes", &|all| {
        all.memory_limit = 10;
        all.memory_swap_limit = 9;
    });
    check("hugepage_limits", &|all| _ = all.hugepage_limits.insert("2MB".to_owned(), u64::MAX));
}

/// teeth: crates/spec/src/resources.rs: `if !digits ||` → `if`
#[test]
fn limits_in_words_that_mean_nothing_are_refused_by_name() {
    let check = |field: &str, change: &dyn Fn(&mut Resources)| {
        let error = limits(|fixture| change(&mut fixture.spec.resources)).unwrap_err();
        let named = |named: &str| named == field;
        assert!(matches!(&error, Error::LimitForm { field, .. } if named(field)), "{error}");
        assert_eq!(error.kind(), berth_model::ErrorKind::InvalidArgument);
    };
    for bad in ["a", "0\0", "0\n1", "0 1", "../0"] {
        check("cpuset_cpus", &|all| all.cpuset_cpus = bad.to_owned());
        check("cpuset_mems", &|all| all.cpuset_mems = bad.to_owned());
    }
    for bad in ["", "MB", "2", "2mb", "2TB", "../../x", "x2MB", "2MB\0"] {
        check("hugepage_limits", &|all| _ = all.hugepage_limits.insert(bad.to_owned(), 1));
    }
    let all = limits(|fixture| {
        fixture.spec.resources.cpuset_cpus = "0-3,7,8-15:2/4".to_owned();
        fixture.spec.resources.hugepage_limits = [("64KB".to_owned(), 1)].into();
    });
    assert_eq!(all.unwrap().cpu().as_ref().unwrap().cpus().as_deref(), Some("0-3,7,8-15:2/4"));
}

#[test]
fn a_negative_quota_is_no_quota() {
    let all = limits(|fixture| fixture.spec.resources.cpu_quota = -5).unwrap();
    assert_eq!(all.cpu().as_ref().unwrap().quota(), Some(-1));
}

/// teeth: crates/spec/src/resources.rs: `if !file ||` → `if`
#[test]
fn d9_unified_names_files_of_controllers_only() {
    for bad in [
        "",
        "memory",
        "../memory.max",
        "a/memory.max",
        "cgroup.procs",
        "cgroup.kill",
        ".max",
        "memory.",
        "memory..max",
        "memory.max\n",
        "memory.max/../x",
    ] {
        let error = limits(|fixture| {
            _ = fixture.spec.resources.unified.insert(bad.to_owned(), "1".to_owned())
        });
        assert!(matches!(error, Err(Error::Unified(_))), "{bad:?}");
    }
}

fn rules(all: &LinuxResources) -> Vec<String> {
    all.devices().iter().flatten().map(|rule| format!("{} {rule}", rule.allow())).collect()
}

/// teeth: crates/spec/src/resources.rs: `rule(false, LinuxDeviceType::A` → `rule(true, LinuxDeviceType::A`
#[test]
fn r18_devices_are_denied_but_for_a_list() {
    let rules = rules(&limits(|_| ()).unwrap());
    assert_eq!(rules[0], "false a *:* rwm");
    assert_eq!(rules.len(), 12);
    let open: Vec<_> = rules[1..].iter().filter(|rule| !rule.ends_with("*:* m")).collect();
    let known = ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:*"];
    assert_eq!(open, known.map(|id| format!("true c {id} rwm")).each_ref());
}

fn fuse() -> HostDevice {
    HostDevice {
        path: "/dev/fuse".into(),
        kind: LinuxDeviceType::C,
        major: 10,
        minor: 229,
        mode: 0o20_666,
        uid: 0,
        gid: 5,
        access: "rw".to_owned(),
    }
}

#[test]
fn an_asked_device_is_made_and_allowed() {
    let mut fixture = Fixture::new();
    fixture.devices = vec![fuse()];
    let linux = fixture.linux();
    let node = linux.devices().as_ref().unwrap()[0].clone();
    assert_eq!((node.major(), node.minor(), node.file_mode()), (10, 229, Some(0o666)));
    assert_eq!((node.uid(), node.gid()), (Some(0), Some(5)));
    let rules = rules(linux.resources().as_ref().unwrap());
    assert_eq!(rules.last().map(String::as_str), Some("true c 10:229 rw"));
}

#[test]
fn devices_have_sane_paths_and_permissions() {
    let check = |device: HostDevice| {
        let mut fixture = Fixture::new();
        fixture.devices = vec![device];
        fixture.build().unwrap_err()
    };
    let error = check(HostDevice { access: "rwx".to_owned(), ..fuse() });
    assert!(matches!(error, Error::DevicePermissions(_)));
    let error = check(HostDevice { path: "fuse".into(), ..fuse() });
    assert!(matches!(error, Error::ContainerPath { what: "device", .. }));
}

#[test]
fn a_privileged_container_may_use_every_device() {
    let mut fixture = Fixture::privileged();
    fixture.devices = vec![fuse()];
    let linux = fixture.linux();
    assert_eq!(rules(linux.resources().as_ref().unwrap()), ["true a *:* rwm"]);
    assert_eq!(linux.devices().as_ref().unwrap().len(), 1);
}
