use std::path::PathBuf;

use super::*;
use crate::build::tests::{Fixture, image};

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn command_and_args_follow_the_kubernetes_table() {
    for (entrypoint, cmd, command, args, expected) in [
        (&["e"][..], &["c"][..], &[][..], &[][..], &["e", "c"][..]),
        (&["e"], &["c"], &["C"], &[], &["C"]),
        (&["e"], &["c"], &[], &["A"], &["e", "A"]),
        (&["e"], &["c"], &["C"], &["A"], &["C", "A"]),
        (&["e"], &[], &[], &[], &["e"]),
        (&[], &["c", "d"], &[], &[], &["c", "d"]),
        (&[], &["c"], &[], &["A"], &["A"]),
        (&[], &[], &["C", "D"], &["A"], &["C", "D", "A"]),
    ] {
        let mut fixture = Fixture::new();
        fixture.image =
            image(&serde_json::json!({"Entrypoint": entrypoint, "Cmd": cmd}).to_string());
        fixture.spec.command = strings(command);
        fixture.spec.args = strings(args);
        assert_eq!(fixture.process().args().clone().unwrap(), expected);
    }
}

#[test]
fn a_container_without_a_command_is_refused() {
    let mut fixture = Fixture::new();
    fixture.spec.args.clear();
    for config in ["{}", r#"{"Entrypoint":[],"Cmd":[]}"#, r#"{"Cmd":[""]}"#] {
        fixture.image = image(config);
        assert!(matches!(fixture.build(), Err(Error::NoCommand)), "{config}");
    }
    fixture.spec.command = strings(&["a\0b"]);
    assert!(matches!(fixture.build(), Err(Error::NulByte("command"))));
}

fn var(name: &str, value: &[u8]) -> EnvVar {
    EnvVar { name: name.to_owned(), value: value.to_vec() }
}

#[test]
fn the_requests_environment_wins_over_the_images_and_that_over_defaults() {
    let mut fixture = Fixture::new();
    fixture.spec.tty = true;
    fixture.image =
        image(r#"{"Cmd":["c"],"Env":["PATH=/image","A=image","B=image=x","NONE","=x","E="]}"#);
    fixture.spec.env =
        vec![var("A", b"request"), var("HOSTNAME", b"mine"), var("Z", b"1"), var("Z", b"2")];
    let expected = [
        "PATH=/image",
        "TERM=xterm",
        "HOSTNAME=mine",
        "A=request",
        "B=image=x",
        "E=",
        "Z=2",
        "HOME=/",
    ];
    assert_eq!(fixture.process().env().clone().unwrap(), expected);
}

#[test]
fn defaults_are_a_path_the_host_name_and_a_home() {
    let mut fixture = Fixture::new();
    let path = format!("PATH={DEFAULT_PATH}");
    let expected = [path.as_str(), "HOSTNAME=host", "HOME=/"];
    assert_eq!(fixture.process().env().clone().unwrap(), expected);
    fixture.user.home = Some(b"/home/app".to_vec());
    assert_eq!(fixture.process().env().as_ref().unwrap()[2], "HOME=/home/app");
    fixture.spec.env = vec![var("HOME", b"/mine")];
    assert_eq!(fixture.process().env().as_ref().unwrap()[2], "HOME=/mine");
}

#[test]
fn names_and_values_that_execve_cannot_pass_are_refused() {
    let mut fixture = Fixture::new();
    for name in ["", "A=B", "="] {
        fixture.spec.env = vec![var(name, b"x")];
        assert!(matches!(fixture.build(), Err(Error::EnvName(_))), "{name:?}");
    }
    for bad in [var("A\0", b""), var("A", b"x\0y")] {
        fixture.spec.env = vec![bad];
        assert!(matches!(fixture.build(), Err(Error::NulByte("environment"))));
    }
    fixture.spec.env.clear();
    fixture.image = image("{\"Cmd\":[\"c\"],\"Env\":[\"A=\\u0000\"]}");
    assert!(matches!(fixture.build(), Err(Error::NulByte(_))));
}

#[test]
fn the_working_directory_is_the_requests_the_images_or_the_root() {
    let mut fixture = Fixture::new();
    let cwd = |fixture: &Fixture| fixture.process().cwd().clone();
    assert_eq!(cwd(&fixture), PathBuf::from("/"));
    fixture.image = image(r#"{"Cmd":["c"],"WorkingDir":""}"#);
    assert_eq!(cwd(&fixture), PathBuf::from("/"));
    fixture.image = image(r#"{"Cmd":["c"],"WorkingDir":"/image"}"#);
    assert_eq!(cwd(&fixture), PathBuf::from("/image"));
    fixture.spec.working_dir = Some("/request".into());
    assert_eq!(cwd(&fixture), PathBuf::from("/request"));
    fixture.spec.working_dir = Some("relative".into());
    assert!(matches!(fixture.build(), Err(Error::RelativeCwd(_))));
}

#[test]
fn the_process_has_the_resolved_user_and_the_asked_flags() {
    let mut fixture = Fixture::new();
    fixture.spec.security.no_new_privs = true;
    fixture.spec.resources.oom_score_adj = -998;
    let process = fixture.process();
    let user = process.user();
    assert_eq!((user.uid(), user.gid()), (5, 6));
    assert_eq!(user.additional_gids().as_deref(), Some(&[6, 7][..]));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!(process.oom_score_adj(), Some(-998));
    assert_eq!(process.terminal(), Some(false));
    let limit = process.rlimits().as_ref().unwrap()[0];
    assert_eq!((limit.soft(), limit.hard()), (1024, 524_288));
    for bad in [-1001, 1001, i64::MIN] {
        fixture.spec.resources.oom_score_adj = bad;
        assert!(matches!(fixture.build(), Err(Error::Limit { field: "oom_score_adj", .. })));
    }
}

#[test]
fn an_exec_can_do_no_more_than_its_container() {
    let mut fixture = Fixture::new();
    fixture.spec.security.no_new_privs = true;
    let container = fixture.process();
    let exec = exec_process(&container, strings(&["ls", "-l"]), false).unwrap();
    assert_eq!(exec.args().clone().unwrap(), ["ls", "-l"]);
    assert_eq!(exec.user(), container.user());
    assert_eq!(exec.capabilities(), container.capabilities());
    assert_eq!(exec.no_new_privileges(), Some(true));
    assert_eq!(exec.env(), container.env());
    let tty = exec_process(&container, strings(&["sh"]), true).unwrap();
    assert_eq!(tty.terminal(), Some(true));
    assert_eq!(tty.env().as_ref().unwrap().last().unwrap(), "TERM=xterm");
    for bad in [&[][..], &[""]] {
        assert!(matches!(exec_process(&container, strings(bad), false), Err(Error::NoCommand)));
    }
}
