//! The direction of dependency: a crate uses only crates of the rows above its own.

use anyhow::Result;
use serde_json::Value;

use super::{packages, text};

/// The rows of the design, lowest first.
const ROWS: &[&[&str]] = &[
    &["model", "sys", "api", "telemetry", "failpoint"],
    &[
        "cgroup",
        "seccomp",
        "content",
        "snapshot",
        "metadata",
        "registry",
        "spec",
        "cdi",
        "streaming",
    ],
    &["oci-runtime", "image", "network"],
    &["shim", "shim-client", "stats", "nri"],
    &["engine"],
    &["cri"],
    &["daemon"],
];

/// Crates for developers: nothing that ships may use them, they may use anything.
const DEVELOPERS: &[&str] = &["testkit", "xtask", "e2e", "bench", "paths"];

pub(super) fn check(metadata: &Value) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for package in packages(metadata)? {
        let Some(name) = text(package, "name")?.strip_prefix("berth-") else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            let used = text(dependency, "name")?;
            if let Some(used) = used.strip_prefix("berth-") {
                complaints.extend(judge(name, used, kind));
            }
        }
        if row(name).is_none() && !DEVELOPERS.contains(&name) {
            complaints.push(format!("crate {name} stands in no row of the design"));
        }
    }
    Ok(complaints)
}

fn row(name: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&name))
}

/// Says what is wrong with the arrow from `user` to `used`, if anything is.
///
/// Tests may use developers' crates and their own row, so only what ships is judged there.
fn judge(user: &str, used: &str, kind: &str) -> Option<String> {
    if DEVELOPERS.contains(&user) {
        return None;
    }
    let (user_row, used_row) = (row(user)?, row(used));
    match (used_row, kind) {
        (None, "dev") => None,
        (None, _) => Some(format!("crate {user} uses {used}, which does not ship")),
        (Some(used_row), "dev") if used_row <= user_row => None,
        (Some(used_row), _) if used_row < user_row => None,
        (Some(used_row), _) => Some(format!(
            "crate {user} (row {user_row}) uses {used} (row {used_row}): arrows point up only"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn arrows_point_to_rows_above_only() {
        assert_eq!(judge("engine", "model", "normal"), None);
        assert!(judge("model", "engine", "normal").is_some());
        assert!(judge("content", "snapshot", "normal").is_some());
        assert!(judge("engine", "cri", "dev").is_some());
    }

    #[test]
    fn only_tests_use_developers_crates() {
        assert_eq!(judge("engine", "testkit", "dev"), None);
        assert!(judge("engine", "testkit", "normal").is_some());
        assert_eq!(judge("e2e", "daemon", "normal"), None);
    }
}
