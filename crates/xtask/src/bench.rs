//! `cargo xtask bench`: every benchmark, side by side with the peers.

use std::process::Command;

use anyhow::{Result, bail};

use crate::binaries::{self, Profile};
use crate::{host, run};

/// The tool, and what it measures as Berth's OCI runtime.
const TOOLS: [&str; 2] = ["berth-bench", "berth-bench-oci"];

/// Installs what is missing, builds what ships and the tool, and runs `berth-bench compare`
/// with `arguments`.
pub(crate) fn bench(arguments: &[&str]) -> Result<()> {
    if !arguments.contains(&"--help") {
        if !host::is_root() {
            bail!("not root: runtimes make namespaces, mounts, cgroups and bridges");
        }
        host::install_packages()?;
        host::install_peers()?;
    }
    eprintln!("building release binaries (several minutes the first time)");
    let built = binaries::build(Profile::Release)?;
    let mut tool = run::cargo(["build", "--release", "--package", "berth-bench"]);
    for name in TOOLS {
        tool.args(["--bin", name]);
    }
    run::check(tool)?;
    for name in TOOLS {
        binaries::install(&run::target().join("release").join(name), &built.folder.join(name))?;
    }
    let mut compare = Command::new(built.folder.join(TOOLS[0]));
    compare.current_dir(run::repository()).env("BERTH_BIN_DIR", &built.folder);
    compare.arg("compare").args(arguments);
    run::check(compare)
}
