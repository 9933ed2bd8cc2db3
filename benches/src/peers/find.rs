//! Which runtimes and programs this machine has, and their versions.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian keeps programs for the administrator; a user's `PATH` may lack them.
const MORE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// An OCI runtime that containerd drives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Oci {
    Runc,
    Crun,
}

impl Oci {
    /// The program's name, and containerd's handler for it.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

/// Looks for `program`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(MORE.iter().map(PathBuf::from));
    let mut candidates = dirs.map(|dir| dir.join(program));
    candidates.find(|path| path.is_file())
}

/// What `program` says of its version, on the first line.
pub(crate) fn version(program: &str) -> Option<String> {
    let said = Command::new(find(program)?).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned())
}

/// The folder of CNI plugins: Debian's, or the one that most others use.
pub(super) fn cni_plugins() -> Option<&'static Path> {
    let folders = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
    folders.into_iter().find(|folder| folder.join("bridge").is_file())
}
