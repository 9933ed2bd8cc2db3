//! What the file names and this host must have: looked at before anything is made, by
//! `berthd config check` as well as by `berthd`.
//!
//! A directory that berthd makes need not be there, nor `container.seccomp_profiles`: a
//! node has it once somebody puts a profile there. A shim that is missing is refused, even
//! of a handler that no pod names yet: its first pod would be refused, at night.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::document::Key;
use super::rules::Wrong;
use super::{Config, Handler};
use crate::settings;

/// The first key that names what is not here, and what is wrong with it.
pub(super) fn check(config: &Config) -> Result<(), Wrong> {
    for (index, file) in config.image.ca_files.iter().enumerate() {
        if let Err(error) = berth_registry::check_authorities(file) {
            let key = Key::from("image.ca_files").entry(index);
            return Err(Wrong::new(key, format!("{:#}", anyhow::Error::new(error))));
        }
    }
    if let Ok(berth_streaming::Config { tls: Some(files), .. }) = settings::streaming(config)
        && let Err(error) = files.check()
    {
        let keys = ["streaming.certificate", "streaming.key"].map(Key::from).to_vec();
        return Err(Wrong { keys, complaint: format!("{:#}", anyhow::Error::new(error)) });
    }
    for (name, handler) in &config.runtime.handlers {
        if let Err(error) = find_shim(handler) {
            let key = Key::from("runtime.handlers").child(name).child("shim");
            return Err(Wrong::new(key, format!("{} {error:#}", handler.shim.display())));
        }
    }
    Ok(())
}

/// The shim's program, by absolute path: as it is named, or beside this program, or in `PATH`.
pub(crate) fn find_shim(handler: &Handler) -> Result<PathBuf> {
    if handler.shim.is_absolute() {
        executable(&handler.shim)?;
        return Ok(handler.shim.clone());
    }
    let own = env::current_exe().context("find this program")?;
    let beside = own.parent().map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let all = beside.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(&handler.shim));
    let mut found = all.filter(|path| path.is_absolute() && executable(path).is_ok());
    found.next().context("is no program beside berthd or in PATH")
}

fn executable(path: &Path) -> Result<()> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => anyhow::bail!("does not exist"),
        other => other.context("cannot be looked at")?,
    };
    anyhow::ensure!(found.is_file(), "is not a file");
    anyhow::ensure!(found.permissions().mode() & 0o111 != 0, "is not executable");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(shim: &Path) -> Result<PathBuf> {
        find_shim(&Handler { shim: shim.to_owned() })
    }

    #[test]
    fn a_shim_is_found_by_path_and_by_name() {
        assert_eq!(find(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        assert!(find(Path::new("no-such-shim-anywhere")).is_err());
    }

    #[test]
    fn what_cannot_be_executed_is_no_shim() {
        for (path, why) in [
            ("/no/such/shim", "does not exist"),
            ("/bin", "is not a file"),
            ("/etc/passwd", "is not executable"),
            ("/etc/passwd/shim", "cannot be looked at"),
        ] {
            let error = find(Path::new(path)).unwrap_err();
            assert!(error.to_string().starts_with(why), "{path}: {error:#}");
        }
    }
}
