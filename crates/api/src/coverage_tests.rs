//! Holds `proto/coverage.toml` against `proto/cri-v1.json`, both ways, and against the tests
//! of the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Before the reason why nothing is done with a field.
const IGNORED: &str = "ignored: ";
/// Shortest reason that says anything, bytes.
const REASON: usize = 20;

/// What shows a field or an RPC, by section and name.
type Table = BTreeMap<String, BTreeMap<String, String>>;

fn table() -> Table {
    toml::from_str(include_str!("../../../proto/coverage.toml")).unwrap()
}

/// Every RPC, and every field of what a client can send.
fn wanted() -> BTreeMap<String, BTreeSet<String>> {
    let json: Value = serde_json::from_str(include_str!("../../../proto/cri-v1.json")).unwrap();
    let mut wanted = BTreeMap::from([("rpc".to_owned(), BTreeSet::new())]);
    let mut left = Vec::new();
    for rpc in
        json["services"].as_object().unwrap().values().flat_map(|all| all.as_array().unwrap())
    {
        let text = |key: &str| rpc[key].as_str().unwrap().to_owned();
        wanted.get_mut("rpc").unwrap().insert(text("rpc"));
        left.push(text("request"));
    }
    while let Some(message) = left.pop() {
        let fields = json["messages"][&message].as_array().unwrap();
        if fields.is_empty() || wanted.contains_key(&message) {
            continue;
        }
        let names = fields.iter().map(|field| field["name"].as_str().unwrap().to_owned());
        wanted.insert(message, names.collect());
        for field in fields {
            let words = field["type"].as_str().unwrap().split([' ', '<', ',', '>']);
            let messages = words.filter(|word| json["messages"].get(word).is_some());
            left.extend(messages.map(str::to_owned));
        }
    }
    wanted
}

/// Names of all test functions of the tree.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut left: Vec<PathBuf> = ["crates", "e2e", "benches"].map(|dir| root.join(dir)).into();
    let mut tests = BTreeSet::new();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests.extend(tests_of(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    tests
}

fn tests_of(source: &str) -> Vec<String> {
    let mut marked = false;
    let mut tests = Vec::new();
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some((_, name)) = line.split_once("fn ")
            && std::mem::take(&mut marked)
        {
            tests.push(name.split('(').next().unwrap().to_owned());
        }
    }
    tests
}

/// The table with a missing or a stale row is no table of the CRI.
#[test]
fn every_rpc_and_request_field_has_its_row_and_no_other() {
    let rows = |table: Table| {
        let names = |rows: BTreeMap<String, String>| rows.into_keys().collect::<BTreeSet<_>>();
        table.into_iter().map(|(name, rows)| (name, names(rows))).collect::<BTreeMap<_, _>>()
    };
    let (rows, wanted) = (rows(table()), wanted());
    let pairs = |all: &BTreeMap<String, BTreeSet<String>>| {
        let pairs = all.iter().flat_map(|(s, names)| names.iter().map(move |n| format!("{s}.{n}")));
        pairs.collect::<BTreeSet<_>>()
    };
    let missing: Vec<_> = pairs(&wanted).difference(&pairs(&rows)).cloned().collect();
    let stale: Vec<_> = pairs(&rows).difference(&pairs(&wanted)).cloned().collect();
    assert!(missing.is_empty() && stale.is_empty(), "missing {missing:#?}, stale {stale:#?}");
    assert!(pairs(&wanted).len() > 250, "the description was not understood");
}

#[test]
fn every_row_names_a_test_that_there_is_or_a_reason() {
    let tests = tests();
    assert!(tests.contains("every_row_names_a_test_that_there_is_or_a_reason"));
    let mut wrong = Vec::new();
    for (section, rows) in table() {
        for (name, shown) in rows {
            let fine = match shown.strip_prefix(IGNORED) {
                Some(reason) => reason.len() >= REASON,
                None => shown.split(", ").all(|test| tests.contains(test)),
            };
            if !fine {
                wrong.push(format!("{section}.{name}: {shown}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
