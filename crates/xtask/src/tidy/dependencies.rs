//! What comes from outside: licences, doubled versions, and crates that are not wanted.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::{licence, packages, text};

/// Crates that stand in the lock file in several versions, and why.
const DOUBLED: &[(&str, &str)] = &[
    ("base64", "hyper-util moved on before tonic did"),
    ("bitflags", "ttrpc uses nix 0.26"),
    ("foldhash", "only builds: petgraph under prost-build"),
    ("getrandom", "ring stays on 0.2"),
    ("hashbrown", "only builds: petgraph under prost-build"),
    ("linux-raw-sys", "only builds: which under ttrpc's code generator"),
    ("memoffset", "ttrpc uses nix 0.26"),
    ("nix", "ttrpc uses 0.26"),
    ("rand", "opentelemetry stays on 0.9"),
    ("rand_core", "opentelemetry stays on 0.9"),
    ("rustix", "only builds: which under ttrpc's code generator"),
    ("syn", "only builds: derive macros are moving to version 3"),
    ("thiserror", "ttrpc and rust-protobuf use version 1"),
    ("thiserror-impl", "ttrpc and rust-protobuf use version 1"),
    ("unicode-width", "only builds: messages of the protobuf compiler"),
];

/// Crates that must never come in, not even through another, and why.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-sys", "one TLS provider, ring, is enough"),
    ("containerd-shim", "starts threads and steals exit codes"),
    ("notify", "starts a thread; its licence is not on the list"),
    ("openssl-sys", "one TLS library, rustls, is enough"),
    ("tokio-tar", "CVE-2025-62518 was never mended"),
];

pub(super) fn check(metadata: &Value) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages(metadata)? {
        let (name, version) = (text(package, "name")?, text(package, "version")?);
        versions.entry(name).or_default().push(version);
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            complaints.push(format!("crate {name} is not wanted: {why}"));
        }
        if package["source"].is_null() {
            continue;
        }
        match package["license"].as_str() {
            None => complaints.push(format!("crate {name} {version} names no licence")),
            Some(expression) if !licence::permissive(expression) => {
                complaints.push(format!("crate {name} {version} has licence {expression}"));
            }
            Some(_) => {}
        }
    }
    complaints.extend(doubled(&versions));
    Ok(complaints)
}

fn doubled(versions: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
    let excused = |name: &str| DOUBLED.iter().any(|(doubled, _)| *doubled == name);
    let mut complaints = Vec::new();
    for (name, versions) in versions {
        if versions.len() > 1 && !excused(name) {
            let versions = versions.join(" and ");
            complaints.push(format!("crate {name} comes in versions {versions}, unexcused"));
        }
    }
    for (name, _) in DOUBLED {
        if versions.get(name).is_none_or(|versions| versions.len() == 1) {
            complaints.push(format!("crate {name} is excused for two versions, but has not two"));
        }
    }
    complaints
}
