//! The rules, value by value; `tests/config.rs` has whole files and what is said of them.

use super::*;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(Path::new("test.toml"), text)
}

#[test]
fn the_commented_file_is_the_default() {
    let mut written = parse(DEFAULT).unwrap();
    assert_eq!(written.cri.socket, Some(Config::default().socket()));
    written.cri.socket = None;
    assert_eq!(written, Config::default());
}

/// What is not in it could not be suggested for a key that is misspelt.
#[test]
fn the_commented_file_names_every_key() {
    for (table, wrong) in [
        ("", "x = 1"),
        ("[cri]", "x = 1"),
        ("[streaming]", "x = 1"),
        ("[log]", "x = 1"),
        ("[image]", "x = 1"),
        ("[registry]", "x = 1"),
        ("[metrics]", "x = 1"),
        ("[network]", "x = 1"),
        ("[container]", "x = 1"),
        ("[nri]", "x = 1"),
        ("[runtime]", "x = 1"),
        ("[runtime.handlers.berth]", "shim = 'a'\nx = 1"),
    ] {
        let error = parse(&format!("{table}\n{wrong}")).unwrap_err().to_string();
        let known = Document::parse(DEFAULT).unwrap();
        let table = table.trim_matches(['[', ']']);
        let (_, expected) = error.split_once("expected ").unwrap();
        for name in expected.split('`').skip(1).step_by(2) {
            let top = Key::default();
            let key = if table.is_empty() { top.child(name) } else { Key::from(table).child(name) };
            assert!(known.value(&key).is_some(), "{key}: {error}");
        }
    }
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[track_caller]
fn refused(text: &str, key: &str, line: usize) {
    match parse(text) {
        Err(Error::Wrong { key: Some(found), at, .. }) => {
            assert_eq!((found.to_string().as_str(), at.line), (key, line), "{text}");
        }
        other => panic!("{text}: {other:?}"),
    }
}

/// teeth: crates/daemon/src/config/rules.rs: `network(&config.network)?;` → ``
#[test]
fn what_no_daemon_could_use_is_refused_before_it_starts() {
    for (key, values) in [
        ("root", &["'/a:b'", "'/a,b'", "'/a\\b'", "\"/a\\nb\""][..]),
        ("state", &["\"/a\\u0000b\""]),
        ("cri.socket", &[&format!("'/{}'", "a".repeat(107))]),
        (
            "streaming.address",
            &["''", "'localhost:0'", "'127.0.0.1'", "'0.0.0.0:1'", "'192.0.2.1:10010'"],
        ),
        ("streaming.certificate", &["'a.pem'", "'/a.pem'"]),
        ("streaming.key", &["'a.pem'"]),
        ("log.filter", &["''", "'infoo'", "'warning'", "'info,,'", "'berth_engine'", "'=info'"]),
        ("image.plain_http[0]", &["''", "'http://a.b'", "'a.b/c'", "'*.b'", "'a:x'"]),
        ("image.ca_files[0]", &["'x.pem'", "''"]),
        (
            "metrics.address",
            &["'0.0.0.0:9'", "'10.0.0.1:9'", "'localhost:9'", "'127.0.0.1'", "'unix:x'", "'/x'"],
        ),
        (
            "metrics.address",
            &["'unix:/run/berth/berth.sock'", "'unix:/var/run/nri/nri.sock'", "'unix:/a/../b'"],
        ),
        (
            "metrics.address",
            &["'unix:/run/berth/events'", "'unix:/run/berth/s/x'", "'unix:/var/lib/berth/x'"],
        ),
        ("network.bridge", &["'..'", "'lo'", "'all'", "\"a\\tb\"", "''"]),
        ("network.table", &["''", "'a b'", "'a;flush'", "'0a'"]),
        (
            "network.subnet",
            &["''", "'x'", "'10.0.0.0/31'", "'10.0.0.1/16'", "'127.0.0.0/8'", "'fd00::/64'"],
        ),
        ("container.cgroup_base", &["''", "'/'", "'a'", "'/a/../b'"]),
        ("container.seccomp_profiles", &["''", "'a'", "'/a/../b'"]),
        ("container.cdi_spec_dirs[0]", &["''", "'a'", "'/a/../b'"]),
        ("nri.socket", &["'a'", "'/run/berth/berth.sock'", "'/run/berth/s/x'", "'/var/lib'"]),
        ("nri.plugins", &["''", "'a'"]),
        ("nri.plugin_configs", &["''", "'a/b'"]),
        ("runtime.handlers.x.shim", &["'a/b'", "'../b'", "'/a/../b'", "''", "'/'"]),
    ] {
        for value in values {
            let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
            let table = if table.is_empty() { String::new() } else { format!("[{table}]") };
            let (name, value) = match name.strip_suffix("[0]") {
                Some(name) => (name, format!("[{value}]")),
                None => (name, (*value).to_owned()),
            };
            refused(&format!("{table}\n{name} = {value}\n"), key, 2);
        }
    }
}

#[test]
fn of_two_values_that_do_not_go_together_the_written_one_is_blamed() {
    refused("root = '/a'\nstate = '/a/b'", "state", 2);
    refused("\nroot = '/run/berth/x'", "root", 2);
    refused("\n[runtime.handlers.x]\nshim = 'x'", "runtime.handlers", 2);
    refused("[runtime.handlers.x]\nshim = 'x'\n[runtime]\ndefault = 'y'", "runtime.default", 4);
}

#[test]
fn registries_without_tls_are_named_as_in_references() {
    let hosts = "['r.example', 'r.example:80', 'registry', 'registry:5000', '[::1]:80']";
    parse(&format!("[image]\nplain_http = {hosts}")).unwrap();
}
