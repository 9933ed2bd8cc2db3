//! `cargo xtask demo`: the main job, shown to a newcomer.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{binaries, host, run};

/// Builds and runs the demo with `arguments` of its own.
pub(crate) fn demo(arguments: &[&str]) -> Result<()> {
    if !host::is_root() {
        bail!(
            "not root: the demo makes namespaces, mounts, cgroups and a bridge; \
             run it as root (in a disposable machine, if you like)"
        );
    }
    host::install_packages()?;
    eprintln!("building release binaries (several minutes the first time)");
    let built = binaries::build(binaries::Profile::Release)?;
    let mut demo = Command::new(built.folder.join("berth-demo"));
    demo.env("BERTH_BIN_DIR", &built.folder).args(arguments);
    run::check(demo)
}
