//! The directories of the daemon, and who may enter them.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Only root reads images, records and sockets of shims.
pub(crate) const PRIVATE: u32 = 0o700;
/// The CRI socket lies here: others may pass through to it, and not look around.
pub(crate) const PASSABLE: u32 = 0o711;

/// A directory that cannot be made or given its mode.
#[derive(Debug, thiserror::Error)]
#[error("make directory {}", path.display())]
pub(crate) struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Makes `path` with its parents and gives it `mode`, whatever it had.
///
/// Parents that are missing are made 0755, as mkdir(1) would.
pub(crate) fn make(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source| Error { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    // The mode above was cut by the umask, and an old directory may have any.
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_its_mode_even_if_it_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        fs::create_dir_all(&path).unwrap();
        make(&path, PASSABLE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, PASSABLE);
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let error = make(&path.join("below"), PRIVATE).unwrap_err();
        assert!(error.to_string().contains("file/below"), "{error}");
    }
}
