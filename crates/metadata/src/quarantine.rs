//! A damaged database is set aside, never deleted: it may be all that is left.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// What belongs to a database beside its own file.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];
/// Damaged files kept before an operator has to look.
const MOST: u32 = 99;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Refuses what SQLite would follow or fail on in words of its own. A file that is not
/// there is fine.
pub(crate) fn check_kinds(path: &Path) -> Result<(), Error> {
    for companion in COMPANIONS {
        let path = beside(path, companion);
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => return Err(Error::NotAFile { path }),
            // SQLite says what is wrong with the rest.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Whether a log is there and the database that it belongs to is not.
pub(crate) fn is_beheaded(path: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    length(path) == 0 && length(&beside(path, "-wal")) > 0
}

/// Renames the database at `path` and what belongs to it; returns the new name.
///
/// The database goes first: a log that stays alone is taken for nothing, a database
/// without its log would be an older state of it.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let free = |number: &u32| {
        let name = beside(path, &format!(".damaged-{number}"));
        COMPANIONS.iter().all(|companion| fs::symlink_metadata(beside(&name, companion)).is_err())
    };
    let number =
        (1..=MOST).find(free).ok_or_else(|| Error::TooManyDamaged { path: path.to_owned() })?;
    let aside = beside(path, &format!(".damaged-{number}"));
    for companion in COMPANIONS {
        let (from, to) = (beside(path, companion), beside(&aside, companion));
        match fs::rename(&from, &to) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::File { action: "set aside", path: from, source });
            }
            _ => {}
        }
    }
    Ok(aside)
}

/// Opens the database at `path` with `open`; a damaged one is set aside, and a new one
/// made in its place.
pub(crate) fn open_or_replace<T>(
    path: &Path,
    open: impl Fn() -> Result<T, Error>,
) -> Result<T, Error> {
    let damage = match open() {
        Err(error) if error.is_damage() => error,
        other => return other,
    };
    let aside = set_aside(path)?;
    tracing::error!(
        path = %path.display(),
        kept_as = %aside.display(),
        error = &damage as &dyn std::error::Error,
        "a damaged database was set aside; a new one takes its place"
    );
    open()
}
