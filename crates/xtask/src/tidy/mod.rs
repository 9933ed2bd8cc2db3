//! `cargo xtask tidy`: the house rules that a compiler does not know.

mod arrows;
mod dependencies;
mod layout;
mod licence;

use std::collections::HashSet;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::run;

/// Runs every check, prints each complaint, and fails when there is one.
pub(crate) fn tidy() -> Result<()> {
    // Crates for other systems stand in the lock file, but nobody builds them.
    let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
    let arguments = ["metadata", "--format-version", "1", "--locked"].into_iter().chain(platform);
    let metadata: Value = serde_json::from_slice(&run::output(run::cargo(arguments))?)
        .context("parse cargo metadata")?;
    let mut complaints = arrows::check(&metadata)?;
    complaints.extend(dependencies::check(&metadata)?);
    complaints.extend(layout::check(run::repository())?);
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    match complaints.len() {
        0 => {
            eprintln!("   ok");
            Ok(())
        }
        count => bail!("tidy has {count} complaints"),
    }
}

/// The packages of a `cargo metadata` document that this platform builds.
fn packages(metadata: &Value) -> Result<impl Iterator<Item = &Value>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata has no nodes")?;
    let built: HashSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    Ok(packages
        .iter()
        .filter(move |package| package["id"].as_str().is_some_and(|id| built.contains(id))))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata lacks {key:?}"))
}
