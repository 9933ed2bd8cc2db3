//! The directories of the daemon, and who may enter them.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Only root reads images, records and sockets of shims.
pub(crate) const PRIVATE: u32 = 0o700;
/// The CRI socket lies here: others may pass through to it, and not look around.
pub(crate) const PASSABLE: u32 = 0o711;

/// Why there is no directory to use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be made or given its mode.
    #[error("make directory {}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is somebody else's.
    #[error("{} is not empty and has no {mark}: it is not berthd's", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What berthd would have made in it.
        mark: &'static str,
    },
}

/// Makes `path` as [`make`] does, unless it holds what is not berthd's: `state = "/run"`
/// must not close `/run` to everybody else. `mark` is a file that berthd keeps there.
pub(crate) fn make_own(path: &Path, mode: u32, mark: &'static str) -> Result<(), Error> {
    let failed = |source| Error::Make { path: path.to_owned(), source };
    match fs::read_dir(path) {
        Ok(entries) if !path.join(mark).exists() => {
            for entry in entries {
                // The root of a fresh file system has it.
                if entry.map_err(failed)?.file_name() != "lost+found" {
                    return Err(Error::Foreign { path: path.to_owned(), mark });
                }
            }
        }
        // What is no directory, or cannot be read, `make` stumbles over.
        Ok(_) | Err(_) => {}
    }
    make(path, mode)
}

/// Makes `path` with its parents and gives it `mode`, whatever it had.
///
/// Parents that are missing are made 0755, as mkdir(1) would.
pub(crate) fn make(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source| Error::Make { path: path.to_owned(), source };
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
    fn a_directory_of_somebody_else_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let mode = || fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777;
        let make_own = || make_own(dir.path(), PASSABLE, "mark");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("theirs")).unwrap();
        assert!(matches!(make_own(), Err(Error::Foreign { .. })));
        assert_eq!(mode(), 0o755);

        fs::write(dir.path().join("mark"), "").unwrap();
        make_own().unwrap();
        assert_eq!(mode(), PASSABLE);
    }

    #[test]
    fn an_empty_or_fresh_directory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        make_own(dir.path(), PRIVATE, "mark").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        make_own(dir.path(), PRIVATE, "mark").unwrap();
        make_own(&dir.path().join("new"), PRIVATE, "mark").unwrap();
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
