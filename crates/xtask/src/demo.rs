//! `cargo xtask demo`: the main job, shown to a newcomer.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{binaries, host, run};

pub(crate) fn demo(keep: bool) -> Result<()> {
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
    demo.env("BERTH_BIN_DIR", &built.folder);
    if keep {
        demo.arg("--keep");
    }
    run::check(demo)
}
