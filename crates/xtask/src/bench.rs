//! `cargo xtask bench`: every benchmark, side by side with the peers.

use std::process::Command;

use anyhow::{Result, bail};

use crate::binaries::{self, Profile};
use crate::{host, run};

/// The tool, and what it measures as Berth's OCI runtime. The latter is built as the shim is,
/// static: relocating and linking would be counted as the runtime's own time otherwise.
const TOOL: &str = "berth-bench";
const OCI: &str = "berth-bench-oci";

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
    run::check(run::cargo(["build", "--release", "--package", TOOL, "--bin", TOOL]))?;
    let mut oci = run::cargo(["rustc", "--release", "--package", TOOL, "--bin", OCI]);
    oci.args(binaries::STATIC);
    run::check(oci)?;
    for name in [TOOL, OCI] {
        binaries::install(&run::target().join("release").join(name), &built.folder.join(name))?;
    }
    let mut compare = Command::new(built.folder.join(TOOL));
    compare.current_dir(run::repository()).env("BERTH_BIN_DIR", &built.folder);
    compare.arg("compare").args(arguments);
    run::check(compare)
}
