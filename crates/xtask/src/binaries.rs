//! Builds the binaries that users run, into one folder.
//!
//! The shim is built last and by itself: static and non-PIE, which more than halves the
//! memory of an idle one. Only its own crate gets the two flags, so that dependencies are
//! shared with the daemon's build. A plain `cargo build` would overwrite it with a dynamic
//! one, hence the copy in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::run;

/// What test builds have and releases lack. Everything that tests build has them, so that
/// nothing is built twice.
pub(crate) const TEST_FEATURES: &str = "berth-daemon/failpoints,berth-shim/failpoints";

pub(crate) const SHIM: &str = "containerd-shim-berth-v1";

/// What makes the shim static and non-PIE, after `cargo rustc`.
pub(crate) const STATIC: [&str; 5] =
    ["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

/// How to build.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Profile {
    /// Quick to build; what the tests drive.
    Dev,
    /// What ships.
    Release,
}

impl Profile {
    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }

    fn flag(self, package: &str) -> String {
        match self {
            Self::Dev => format!("--features={package}/failpoints"),
            Self::Release => "--release".to_owned(),
        }
    }
}

/// The folder with the binaries.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) folder: PathBuf,
}

impl Built {
    pub(crate) fn announce(&self) {
        eprintln!("built into {}", self.folder.display());
    }
}

/// Builds `berthd`, the demo client and the shim.
pub(crate) fn build(profile: Profile) -> Result<Built> {
    let mut daemon = run::cargo(["build", "--package", "berth-daemon", "--bin", "berthd"]);
    daemon
        .args(["--package", "berth-testkit", "--bin", "berth-demo"])
        .arg(profile.flag("berth-daemon"));
    run::check(daemon)?;

    let mut shim = run::cargo(["rustc", "--package", "berth-shim", "--bin", SHIM]);
    shim.arg(profile.flag("berth-shim"));
    shim.args(STATIC);
    run::check(shim)?;

    let from = run::target().join(profile.folder());
    let folder = run::target().join("berth").join(profile.folder());
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for name in ["berthd", "berth-demo", SHIM] {
        install(&from.join(name), &folder.join(name))?;
    }
    let shim = folder.join(SHIM);
    let elf = fs::read(&shim).with_context(|| format!("read {}", shim.display()))?;
    if !is_static(&elf)? {
        bail!("{} is not a static, non-PIE executable", shim.display());
    }
    Ok(Built { folder })
}

/// Copies through a temporary name: a program that runs may not be overwritten.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)
        .and_then(|_| fs::rename(&partial, to))
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// Whether an x86-64 or AArch64 ELF file is static and not position independent:
/// type `ET_EXEC` and no `PT_INTERP` program header (elf(5)).
pub(crate) fn is_static(elf: &[u8]) -> Result<bool> {
    const ET_EXEC: u16 = 2;
    const PT_INTERP: u32 = 3;
    let half = |at: usize| {
        let bytes = elf.get(at..at + 2).context("ELF file is cut short")?;
        Ok::<_, anyhow::Error>(u16::from_le_bytes(bytes.try_into()?))
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01".as_slice()) {
        bail!("not a little-endian 64-bit ELF file");
    }
    let offset: [u8; 8] = elf.get(32..40).context("ELF file is cut short")?.try_into()?;
    let offset = usize::try_from(u64::from_le_bytes(offset))?;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    let mut interpreted = false;
    for index in 0..count {
        let at = offset + index * size;
        let kind: [u8; 4] = elf.get(at..at + 4).context("ELF file is cut short")?.try_into()?;
        interpreted |= u32::from_le_bytes(kind) == PT_INTERP;
    }
    Ok(half(16)? == ET_EXEC && !interpreted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kind: u16, headers: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..18].copy_from_slice(&kind.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
        for header in headers {
            let mut entry = vec![0; 56];
            entry[..4].copy_from_slice(&header.to_le_bytes());
            file.extend(entry);
        }
        file
    }

    #[test]
    fn static_means_fixed_and_without_interpreter() {
        assert!(is_static(&elf(2, &[1, 1])).unwrap());
        assert!(!is_static(&elf(2, &[1, 3])).unwrap());
        assert!(!is_static(&elf(3, &[1])).unwrap());
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(is_static(b"#!/bin/sh").is_err());
        assert!(is_static(&elf(2, &[1])[..66]).is_err());
    }
}
