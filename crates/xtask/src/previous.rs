//! The release before this tree, built for the tests of upgrade and downgrade.
//!
//! It is built from `git archive`, as from a source package, in a folder named by its
//! commit, once: what is there is taken as it is. Its dependencies are built in the target
//! folder of this tree, so that those which did not change are not built twice.
//!
//! cargo takes crates of the same name, profile and place in their workspace for the same,
//! and tells by the times of their files whether they changed. So the release has a profile
//! of its own, which differs for its own crates only, and its files are always new.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::binaries::{self, SHIM};
use crate::run;

/// The release before this tree, as git names it: a commit, or a tag once there is one.
/// Raise it with each release.
const RELEASE: &str = "9343dfb";

/// The variable that tells the tests where its binaries are.
pub(crate) const FOLDER: &str = "BERTH_PREVIOUS_DIR";
/// The variable that tells the tests why there are none.
pub(crate) const MISSING: &str = "BERTH_PREVIOUS_MISSING";

/// Debug information of its own crates: little, and unlike that of any other build.
const PROFILE: &str = "line-directives-only";

/// The folder with its `berthd` and shim, or why there is none.
#[derive(Debug)]
pub(crate) enum Previous {
    Built(PathBuf),
    /// The clone is shallow, or no clone at all.
    Unknown(String),
}

/// Builds the previous release, unless it is there already.
pub(crate) fn build() -> Result<Previous> {
    let commit = match commit() {
        Ok(commit) => commit,
        Err(error) => return Ok(Previous::Unknown(format!("{error:#}"))),
    };
    let folder = run::target().join("previous").join(&commit);
    if folder.join(SHIM).exists() {
        return Ok(Previous::Built(folder));
    }
    eprintln!("building the previous release, {RELEASE} (a minute, once)");
    let source = folder.with_extension("source");
    unpack(&commit, &source)?;
    let built = build_in(&source, &folder);
    fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
    built.map(|()| Previous::Built(folder))
}

/// Builds it, and says where it is.
pub(crate) fn announce() -> Result<()> {
    match build()? {
        Previous::Built(folder) => eprintln!("built; {FOLDER}={}", folder.display()),
        Previous::Unknown(reason) => bail!("{reason}"),
    }
    Ok(())
}

fn commit() -> Result<String> {
    let mut git = Command::new("git");
    let revision = format!("{RELEASE}^{{commit}}");
    git.current_dir(run::repository()).args(["rev-parse", "--verify", "--quiet", &revision]);
    let found = run::output(git).with_context(|| {
        format!("{RELEASE} is not in this clone (a shallow one? git fetch --unshallow)")
    })?;
    Ok(String::from_utf8(found).context("read what git says")?.trim().to_owned())
}

/// The files of `commit` in `source`, made anew.
fn unpack(commit: &str, source: &Path) -> Result<()> {
    if source.exists() {
        fs::remove_dir_all(source).with_context(|| format!("remove {}", source.display()))?;
    }
    fs::create_dir_all(source).with_context(|| format!("create {}", source.display()))?;
    let mut git = Command::new("git");
    git.current_dir(run::repository()).args(["archive", "--format=tar", commit]);
    let mut archive = git.stdout(Stdio::piped()).spawn().context("start git archive")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--touch"])
        .arg("-C")
        .arg(source)
        .stdin(archive.stdout.take().expect("it was piped"));
    run::check(tar)?;
    let status = archive.wait().context("wait for git archive")?;
    if !status.success() {
        bail!("git archive {commit} failed: {status}");
    }
    Ok(())
}

fn build_in(source: &Path, folder: &Path) -> Result<()> {
    let cargo = |arguments: &[&str]| {
        let mut cargo = run::cargo(arguments);
        cargo.current_dir(source).env("CARGO_TARGET_DIR", run::target());
        cargo.env("CARGO_PROFILE_DEV_DEBUG", PROFILE).env("CARGO_INCREMENTAL", "0");
        cargo
    };
    run::check(cargo(&["build", "--locked", "--package", "berth-daemon", "--bin", "berthd"]))?;
    let from = run::target().join("debug");
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    binaries::install(&from.join("berthd"), &folder.join("berthd"))?;
    let mut shim = cargo(&["rustc", "--locked", "--package", "berth-shim", "--bin", SHIM]);
    shim.args(binaries::STATIC);
    run::check(shim)?;
    // The last one: by it a finished build is known.
    binaries::install(&from.join(SHIM), &folder.join(SHIM))
}
