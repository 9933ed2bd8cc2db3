use berth_api::nri::{LinuxMemory, OptionalInt, PosixRlimit};

use super::*;

fn merge() -> Merge {
    Merge::creation(Container {
        id: "c".into(),
        env: vec!["A=1".into(), "B=2".into()],
        mounts: vec![mount("/data", "/host")],
        annotations: [("k".to_owned(), "v".to_owned())].into(),
        ..Container::default()
    })
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount { destination: destination.into(), source: source.into(), ..Mount::default() }
}

fn variable(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn env_of(variables: &[(&str, &str)]) -> Option<ContainerAdjustment> {
    let env = variables.iter().map(|(key, value)| variable(key, value)).collect();
    Some(ContainerAdjustment { env, ..ContainerAdjustment::default() })
}

fn memory(limit: i64) -> LinuxResources {
    let memory =
        LinuxMemory { limit: Some(OptionalInt { value: limit }), ..LinuxMemory::default() };
    LinuxResources { memory: Some(memory), ..LinuxResources::default() }
}

fn update(id: &str, limit: i64, ignore_failure: bool) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(memory(limit)) });
    ContainerUpdate { container_id: id.into(), linux, ignore_failure }
}

#[test]
fn the_next_plugin_sees_what_the_first_one_adjusted() {
    let mut merge = merge();
    merge.adjust(env_of(&[("A", "9"), ("-B", ""), ("C", "3")]), "00-a").unwrap();
    assert_eq!(merge.container().env, ["A=9", "C=3"]);
    let adjust = ContainerAdjustment {
        mounts: vec![mount("-/data", ""), mount("/more", "/m")],
        args: vec!["sh".into()],
        ..ContainerAdjustment::default()
    };
    merge.adjust(Some(adjust), "00-a").unwrap();
    assert_eq!(merge.container().mounts, [mount("/more", "/m")]);
    assert_eq!(merge.container().args, ["sh"]);
    let wanted = merge.wanted().adjustment;
    assert_eq!(wanted.mounts, [mount("-/data", ""), mount("/more", "/m")]);
    let env: Vec<_> = wanted.env.iter().map(|variable| variable.key.as_str()).collect();
    assert_eq!(env, ["-B", "A", "C"]);
}

/// teeth: crates/nri/src/merge/owners.rs: `if removed_by != Some(self.plugin) {` → `if false {`
#[test]
fn what_one_plugin_set_another_may_not_set() {
    let mut both = merge();
    both.adjust(env_of(&[("A", "1")]), "00-a").unwrap();
    let refused = both.adjust(env_of(&[("A", "2")]), "10-b").unwrap_err();
    assert_eq!(refused.to_string(), "plugins 00-a and 10-b both set env \"A\" of container c");

    let limits = |bytes| {
        let linux =
            LinuxContainerAdjustment { resources: Some(memory(bytes)), ..Default::default() };
        Some(ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() })
    };
    let mut both = merge();
    both.adjust(limits(1), "00-a").unwrap();
    assert!(matches!(both.adjust(limits(1), "10-b"), Err(Error::Conflict { .. })));

    let rlimit = PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 1, soft: 1 };
    let rlimits =
        Some(ContainerAdjustment { rlimits: vec![rlimit], ..ContainerAdjustment::default() });
    let mut both = merge();
    both.adjust(rlimits.clone(), "00-a").unwrap();
    assert!(matches!(both.adjust(rlimits, "10-b"), Err(Error::Conflict { .. })));
}

#[test]
fn what_a_plugin_removes_first_it_may_set_anew_and_nobody_else() {
    let mut merge = merge();
    merge.adjust(env_of(&[("A", "1")]), "00-a").unwrap();
    merge.adjust(env_of(&[("-A", ""), ("A", "2")]), "10-b").unwrap();
    merge.adjust(env_of(&[("A", "3")]), "20-c").unwrap_err();
    let wanted = merge.wanted().adjustment;
    assert_eq!(wanted.env, [variable("A", "2")]);
}

#[test]
fn annotations_are_set_and_removed_by_key() {
    let mut merge = merge();
    let adjust = ContainerAdjustment {
        annotations: [("-k".to_owned(), String::new()), ("n".to_owned(), "1".to_owned())].into(),
        ..ContainerAdjustment::default()
    };
    merge.adjust(Some(adjust), "00-a").unwrap();
    assert_eq!(merge.container().annotations, [("n".to_owned(), "1".to_owned())].into());
    let keys: Vec<_> = merge.wanted().adjustment.annotations.into_keys().collect();
    assert_eq!(keys, ["-k", "n"]);
}

#[test]
fn arguments_are_taken_from_their_owner_by_an_empty_one() {
    let args = |args: &[&str]| {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Some(ContainerAdjustment { args, ..ContainerAdjustment::default() })
    };
    let mut merge = merge();
    merge.adjust(args(&["a"]), "00-a").unwrap();
    merge.adjust(args(&["b"]), "10-b").unwrap_err();
    merge.adjust(args(&["", "c"]), "10-b").unwrap();
    assert_eq!(merge.wanted().adjustment.args, ["c"]);
}

#[test]
fn updates_of_other_containers_are_merged_and_conflicts_may_be_ignored() {
    let mut merge = merge();
    merge.update(vec![update("other", 5, false)], "00-a").unwrap();
    merge.update(vec![update("other", 6, false)], "10-b").unwrap_err();
    merge.update(vec![update("other", 6, true)], "10-b").unwrap();
    let refused = merge.update(vec![update("c", 6, false)], "10-b").unwrap_err();
    assert!(matches!(refused, Error::UpdateInCreation { .. }));
    assert_eq!(merge.wanted().updates, [update("other", 5, false)]);
}

#[test]
fn an_update_changes_what_the_container_itself_gets() {
    let mut merge = Merge::update_of("c".into(), memory(1));
    merge.update(vec![update("c", 2, false), update("d", 3, false)], "00-a").unwrap();
    assert_eq!(*merge.resources(), memory(2));
    assert_eq!(merge.wanted().updates, [update("d", 3, false)]);
}

#[test]
fn validators_are_told_who_set_what() {
    let mut merge = merge();
    merge.adjust(env_of(&[("A", "1")]), "00-a").unwrap();
    let owners = merge.owners();
    let of = &owners.owners["c"];
    assert_eq!(of.compound[&i32::from(Field::Env)].owners["A"], "00-a");
}
